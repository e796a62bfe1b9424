"""The two small files beside the database: whose store this is, and which step was last acknowledged.

An older copy of the database swapped in, or a database of another store, is noticed by them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from lifelong_edit.atomic import write_bytes_atomic
from lifelong_edit.errors import StoreDamagedError, StoreError, said
from lifelong_edit.stores.migrations import unknown
from lifelong_edit.stores.schema import SCHEMA_VERSION, StoreMarker
from lifelong_edit.stores.tables import UNDECODABLE, Head, Tables, step_key

T = TypeVar("T")

MARKER_FILE, HEAD_FILE = "store.json", "HEAD"


class Acknowledged(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What HEAD holds: the last step that `append` returned for."""

    store_id: str
    step: int
    chain: str


def read_marker(path: Path) -> StoreMarker:
    """The marker of a store. Raises StoreError where there is no store, or one of a newer schema."""
    file = path / MARKER_FILE
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if (path / "data.mdb").exists():
            raise StoreDamagedError(f"{file} is missing beside data.mdb; restore the store from a backup") from None
        if path.is_file():
            raise StoreError(f"found the file {path}, expected the folder of a store; name another place") from None
        raise StoreError(f"there is no store at {path}; make one with `lifelong-edit init`") from None
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error.strerror}") from error
    return decode_marker(data, str(file))


def decode_marker(data: bytes, name: str) -> StoreMarker:
    """A marker from its JSON. The version is read first: a newer schema may have fields unknown to this one.

    Raises StoreError for a newer schema, and for a store that has had a migration which this release does not know.
    """
    version = _decode(data, dict[str, object], name).get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise StoreError(
            f"{name} has schema version {version}, but this release reads up to {SCHEMA_VERSION}; "
            "install a newer release of lifelong-edit"
        )
    marker = _decode(data, StoreMarker, name)
    if not isinstance(marker.migrations, msgspec.UnsetType) and (further := unknown(marker.migrations)):
        raise StoreError(
            f"{name} says that the store has had the migration {further[0]}, which this release does not know; "
            "install a newer release of lifelong-edit"
        )
    return marker


def is_encrypted(marker: StoreMarker) -> bool:
    """Whether the store of a marker is encrypted."""
    return marker.encryption is not msgspec.UNSET


def write_marker(path: Path, marker: StoreMarker) -> None:
    """Write `store.json`, durably."""
    write_bytes_atomic(path / MARKER_FILE, msgspec.json.encode(marker))


def read_acknowledged(path: Path) -> Acknowledged:
    """What was last acknowledged. Raises StoreDamagedError where HEAD is missing or unreadable."""
    file = path / HEAD_FILE
    try:
        return _decode(file.read_bytes(), Acknowledged, str(file))
    except FileNotFoundError:
        raise StoreDamagedError(
            f"{file} is missing, so an older copy of the store could not be told from it; restore it from a backup"
        ) from None


def write_acknowledged(path: Path, store_id: str, head: Head) -> None:
    """Write HEAD, durably. Raises StoreError where the disk refuses: the step itself is committed then."""
    try:
        write_bytes_atomic(path / HEAD_FILE, msgspec.json.encode(Acknowledged(store_id, head.step, head.chain)))
    except OSError as error:
        raise StoreError(
            f"step {head.step} is committed, but {path / HEAD_FILE} could not be written: {error}; "
            "make room and open the store again"
        ) from error


def read_inside(path: Path, tables: Tables) -> StoreMarker:
    """The marker inside the database. Errors as of `read_marker`."""
    return decode_marker(tables.marker(), f"the marker inside {path / 'data.mdb'}")


def check_identity(
    path: Path, marker: StoreMarker, inside: StoreMarker, acknowledged: Acknowledged, tables: Tables
) -> None:
    """Hold the database against the files beside it. It may be ahead of HEAD, never behind it or beside it."""
    if {inside.store_id, acknowledged.store_id} != {marker.store_id}:
        raise StoreDamagedError(
            f"{path} mixes files of several stores: {MARKER_FILE} is of {marker.store_id}, {HEAD_FILE} of "
            f"{acknowledged.store_id}, data.mdb of {inside.store_id}; restore it from a backup"
        )
    if is_encrypted(inside) != is_encrypted(marker):
        raise StoreDamagedError(
            f"{path} is encrypted by one of {MARKER_FILE} and data.mdb alone; restore it from a backup"
        )
    head = tables.head()
    if head.step < acknowledged.step:
        raise StoreDamagedError(
            f"{path} ends at step {head.step}, but step {acknowledged.step} was acknowledged: "
            "an older copy stands in its place; restore the newest backup"
        )
    _, chain = tables.step(acknowledged.step)
    if chain != acknowledged.chain:
        raise StoreDamagedError(
            f"step {acknowledged.step} of {path} has chain digest {chain}, but {acknowledged.chain} was "
            "acknowledged: this is another history; restore the newest backup"
        )
    if tables.find("steps", step_key(head.step + 1)) is not None:
        raise StoreDamagedError(f"{path} holds a step beyond its head {head.step}; restore it from a backup")


def _decode(data: bytes, kind: type[T], name: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except UNDECODABLE as error:
        raise StoreDamagedError(f"{name} cannot be read ({said(error)}); restore the store from a backup") from error
