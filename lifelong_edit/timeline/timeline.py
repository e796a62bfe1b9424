"""The timeline: facts in, steps logged, every state within reach.

Only what needs the model imports torch: `log`, `status`, `facts`, `show` and `rollback` start in a fraction of a
second.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from lifelong_edit.errors import StoreError, UsageError
from lifelong_edit.facts import Fact, Probe, Record
from lifelong_edit.policies import ConflictPolicy, identities
from lifelong_edit.settings import Settings
from lifelong_edit.stores import EditLog, StepRecord, Weights, decode_tensors, require_place
from lifelong_edit.timeline.branches import Branching
from lifelong_edit.timeline.commit import Draft, write_step
from lifelong_edit.timeline.config import Config, author_of
from lifelong_edit.timeline.defaults import default_preserved, default_text, scorer_of, start_of
from lifelong_edit.timeline.history import History
from lifelong_edit.timeline.measured import Measured
from lifelong_edit.timeline.names import StepName
from lifelong_edit.timeline.review import Reviewing, purged_fact
from lifelong_edit.timeline.sieve import Sieved, sieve
from lifelong_edit.timeline.states import weights_at
from lifelong_edit.timeline.status import status_of
from lifelong_edit.timeline.view import View

if TYPE_CHECKING:
    from lifelong_edit.editors.ridge.batch import Bench, Proposal, SolveState

Gate = Callable[["Bench", "SolveState", "Proposal", Sequence[Fact]], Mapping[str, Any]]
"""Judges a proposal before it is committed: figures for the log, or StepRefusedError."""
Batch = Sequence[Fact] | Sequence[Record] | Sieved


class Timeline(Branching, Measured, Reviewing):
    """An open store with the state at its head. Use as a context manager, or `close` it."""

    def __init__(
        self, log: EditLog, *, device: str | None = None, model: str | None = None, author: str | None = None
    ) -> None:
        self.author = author_of(author)
        self._log, self._device, self._source = log, device, model
        self._history = History(log.steps(), log.idle())
        self.config = Config.of(self._history.record(0))
        self._bench: Bench | None = None
        self._loaded: Any = None
        self._solving: Any = None

    # -- making, opening, closing

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        model: str,
        settings: Settings | None = None,
        hypernetwork: str | Path | None = None,
        scorer: str | Path | None = None,
        preserve: Sequence[Probe] | None = None,
        text: Sequence[str] | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        author: str | None = None,
        encrypt: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> Timeline:
        """A new store for a model, standing at step 0, the base.

        model: "atlas", a local folder or a hub id. settings: by default `malmen` in the solve that the hypernetwork was
        trained for, `gradient` without one. hypernetwork: folder that `train` wrote; its content is copied into the
        store. scorer: another folder, with a scorer of conflicts. preserve: prompts whose answers must stay. text:
        ordinary text, for statistics and the gate's perplexity. What is None is what `timeline_defaults` brings.
        author: of the steps made through this handle, see `open`. encrypt: at rest, with the key in the file that
        LIFELONG_KEY_FILE names.
        say: told in a few words what begins, at each phase that takes long, once all that is cheap has been checked.
        Raises UsageError where `path` is taken, StoreError where no folder can be made, and whatever loading raises.
        """
        folder = Path(path)
        require_place(folder, encrypt=encrypt)
        settings, network = start_of(model, settings, hypernetwork)
        preserve = default_preserved(model) if preserve is None else preserve
        text = default_text() if text is None else text
        from lifelong_edit.timeline.beginning import require_fitting
        from lifelong_edit.timeline.model import begin

        source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        source |= {"hypernetwork": network, "preserve": preserve, "text": text}
        require_fitting(model, settings, **source)
        beginning = begin(model, settings, scorer=scorer_of(scorer, network), say=say, **source)
        record = msgspec.structs.replace(beginning.record, author=author_of(author))
        log = EditLog.create(folder, record, blobs=beginning.blobs, weights=beginning.weights, encrypt=encrypt)
        timeline = cls(log, author=author)
        timeline._loaded = beginning.loaded
        return timeline

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        read_only: bool = False,
        device: str | None = None,
        model: str | None = None,
        author: str | None = None,
        timeout: float = 5.0,
    ) -> Timeline:
        """An existing store. The model is loaded when it is first needed, and refused if it is not the store's.

        device: where the model lives, by default as at `init`. model: load it from there instead of where `init` did.
        author: who makes the steps that are made through this handle; by default LIFELONG_AUTHOR, else the login name.
        timeout: seconds to wait for another writer. Raises StoreError and its kinds.
        """
        log = EditLog.open(path, read_only=read_only, timeout=timeout)
        try:
            return cls(log, device=device, model=model, author=author)
        except BaseException:
            log.close()
            raise

    def close(self) -> None:
        """Keep the key index and let go of the store; closing twice is harmless."""
        solving, self._solving = self._solving, None
        try:
            if solving is not None:
                with contextlib.suppress(StoreError, OSError):  # it is a cache: without it the next run is slower
                    solving.save_index()
        finally:
            self._log.close()

    def __enter__(self) -> Timeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- looking

    @property
    def path(self) -> Path:
        """The store's folder."""
        return self._log.path

    @property
    def settings(self) -> Settings:
        """The options fixed at `init`."""
        return self.config.settings

    @property
    def head(self) -> int:
        """The last step of the log."""
        return self.history().head

    def history(self) -> History:
        """The log as read so far, brought up to date first: another process may have added steps."""
        if self._log.head().step > self._history.head:
            for record in self._log.steps(self._history.head + 1):
                self._history.take(record)
        return self._history

    def log(self) -> list[StepRecord]:
        """All steps, oldest first."""
        return list(self.history().records)

    def show(self, step: StepName) -> StepRecord:
        """One step, by number, tag, branch or `head`. Raises UsageError where there is none."""
        return self.history().record(step)

    def facts_by_digest(self, digests: Sequence[str]) -> dict[str, Fact]:
        """Facts of the store by digest, whatever became of them; `purged_fact` in the place of what was purged."""
        purged = self.history().purged
        encoded = self._log.facts([digest for digest in digests if digest not in purged])
        found = {digest: msgspec.json.decode(data, type=Fact) for digest, data in encoded.items()}
        return {digest: found.get(digest) or purged_fact(digest) for digest in digests}

    def status(self) -> dict[str, Any]:
        """Where the timeline stands, as plain values."""
        return status_of(self._log, self.history(), self.config)

    def staleness(self) -> dict[str, Any]:
        """How far the stored keys have drifted from those of the model at the head, measured now; loads the model.

        `state`, the step whose state was measured, and figures by module and age as of `judging.staleness`.
        """
        found: dict[str, Any] = self._solve().staleness()
        return found

    def weights(self, step: StepName) -> Weights:
        """ΔW by module at the state of a step, checked against the digest logged with it. No torch."""
        return weights_at(self._log, self.history(), step, self.config.model.modules)

    def at(self, step: StepName) -> View:
        """The state at a step, to look at. Raises UsageError where there is no such step."""
        return View(self, self.show(step).step)

    def model(self) -> Any:
        """A fresh transformers model with the weights of the head."""
        return self.at(self.head).model()

    # -- changing

    def bench(self) -> Bench:
        """The model with all that `init` fixed, loaded when first asked for.

        Raises ModelMismatchError, stating both fingerprints, where it is not the model of `init`.
        """
        if self._bench is None:
            from lifelong_edit.timeline.model import make_bench

            self._bench = make_bench(self.config, self.fixed(), self._device, self._source, self._loaded)
        return self._bench

    def fixed(self) -> dict[str, npt.NDArray[np.generic]]:
        """The arrays fixed at `init`, by name."""
        return decode_tensors(self._log.blob(str(self.show(0).fixed)), "what init fixed")

    def sieve(self, batch: Batch, *, again: bool = False, reviewed: bool = False) -> Sieved:
        """What `apply` would leave of a batch before looking for conflicts, and what it would skip and why."""
        if isinstance(batch, Sieved):
            return batch
        trusted = self.settings.trusted_sources
        return sieve(batch, self.history(), self.head, again=again, reviewed=reviewed, trusted=trusted)

    def consumed_in(self, file_digest: str) -> Collection[int]:
        """The numbers of the records consumed of a file with that digest: for `read_facts(..., known=...)`."""
        return self.history().consumed_in(file_digest)

    def apply(
        self,
        facts: Batch,
        *,
        again: bool = False,
        conflicts: ConflictPolicy | None = None,
        reviewed: bool = False,
        reason: str | None = None,
        gate: Gate | None = None,
    ) -> StepRecord:
        """Edit a batch into the model and commit it as one step.

        facts: or what `sieve` has left of them; what conflicts drop is added to its skips. again: also what is known
        only from steps that were rolled back. conflicts: a policy's name or a callable that decides
        (`policies.deciding`), instead of the setting. reviewed: only what is in quarantine, and it supersedes unless
        `conflicts` says otherwise. gate: judge of the proposal, by default `judging.gate.check`. A batch of which
        all is turned away is a step of the kind `decide`; where nothing of it is left to do or to note, no step is made
        and the head's record is returned. Raises StepRefusedError where the gate refuses, UsageError for a policy or an
        answer that is none; model and store stand where they stood.
        """
        self._refuse_read_only()
        started = time.perf_counter()
        sieved = self.sieve(facts, again=again, reviewed=reviewed)
        draft = self._solve().propose(sieved, gate, conflicts) if sieved.left else None
        if draft is None:
            return self._nothing(sieved)
        draft.fill(reason=reason, seconds=time.perf_counter() - started)
        return self._commit(draft)

    def preview(self, facts: Batch, **options: Any) -> dict[str, Any] | None:
        """The report of the step that `apply` would make, without making it; None where nothing is left to do.

        Arguments and errors as of `apply`, but a store that is open read-only will do.
        """
        found = self.proposed(facts, **options)
        return None if found is None else found.report

    def proposed(
        self,
        facts: Batch,
        *,
        again: bool = False,
        conflicts: ConflictPolicy | None = None,
        reviewed: bool = False,
        gate: Gate | None = None,
    ) -> StepRecord | None:
        """The same as a record, with a forecast from the change itself; number, digests and parts are blank."""
        sieved = self.sieve(facts, again=again, reviewed=reviewed)
        draft = self._solve().propose(sieved, gate, conflicts) if sieved.left else None
        if draft is None:
            return None
        draft.fill(forecast=self._solve().forecast_of(draft))
        found: StepRecord = draft.record
        return found

    def forecast(
        self, facts: Batch, *, again: bool = False, conflicts: ConflictPolicy | None = None, reviewed: bool = False
    ) -> dict[str, Any] | None:
        """What a batch would make forgotten, told by its keys before any solve; None where nothing is left to do.

        `live`: facts that it leaves in force; `forgotten`: how many of them are expected to be forgotten; `share`: the
        same as a share; `since`: the share together with what was forecast of the edits since the last try to
        reconsolidate. A function of the head's state and the batch. Arguments as of `apply`.
        """
        sieved = self.sieve(facts, again=again, reviewed=reviewed)
        if not sieved.facts:
            return None
        found: dict[str, Any] = self._solve().forecast(sieved, conflicts)
        total = self.history().forgotten(self.head) + found["forgotten"]
        return found | {"since": total / found["live"] if found["live"] else 0.0}

    def reconsolidate(
        self,
        *,
        start: float = 0.0,
        guard: bool = True,
        reason: str | None = None,
        say: Callable[[str], None] | None = None,
    ) -> StepRecord:
        """Solve again over all live facts together, as a step: old edits come back, and worn locality with them.

        start: 0 is canonical, from the base weights, whatever the history was; a number up to 1 is warm, from so much
        of the present ΔW. guard: commit nothing that loses what the state before had; the step's kind is then
        `refused`, its state that before. say: told about each pass. Raises UsageError where there is no live fact, and
        StepRefusedError where a number is not finite.
        """
        self._refuse_read_only()
        if not 0 <= start <= 1:
            raise UsageError(f"found start {start:g}; expected 0 (canonical) to 1 (from the present weights)")
        if not self.history().live(self.head):
            raise UsageError("the store has no live facts; expected at least one to reconsolidate; edit some first")
        began = time.perf_counter()
        draft = self._solve().reconsolidation(start, guard, say)
        draft.fill(reason=reason, seconds=time.perf_counter() - began)
        return self._commit(draft)

    def retract(
        self,
        facts: Sequence[str] | Sequence[Fact],
        *,
        revive: bool = False,
        reason: str | None = None,
        say: Callable[[str], None] | None = None,
    ) -> StepRecord:
        """Take live facts back, however old, as one step: the canonical solve of those that remain.

        facts: digests, beginnings of them that name one live fact, or facts. revive: bring back what they had
        superseded, unless another live fact now answers that. The weights are those of a store that only ever had the
        remaining facts, to the last bit; without any they are the base model's. The report has the share of retracted
        facts that are answered as by the base model, beside that of unedited facts (`as_base`). say: told about each
        pass. Raises UsageError for a name of no live fact or of several, StepRefusedError where a number is not finite.
        """
        self._refuse_read_only()
        if not facts:
            raise UsageError("no fact to retract was given; expected at least one, see `lifelong-edit facts`")
        began, names = time.perf_counter(), (fact.digest if isinstance(fact, Fact) else fact for fact in facts)
        gone = list(dict.fromkeys(self.history().live_fact(self.head, name) for name in names))
        draft = self._solve().retraction(gone, self._revived(gone) if revive else (), say)
        draft.fill(reason=reason, seconds=time.perf_counter() - began)
        return self._commit(draft)

    def _revived(self, gone: Sequence[str]) -> list[Fact]:
        """What the live facts `gone` had superseded and no other live fact answers by now."""
        back = self.facts_by_digest(self.history().superseded_by(self.head, gone)).values()
        taken = {name for fact in self.facts() if fact.digest not in set(gone) for name in identities(fact)}
        return [fact for fact in back if taken.isdisjoint(identities(fact))]

    def _commit(self, draft: Draft) -> StepRecord:
        draft.fill(author=self.author)
        try:
            record = write_step(self._log, self.history(), self.config, draft)
        except BaseException:
            self._solving = None  # committed or not: read it from the log when it is needed
            raise
        if self._solving is not None:
            self._solving.moved(record)
        self.history()
        return record

    def _solve(self) -> Any:
        """The head's state ready for a solve."""
        from lifelong_edit.timeline.solving import Solving

        if self._solving is None:
            self._solving = Solving(self._log, self.history, self.config, self.bench())
        return self._solving

    def _refuse_read_only(self) -> None:
        if self._log.read_only:
            raise StoreError(f"{self.path} is open read-only; open it for writing")

    def _nothing(self, sieved: Sieved) -> StepRecord:
        """No step to commit, but the places are consumed.

        Otherwise a record that was skipped because its fact was live would, after that fact was superseded and the
        stream was run again, count as news.
        """
        head, state = self.head, self.history().state_of(self.head)
        if sieved.places:
            self._log.consume(state, sieved.places)
            self._history.consume(state, sieved.places)
        return self.show(head)
