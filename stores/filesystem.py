"""What kind of file system a store lies on: LMDB needs memory maps and locks that all its users share."""

from __future__ import annotations

import logging
import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
"""Where Linux says what is mounted where; elsewhere nobody is warned."""
NETWORK = {"9p", "afs", "ceph", "cifs", "coda", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "virtiofs"}
NETWORK |= {"fuse.davfs2", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "smb2", "smb3", "smbfs"}

_LOGGER = logging.getLogger(__name__)


def kind_of(folder: Path) -> str | None:
    """The type of the file system that a folder is on, as mount names it; None where the system does not say."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    place, found, nearest = folder.resolve(), None, -1
    for line in lines:
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        mounted = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), fields[4]))
        if place.is_relative_to(mounted) and len(mounted.parts) >= nearest:  # of several in one place the last counts
            found, nearest = after.split(" ")[0], len(mounted.parts)
    return found


def warn_of_network(folder: Path) -> None:
    """Log a warning where a store lies on a network file system."""
    kind = kind_of(folder)
    if kind in NETWORK:
        _LOGGER.warning(
            "%s lies on a network file system (%s), where maps and locks of several machines may not see each other; "
            "use the store from one machine at a time, or move it to a local disk",
            folder,
            kind,
        )
