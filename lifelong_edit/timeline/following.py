"""The state at the head as a rule needs it, which follows the log. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from lifelong_edit.bench import State
from lifelong_edit.facts import Fact
from lifelong_edit.facts.stored import decode_fact
from lifelong_edit.policies import LiveIdentities
from lifelong_edit.stores import KEYS, WEIGHTS, EditLog, StepRecord, digest_bytes
from lifelong_edit.timeline.config import Config
from lifelong_edit.timeline.history import History
from lifelong_edit.timeline.model import as_tensors
from lifelong_edit.timeline.states import StoredState
from lifelong_edit.tracked import Tracked


class Source(Protocol):
    """What the steps of a history refer to: a log, or a log and what a dry run would add to it."""

    def blob(self, digest: str) -> bytes:
        """A blob by its digest."""

    def facts(self, digests: Sequence[str]) -> dict[str, bytes]:
        """Encoded facts by digest."""


class HeadState:
    """The state at the head, kept from one batch to the next: it is read once, and goes on by the steps of the log."""

    def __init__(self, log: EditLog, source: Source, history: Callable[[], History], config: Config) -> None:
        self._log, self._source, self._history, self._config = log, source, history, config
        self._stored: StoredState | None = None
        self._state: State | None = None
        self.identities: LiveIdentities | None = None
        """The live facts by what they are about, where that was asked for."""

    @property
    def at_hand(self) -> bool:
        """Whether a state was read, be it that at the head or one before it."""
        return self._stored is not None

    @property
    def stored(self) -> StoredState:
        """The state as the log makes it; `state` has been called before."""
        assert self._stored is not None
        return self._stored

    def named(self) -> LiveIdentities:
        """The live facts by what they are about; made when first asked for, and kept up from then on."""
        if self.identities is None:
            self.identities = LiveIdentities(self.state().live)
        return self.identities

    def state(self) -> State:
        """The state at the head: by the steps since the one that is at hand, or read from the log."""
        history = self._history()
        at = history.state_of(history.head)
        coming = None if self._stored is None else history.after(self._stored.record.step, at)
        if self._stored is None or self._state is None or coming is None:
            self._stored = StoredState.at(self._log, history, at, self._config.model.modules)
            self._state, self.identities = self._begun(self._stored), None
            return self._state
        for record in coming:
            self._follow(self._stored, self._state, record)
        return self._state

    def facts(self, digests: Sequence[str]) -> dict[str, Fact]:
        """Facts of the history by digest."""
        return {digest: decode_fact(data, digest) for digest, data in self._source.facts(digests).items()}

    def _begun(self, stored: StoredState) -> State:
        state = State(live=Tracked(self.facts(list(stored.live))))
        self._show(stored, state)
        return state

    def _follow(self, stored: StoredState, state: State, record: StepRecord) -> None:
        """Go on by one step of the log, whoever appended it."""
        coming = self.facts(record.added)
        try:
            stored.follow(record, self._source.blob)
        except BaseException:
            self._stored = self._state = None  # half way: read it from the log when it is needed
            raise
        for digest in record.superseded:
            fact = state.live.pop(digest, None)
            if fact is not None and self.identities is not None:
                self.identities.remove(digest, fact)
        for digest, fact in coming.items():
            if self.identities is not None:
                self.identities.add(digest, fact)
        state.live.update(coming)
        self._show(stored, state)

    def _show(self, stored: StoredState, state: State) -> None:
        """All parts of the stored state, as a rule takes them."""
        state.shifts, state.keys = as_tensors(stored.weights), stored.keys
        state.parts = {name: part for name, part in stored.parts.items() if name not in (WEIGHTS, KEYS) and part}
        state.digest = self._digest(stored)

    def _digest(self, stored: StoredState) -> str:
        """The content digest of a state, of which every draw is a function: no step numbers in it."""
        record, fixed = stored.record, str(self._history().record(0).fixed)
        parts = (record.weights_digest, record.live_digest, fixed, self._config.settings_digest)
        return digest_bytes("\n".join((*parts, self._config.model.fingerprint + stored.further)).encode())
