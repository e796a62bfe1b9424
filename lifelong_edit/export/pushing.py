"""An export on its way to a hub: what would be sent, and sending it. By huggingface_hub, with its own credentials."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from lifelong_edit.errors import LifelongEditError, UsageError

_PLACES = ("source", "base_model_name_or_path", "_name_or_path", "name_or_path")
"""What files of an export call the place of the base."""
_SMALL = 1 << 20
"""Bytes of such a file, at most; a tokenizer's is larger, and names no place."""


@dataclass(frozen=True)
class Sending:
    """What goes to a repository: its name, bytes by file, and what is sent in the place of some of the files."""

    repository: str
    files: dict[str, int]
    instead: dict[str, bytes]


def sending(repository: str, folder: Path) -> Sending:
    """What would be sent of an exported folder; nothing is, and no network is asked.

    Where the base lies on this machine is nobody's business: its folder's name alone is sent. A hub id stays.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    instead = {name: said for name, path in paths.items() if (said := _without_places(path)) is not None}
    sizes = {name: len(instead[name]) if name in instead else path.stat().st_size for name, path in paths.items()}
    return Sending(repository, sizes, instead)


def _without_places(path: Path) -> bytes | None:
    """A file of JSON in which paths of this machine are cut to their last part; None where it names none."""
    if path.suffix != ".json" or path.stat().st_size > _SMALL:
        return None
    try:
        found = json.loads(path.read_bytes())
    except ValueError:  # whatever it is, it is sent as it is
        return None
    cut = _cut(found)
    return None if cut == found else (json.dumps(cut, indent=2, ensure_ascii=False) + "\n").encode()


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _last(part) if name in _PLACES else _cut(part) for name, part in value.items()}
    return [_cut(part) for part in value] if isinstance(value, list) else value


def _last(place: Any) -> Any:
    """The last part of an absolute path, also of another system's; anything else as it is."""
    if not isinstance(place, str) or not (place.startswith(("/", "~")) or PureWindowsPath(place).is_absolute()):
        return place
    return re.split(r"[/\\]", place.rstrip("/\\"))[-1]


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
        found = sending(repository, folder)
        files = [CommitOperationAdd(name, found.instead.get(name, str(folder / name))) for name in found.files]
        api.create_commit(made.repo_id, files, commit_message="Edited by lifelong-edit")
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LifelongEditError(
            f"cannot push to {repository}: {first}; the export stays in {folder}, push it again when that is mended"
        ) from error
    return str(made)
