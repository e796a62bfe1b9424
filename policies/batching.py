"""Which facts are edited together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Record
from lifelong_edit.policies.identity import Identity, identities, normalise


class BatchingPolicy(Protocol):
    """Cuts a stream into batches.

    The cuts must be a function of the records alone, never of what a store has consumed: a run that was killed and
    started again has to meet the same batches.
    """

    def cut(self, records: Iterable[Record]) -> Iterator[list[Record]]:
        """Batches of records, in order, none empty, read lazily."""
        ...


@dataclass(frozen=True)
class FixedSize:
    """Batches of `size` records.

    A batch ends early before a record that contradicts one in it (same fact, other target): both in one solve would
    ask for two answers at once, one after the other the later one supersedes.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"found the batch size {self.size}, expected at least 1")

    def cut(self, records: Iterable[Record]) -> Iterator[list[Record]]:
        """See `BatchingPolicy.cut`."""
        batch: list[Record] = []
        asked: dict[Identity, str] = {}
        for record in records:
            target = normalise(record.fact.target)
            names = identities(record.fact)
            if batch and (len(batch) == self.size or any(asked.get(name, target) != target for name in names)):
                yield batch
                batch, asked = [], {}
            batch.append(record)
            asked.update(dict.fromkeys(names, target))
        if batch:
            yield batch
