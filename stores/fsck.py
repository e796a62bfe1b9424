"""`fsck`: a store examined from end to end, mended where that is honest, and told apart from what cannot be."""

from __future__ import annotations

from pathlib import Path

import msgspec

from lifelong_edit.errors import StoreDamagedError, StoreKeyError
from lifelong_edit.stores.checking import examine
from lifelong_edit.stores.findings import Examination, Finding
from lifelong_edit.stores.lock import LOCK_FILE, WriterLock
from lifelong_edit.stores.mending import mend


class Report(msgspec.Struct, kw_only=True):
    """What `fsck` found."""

    store: str
    head: int
    """The last step there is a record of; −1 without any."""
    schema_version: int | None
    records: dict[str, int]
    """How many records each table has."""
    findings: list[Finding]
    """What is damaged, by record; after a repair what is left of it."""
    mended: list[Finding]
    reachable: list[int]
    """Steps whose weights can be had."""
    unreachable: dict[int, str]
    """The others, each with why."""
    dropped: list[int]
    """Those of them whose weights were dropped on purpose."""
    unreferenced: list[str]
    """Intact blobs that nothing names. No damage; `compact` drops them."""
    locked: str | None = None
    """Why the records of an encrypted store were held against their digests and not read: no key that opens it."""

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged, and everything was examined."""
        return not self.findings and self.locked is None


def fsck(path: str | Path, *, repair: bool = False, timeout: float = 5.0) -> Report:
    """Examine a store; a writer may be at work on it, unless it is to be repaired.

    repair: rebuild what can be proved by a digest; timeout: seconds to wait for a writer then. Raises StoreError where
    there is no store or one of a newer schema, or where a repair could not be written, StoreLockedError, and
    StoreKeyError where an encrypted store is to be repaired without its key; whatever is damaged is in the report.
    """
    path = Path(path).absolute()
    found = examine(path)
    before = found.findings
    if repair and before:
        lock = WriterLock(path / LOCK_FILE, timeout)
        try:
            found = examine(path)
            before = list(found.findings)
            if found.locked is not None:
                raise StoreKeyError(found.locked)
            mend(found)
            found = examine(path)
        finally:
            lock.release()
    left = {finding.record for finding in found.findings}
    return _report(found, [finding for finding in before if finding.record not in left])


def require_sound(path: Path, advice: str, called: Path | None = None) -> None:
    """Raise StoreDamagedError, naming the first damaged record, where a record of the store at `path` was changed.

    A record that stands as it was written does not count, wrong as it may have been: nothing is lost by a copy of it,
    and to purge it must be possible. StoreKeyError where it is encrypted and its key is not at hand. advice: how the
    sentence ends. called: what the store is called there, where it is a copy that has no name yet.
    """
    report = fsck(path)
    if report.locked is not None:
        raise StoreKeyError(report.locked)
    first = next((finding for finding in report.findings if not finding.intact), None)
    if first is not None:
        raise StoreDamagedError(f"{called or path} is damaged: {first.record}: {first.problem}; {advice}")


def _report(found: Examination, mended: list[Finding]) -> Report:
    unreachable = found.unreachable() if found.locked is None else {}
    reachable = range(found.last + 1 if found.locked is None else 0)
    marker = found.inside or found.marker
    return Report(
        store=str(found.path),
        head=found.last,
        schema_version=None if marker is None else marker.schema_version,
        records=found.records,
        findings=found.findings,
        mended=mended,
        reachable=[step for step in reachable if step not in unreachable],
        unreachable=unreachable,
        dropped=[step for step, why in unreachable.items() if " was dropped by " in why],
        unreferenced=found.unreferenced if found.locked is None else [],
        locked=found.locked,
    )
