"""The log among several processes: process 0 alone writes to it; the others wait until it has, and read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from lifelong_edit.stores import EditLog, Head, Measurement, StepRecord, digest_bytes
from lifelong_edit.stores.steps import Place
from lifelong_edit.world import ALONE, World


class SharedLog(EditLog):
    """A log of which each process holds one. What writes is called in all of them at once.

    A step is committed only once all have come to the same: kind, place in the chain, weights, live set and parts.
    """

    world: World = ALONE
    reads: bool | None = None
    """Whether it may only be read, be it by way of process 0; None: as it was opened."""

    @property
    def read_only(self) -> bool:
        """Whether this handle may only read, be it by way of process 0."""
        return super().read_only if self.reads is None else self.reads

    def append(
        self,
        record: StepRecord,
        *,
        facts: Mapping[str, bytes],
        blobs: Mapping[str, bytes | Callable[[], bytes]],
        weights: str | None = None,
        keys: Callable[[], Iterable[bytes]] | None = None,
    ) -> Head:
        """Commit one step, see `EditLog.append`; in all processes, once they agree on what it leads to.

        keys: traced by process 0 alone, as it writes them; where a pass of one is one of all, by the others meanwhile.
        """
        self.world.agree("weights with the digest", record.weights_digest)
        self.world.agree(f"a step {record.step} with the digest", _digest_of(record))
        given: dict[str, Any] = {"facts": facts, "blobs": blobs, "weights": weights}
        if keys is None or not self.world.passes_in_step:
            return self.world.lead(lambda: EditLog.append(self, record, **given, keys=keys))
        traced = iter(keys())

        def written() -> Head:
            try:
                return EditLog.append(self, record, **given, keys=lambda: traced)
            finally:
                deque(traced, 0)  # where it cannot be written, the others trace to the end as well

        return self.world.lead(written, lambda: deque(traced, 0))

    def consume(self, state: int, places: Sequence[Place]) -> None:
        """See `EditLog.consume`."""
        self.world.lead(lambda: EditLog.consume(self, state, places))

    def keep_measurement(self, measurement: Measurement) -> None:
        """See `EditLog.keep_measurement`."""
        self.world.lead(lambda: EditLog.keep_measurement(self, measurement))

    def put_place(self, source: str | None) -> None:
        """See `EditLog.put_place`."""
        self.world.lead(lambda: EditLog.put_place(self, source))


def _digest_of(record: StepRecord) -> str:
    """The digest of what a step leads to, without what differs from process to process: times, seconds."""
    names = ("kind", "previous", "weights_digest", "live_digest", "added", "superseded", "parts", "name", "named")
    return digest_bytes(msgspec.json.encode([getattr(record, name, None) for name in names]))


def open_log(world: World, path: str | Path, *, read_only: bool, timeout: float) -> EditLog:
    """An existing store, see `EditLog.open`. Raises in all processes what process 0 meets there."""
    if world is ALONE:
        return EditLog.open(path, read_only=read_only, timeout=timeout)
    return _held_by_all(world, path, lambda: SharedLog.open(path, read_only=read_only, timeout=timeout), read_only)


def make_log(
    world: World, path: Path, record: StepRecord, *, blobs: Mapping[str, bytes], weights: str, encrypt: bool
) -> EditLog:
    """A new store, see `EditLog.create`: made by process 0 once all have come to the same step 0."""
    given: dict[str, Any] = {"blobs": blobs, "weights": weights, "encrypt": encrypt}
    if world is ALONE:
        return EditLog.create(path, record, **given)
    world.agree("a step 0 with the digest", digest_bytes("\n".join(sorted(blobs)).encode()))
    return _held_by_all(world, path, lambda: SharedLog.create(path, record, **given), False)


def _held_by_all(world: World, path: str | Path, take: Callable[[], EditLog], read_only: bool) -> SharedLog:
    """The log that process 0 takes; in the others the same, to read."""
    held: list[EditLog] = []
    world.lead(lambda: held.append(take()))
    log = held[0] if held else SharedLog.open(path, read_only=True)
    assert isinstance(log, SharedLog)  # a class method makes its own kind
    log.world, log.reads = world, read_only
    return log
