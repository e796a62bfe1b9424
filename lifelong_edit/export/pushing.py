"""An export on its way to a hub: what would be sent, and sending it. By huggingface_hub, with its own credentials."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from lifelong_edit.errors import LifelongEditError, UsageError


@dataclass(frozen=True)
class Sending:
    """What goes to a repository: its name, and bytes by file."""

    repository: str
    files: dict[str, int]


def sending(repository: str, folder: Path) -> Sending:
    """What would be sent of an exported folder; nothing is, and no network is asked."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return Sending(repository, {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths})


def require_repository(name: str) -> None:
    """Raise UsageError where a name cannot be that of a repository."""
    if not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]{0,95}", name, re.ASCII) or "--" in name or ".." in name:
        raise UsageError(f"found the repository {name!r}, expected OWNER/NAME or NAME as the hub has them")


def push(repository: str, folder: Path, *, private: bool = True) -> str:
    """Send an exported folder to a repository, which is made where there is none; where it is then.

    Raises LifelongEditError where the hub cannot be reached or refuses.
    """
    api = HfApi()
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Edited by lifelong-edit")
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LifelongEditError(
            f"cannot push to {repository}: {first}; the export stays in {folder}, push it again when that is mended"
        ) from error
    return str(made)
