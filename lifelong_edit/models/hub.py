"""Models on the hub that are kept as GGUF files: which file a source means, and where it lies once it is here.

transformers finds a repository by its config.json, which those that hold nothing but GGUF files do not have.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lifelong_edit.errors import LifelongEditError, UsageError

FILE = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)/(?P<name>.+\.gguf)", re.IGNORECASE)
"""A GGUF file of a repository: `a/b/NAME.gguf`."""


def packed(source: str, revision: str | None = None) -> Path | None:
    """The GGUF file that a hub id, or the name of a file behind one, stands for; brought here if it is not here yet.

    None for a hub id whose repository has a configuration, and where nothing can be said about it: transformers loads
    the one and says what is wrong with the other. Raises UsageError where a repository has several files and none is
    named, LifelongEditError where a named one cannot be had.
    """
    named = FILE.fullmatch(source)
    if named is not None:
        return _brought(named["repository"], named["name"], revision)
    if _has_configuration(source, revision):
        return None
    names = [name for name in _names(source, revision) if name.lower().endswith(".gguf")]
    if len(names) > 1:
        raise UsageError(
            f"{source} has {len(names)} GGUF files and no config.json; name one of them as the model, such as "
            f"{source}/{min(names)}"
        )
    return _brought(source, names[0], revision) if names else None


def _has_configuration(repository: str, revision: str | None) -> bool:
    """Whether a repository has a config.json, or cannot be asked."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        hf_hub_download(repository, "config.json", revision=revision)
    except EntryNotFoundError:  # it is not there, or nothing of it is here and the hub cannot be reached
        return False
    except Exception:
        return True
    return True


def _names(repository: str, revision: str | None) -> Sequence[str]:
    """The files of a repository as the hub tells them, or those that are here; none where neither can be had."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        return HfApi().list_repo_files(repository, revision=revision)
    except Exception:
        pass
    try:
        here = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except Exception:
        return ()
    return [str(path.relative_to(here)) for path in here.rglob("*.gguf")]


def _brought(repository: str, name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LifelongEditError(f"cannot have {name} of {repository} on the hub: {said}") from error
