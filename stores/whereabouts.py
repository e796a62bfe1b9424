"""Where a store's model lies now, if not where `init` found it: a file beside the database, and no part of the history.

A place is true of one machine. So it is not in the log, and a backup, which may come to another machine, has none.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from lifelong_edit.atomic import write_bytes_atomic
from lifelong_edit.errors import StoreDamagedError, StoreError
from lifelong_edit.stores.envelopes import Envelopes
from lifelong_edit.stores.tables import UNDECODABLE

PLACE_FILE = "model.json"


class _Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: str


def read_place(folder: Path, envelopes: Envelopes) -> str | None:
    """What `write_place` wrote, None where there is nothing. Raises StoreDamagedError where it cannot be read."""
    file = folder / PLACE_FILE
    try:
        return msgspec.json.decode(envelopes.unseal_file(PLACE_FILE, file.read_bytes()), type=_Place).source
    except FileNotFoundError:
        return None
    except (OSError, StoreDamagedError, *UNDECODABLE):
        raise StoreDamagedError(
            f"{file}, which says where the model lies, cannot be read; take the file away, and "
            "`relocate` the model again"
        ) from None


def write_place(folder: Path, source: str | None, envelopes: Envelopes) -> None:
    """Keep where the model lies, durably, sealed as the store's envelopes seal; None: where `init` found it.

    Raises StoreError where it cannot be written.
    """
    file = folder / PLACE_FILE
    try:
        if source is None:
            file.unlink(missing_ok=True)
        else:
            write_bytes_atomic(file, envelopes.seal_file(PLACE_FILE, msgspec.json.encode(_Place(source))))
    except OSError as error:
        raise StoreError(f"cannot write {file}: {error.strerror}; what was there is as it was") from error
