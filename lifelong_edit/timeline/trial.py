"""What a run would do: the same steps from the head on, with nothing committed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lifelong_edit.facts import Fact, Record
from lifelong_edit.facts.stored import encode_fact
from lifelong_edit.stores import EditLog, StepRecord
from lifelong_edit.timeline.commit import Draft, outline, stored_whole
from lifelong_edit.timeline.config import Config
from lifelong_edit.timeline.history import History
from lifelong_edit.timeline.locking import Lock, locked
from lifelong_edit.timeline.sieve import Handling, Sieved, sieve

if TYPE_CHECKING:
    from lifelong_edit.bench import Bench
    from lifelong_edit.editors.contract import Editor
    from lifelong_edit.timeline.editing import Gate


class Tried(Protocol):
    """What a dry run is of: a timeline."""

    lock: Lock
    config: Config

    def history(self) -> History:
        """The log as read so far."""

    def bench(self) -> Bench:
        """The model on its bench."""

    def editor(self) -> Editor:
        """The store's rule at work on it."""


class Ahead:
    """A log, and what the steps of a dry run would add to it."""

    def __init__(self, log: EditLog) -> None:
        self._log = log
        self._facts: dict[str, bytes] = {}
        self._blobs: dict[str, bytes] = {}

    def add(self, facts: Mapping[str, bytes], blobs: Mapping[str, bytes | Callable[[], bytes]]) -> None:
        """What one more step would write."""
        self._facts.update(facts)
        self._blobs.update((digest, blob() if callable(blob) else blob) for digest, blob in blobs.items())

    def blob(self, digest: str) -> bytes:
        """A blob of either."""
        return self._blobs[digest] if digest in self._blobs else self._log.blob(digest)

    def facts(self, digests: Sequence[str]) -> dict[str, bytes]:
        """Facts of either."""
        stored = self._log.facts([digest for digest in digests if digest not in self._facts])
        return {digest: self._facts[digest] if digest in self._facts else stored[digest] for digest in digests}


class Trial:
    """A dry run over several batches, made by `Timeline.trial`: each finds what those before it would have left.

    Facts, decisions and weights go on in memory, by a history of its own; the store, which may be open read-only, and
    the timeline stay where they are. Usable as long as the timeline is open.
    """

    def __init__(self, timeline: Tried, log: EditLog) -> None:
        self._timeline, self._log = timeline, log
        self._history = timeline.history().copy()
        self._ahead = Ahead(log)
        self._solving: Any = None

    @property
    def lock(self) -> Lock:
        """That of the timeline, whose model is used."""
        return self._timeline.lock

    @locked
    def sieve_as(self, batch: Sequence[Fact] | Sequence[Record], handling: Handling) -> Sieved:
        """As of `Timeline.sieve_as`, at the state that the batches before would have led to."""
        return sieve(batch, self._history, self._history.head, handling, self._timeline.config.settings)

    @locked
    def apply(self, sieved: Sieved, gate: Gate | None = None) -> StepRecord | None:
        """The step that `Timeline.apply` would make, with the forecast of the change that it proposes.

        None where nothing is left to do. Raises StepRefusedError where the gate refuses: the state stays then.
        """
        draft = self._solve().propose(sieved, gate) if sieved.left else None
        if draft is None:
            self._history.consume(self._history.state_of(self._history.head), sieved.places)
            return None
        draft.fill(forecast=self._solve().forecast_of(draft))
        return self._go_on(draft)

    def _go_on(self, draft: Draft) -> StepRecord:
        config = self._timeline.config
        whole = stored_whole(config, self._history, draft)
        record, blobs = outline(config, self._history, draft, self._history.head + 1, whole)
        self._ahead.add({fact.digest: encode_fact(fact) for fact in (*draft.facts, *draft.aside)}, blobs)
        self._history.take(record)
        self._solving.moved(record)
        return record

    def _solve(self) -> Any:
        from lifelong_edit.timeline.solving import Solving

        if self._solving is None:
            timeline = self._timeline
            bench, editor = timeline.bench(), timeline.editor()
            history = lambda: self._history  # noqa: E731
            self._solving = Solving(self._log, history, timeline.config, bench, editor, self._ahead)
        return self._solving
