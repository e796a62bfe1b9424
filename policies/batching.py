"""Which facts are edited together."""

from __future__ import annotations

import itertools
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
        """Batches of records, in order, none empty, read lazily, each given out as soon as it is known to be whole."""
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
            if any(asked.get(name, target) != target for name in names):
                yield batch
                batch, asked = [], {}
            batch.append(record)
            asked.update(dict.fromkeys(names, target))
            if len(batch) == self.size:
                yield batch
                batch, asked = [], {}
        if batch:
            yield batch


class _UntilPause:
    """Records up to the next pause or the end."""

    def __init__(self, records: Iterator[Record | None]) -> None:
        self._records = records
        self.over = self.ended = False
        """Whether it is over, and whether that is because there are no more records at all."""

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        if not self.over:
            try:
                record = next(self._records)
            except StopIteration:
                self.over = self.ended = True
                raise
            if record is not None:
                return record
            self.over = True
        raise StopIteration


def cut_with_pauses(policy: BatchingPolicy, records: Iterable[Record | None]) -> Iterator[list[Record]]:
    """A policy's batches, where None among the records says that no more have come yet.

    A batch that is not full then is given out as far as it goes, and the records that follow go on in the same batch:
    so the batches of records with pauses are those without, cut further where the pauses were.
    """
    source = iter(records)
    begun: list[Record] = []
    while True:
        part = _UntilPause(source)
        given, begun = begun, []
        ahead = len(given)
        for batch in policy.cut(itertools.chain(given, part)):
            if part.over:
                begun = batch
            rest, ahead = batch[ahead:], max(0, ahead - len(batch))
            if rest:
                yield rest
        if part.ended:
            return
