"""Where an export may be placed: asked before seconds go into loading a model, and again as it is written."""

from __future__ import annotations

from pathlib import Path

from lifelong_edit.errors import UsageError

PROVENANCE = "lifelong_edit.json"
"""The file of an export that says where it comes from, and by which it is known as one."""


def require_free(out: Path, force: bool) -> None:
    """Raise UsageError where an export may not be placed: only by force on an earlier one, never on anything else."""
    out = out.expanduser().resolve()
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"cannot export to {out}: it is a file, expected a folder that does not exist yet")
    if not any(out.iterdir()):
        return
    if not (out / PROVENANCE).is_file():
        raise UsageError(f"{out} is no earlier export (no {PROVENANCE} in it) and is never replaced; name another")
    if not force:
        raise UsageError(f"{out} exists already; replace the earlier export with --force, or name another folder")
