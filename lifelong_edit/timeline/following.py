"""The state at the head as a solve needs it, which follows the log. Imports torch."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from lifelong_edit.editors.ridge.batch import SolveState
from lifelong_edit.facts import Fact
from lifelong_edit.policies import LiveIdentities
from lifelong_edit.stores import MOMENTS, EditLog, StepRecord, digest_bytes
from lifelong_edit.timeline.config import Config
from lifelong_edit.timeline.history import History
from lifelong_edit.timeline.model import as_tensors
from lifelong_edit.timeline.states import State


class HeadState:
    """The state at the head, kept from one batch to the next: it is read once, and goes on by the steps of the log."""

    def __init__(self, log: EditLog, history: Callable[[], History], config: Config) -> None:
        self._log, self._history, self._config = log, history, config
        self._stored: State | None = None
        self._state: SolveState | None = None
        self.identities: LiveIdentities | None = None
        """The live facts by what they are about, where that was asked for."""

    @property
    def at_hand(self) -> bool:
        """Whether a state was read, be it that at the head or one before it."""
        return self._stored is not None

    @property
    def stored(self) -> State:
        """The state as the log makes it; `state` has been called before."""
        assert self._stored is not None
        return self._stored

    def named(self) -> LiveIdentities:
        """The live facts by what they are about; made when first asked for, and kept up from then on."""
        if self.identities is None:
            self.identities = LiveIdentities(self.state().live)
        return self.identities

    def state(self) -> SolveState:
        """The state at the head: by the steps since the one that is at hand, or read from the log."""
        history = self._history()
        at = history.state_of(history.head)
        coming = None if self._stored is None else history.after(self._stored.record.step, at)
        if self._stored is None or self._state is None or coming is None:
            self._stored = State.at(self._log, history, at, self._config.model.modules)
            self._state, self.identities = self._begun(self._stored), None
            return self._state
        for record in coming:
            self._follow(self._stored, self._state, record)
        return self._state

    def _begun(self, stored: State) -> SolveState:
        live = list(stored.live)
        return SolveState(
            shifts=as_tensors(stored.weights),
            live=self._facts(live),
            keys=stored.keys,
            editor_state=stored.parts.get(MOMENTS, {}),
            digest=self._digest(stored),
        )

    def _follow(self, stored: State, state: SolveState, record: StepRecord) -> None:
        """Go on by one step of the log, whoever appended it."""
        coming = self._facts(record.added)
        try:
            stored.follow(record, self._log.blob)
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
        state.live |= coming
        state.shifts, state.keys = as_tensors(stored.weights), stored.keys
        state.editor_state = stored.parts.get(MOMENTS, {})
        state.digest = self._digest(stored)

    def _facts(self, digests: list[str] | tuple[str, ...]) -> dict[str, Fact]:
        return {digest: msgspec.json.decode(data, type=Fact) for digest, data in self._log.facts(digests).items()}

    def _digest(self, stored: State) -> str:
        """The content digest of a state, of which every draw is a function: no step numbers in it."""
        record, fixed = stored.record, str(self._history().record(0).fixed)
        parts = (record.weights_digest, record.live_digest, fixed, self._config.settings_digest)
        return digest_bytes("\n".join((*parts, self._config.model.fingerprint + stored.further)).encode())
