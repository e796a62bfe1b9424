"""What changes the state of a timeline: batches edited, all facts solved for again, facts taken back.

Here is what can be told from the log, and the steps; the solves are in `timeline.solving`, which imports torch.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lifelong_edit.editors.registry import rule_of
from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.facts.given import Given, Item, as_batch, as_digests
from lifelong_edit.policies import ConflictPolicy, identities
from lifelong_edit.settings import StoreSettings
from lifelong_edit.stores import StepRecord
from lifelong_edit.timeline.locking import locked
from lifelong_edit.timeline.names import StepName
from lifelong_edit.timeline.review import Reviewing
from lifelong_edit.timeline.sieve import Handling, Sieved, sieve

if TYPE_CHECKING:
    from lifelong_edit.bench import Bench, State
    from lifelong_edit.editors.contract import Change

Gate = Callable[["Bench", "State", "Change", Sequence[Fact]], Mapping[str, Any]]
"""Judges a proposal before it is committed: figures for the log, or StepRefusedError."""
Batch = Given | Sieved  # what `Timeline.sieve` left of it


class Editing(Reviewing):
    """The part of a timeline that makes states of new facts and of those that it has."""

    @property
    @abstractmethod
    def settings(self) -> StoreSettings:
        """The options fixed at `init`."""

    @abstractmethod
    def show(self, step: StepName) -> StepRecord:
        """One step."""

    @abstractmethod
    def _solve(self) -> Any: ...

    @locked
    def sieve(
        self, batch: Batch, *, again: bool = False, reviewed: bool = False, conflicts: ConflictPolicy | None = None
    ) -> Sieved:
        """What `apply` would leave of a batch before looking for conflicts, and what it would skip and why.

        Arguments as of `apply`, which takes the result without them: it says itself how it is to be handled. One that
        was sieved already is given back, sieved again where steps were made since; `conflicts` is then added to it.
        Raises UsageError where it was sieved without the `again` or the `reviewed` that is asked for now.
        """
        handling = Handling(again=again, reviewed=reviewed, conflicts=conflicts)
        if not isinstance(batch, Sieved):
            return self.sieve_as(batch, handling)
        sieved = _handled(batch, handling)
        if sieved.at != self.head:
            sieved.become(self.sieve_as(sieved.batch, sieved.handling))
        return sieved

    @locked
    def sieve_as(self, batch: Given, handling: Handling) -> Sieved:
        """The same, with all that is said of the handling in one."""
        return sieve(as_batch(batch), self.history(), self.head, handling, self.settings)

    @locked
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

        facts: one or many, as facts, records, dicts or a table (`facts.given`), or what `sieve` left of them; what
        conflicts drop is added to its skips. again: also what is known only from steps that were rolled back, and what
        was retracted, purged or dismissed. conflicts: a policy's name or a callable that decides (`policies.deciding`),
        instead of the setting. reviewed: only what is in quarantine, and it supersedes unless `conflicts` says
        otherwise. gate: judge of the proposal, by default `judging.gate.check`. A batch of which all is turned away is
        a step of the kind `decide`; where nothing of it is left to do or to note, no step is made and the head's record
        is returned. Raises StepRefusedError where the gate refuses, UsageError for a policy or an answer that is none,
        BadInputError for an item that is no fact; model and store stand where they stood.
        """
        self._refuse_read_only(reason)
        started = time.perf_counter()
        sieved = self.sieve(facts, again=again, reviewed=reviewed, conflicts=conflicts)
        draft = self._solve().propose(sieved, gate) if sieved.left else None
        if draft is None:
            return self._nothing(sieved)
        draft.fill(reason=reason, seconds=time.perf_counter() - started)
        return self._commit(draft)

    @locked
    def preview(
        self,
        facts: Batch,
        *,
        again: bool = False,
        conflicts: ConflictPolicy | None = None,
        reviewed: bool = False,
        gate: Gate | None = None,
    ) -> dict[str, Any] | None:
        """The report of the step that `apply` would make, without making it; None where nothing is left to do.

        With a forecast from the change itself. Arguments and errors as of `apply`, but a store that is open read-only
        will do.
        """
        sieved = self.sieve(facts, again=again, reviewed=reviewed, conflicts=conflicts)
        draft = self._solve().propose(sieved, gate) if sieved.left else None
        if draft is None:
            return None
        draft.fill(forecast=self._solve().forecast_of(draft))
        found: dict[str, Any] = draft.record.report
        return found

    @locked
    def forecast(
        self, facts: Batch, *, again: bool = False, conflicts: ConflictPolicy | None = None, reviewed: bool = False
    ) -> dict[str, Any] | None:
        """What a batch would make forgotten, told by its keys before any solve; None where nothing is left to do.

        `live`: facts that it leaves in force; `forgotten`: how many of them are expected to be forgotten; `share`: the
        same as a share; `since`: the share together with what was forecast of the edits since the last try to
        reconsolidate. A function of the head's state and the batch. Arguments as of `apply`.
        """
        sieved = self.sieve(facts, again=again, reviewed=reviewed, conflicts=conflicts)
        if not sieved.facts:
            return None
        found: dict[str, Any] = self._solve().forecast(sieved)
        total = self.history().forgotten(self.head) + found["forgotten"]
        return found | {"since": total / found["live"] if found["live"] else 0.0}

    @locked
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
        `refused`, its state that before. say: told about each pass. Raises UsageError where there is no live fact, or
        where the rule cannot do this, and StepRefusedError where a number is not finite.
        """
        self._refuse_read_only(reason)
        rule_of(self.settings.editor).require_relearning()
        if not 0 <= start <= 1:
            raise UsageError(f"found start {start:g}; expected 0 (canonical) to 1 (from the present weights)")
        if not self.history().live(self.head):
            raise UsageError("the store has no live facts; expected at least one to reconsolidate; edit some first")
        began = time.perf_counter()
        draft = self._solve().reconsolidation(start, guard, say)
        draft.fill(reason=reason, seconds=time.perf_counter() - began)
        return self._commit(draft)

    @locked
    def retract(
        self,
        facts: Given | str | Iterable[Item | str],
        *,
        revive: bool = False,
        reason: str | None = None,
        say: Callable[[str], None] | None = None,
    ) -> StepRecord:
        """Take facts back, however old, as one step: the canonical solve of those that remain.

        facts: digests, beginnings of them that name one live fact, or else one that was superseded, or facts as `apply`
        takes them. A superseded one, once taken back, is not revived by later retractions. revive: bring back
        what they had superseded, unless another live fact now answers that. The weights are those of a store that only
        ever had the remaining facts, to the last bit; without any they are the base model's. The report has the share
        of retracted facts that are answered as by the base model, beside that of unedited facts (`as_base`). say: told
        about each pass. Raises UsageError for a name of no such fact or of several, and where the rule cannot do this,
        StepRefusedError where a number is not finite.
        """
        self._refuse_read_only(reason)
        rule_of(self.settings.editor).require_relearning()
        began, names = time.perf_counter(), as_digests(facts)
        gone = list(dict.fromkeys(self.history().retractable(self.head, name) for name in names))
        draft = self._solve().retraction(gone, self._revived(gone) if revive else (), say)
        draft.fill(reason=reason, seconds=time.perf_counter() - began)
        return self._commit(draft)

    @locked
    def settle(
        self, facts: Sequence[Fact], *, reason: str | None = None, say: Callable[[str], None] | None = None
    ) -> StepRecord:
        """Bring facts into force as one step, by the canonical solve of all that are then in force.

        As a retraction does with what it revives: no batches, conflicts or gate, and no learning by the way. Raises
        UsageError where the rule cannot do this, StepRefusedError where a number is not finite.
        """
        self._refuse_read_only(reason)
        rule_of(self.settings.editor).require_relearning()
        began = time.perf_counter()
        draft = self._solve().retraction((), facts, say)
        draft.fill(reason=reason, seconds=time.perf_counter() - began)
        return self._commit(draft)

    def _revived(self, gone: Sequence[str]) -> list[Fact]:
        """What the live facts `gone` had superseded and no other live fact answers by now.

        Nothing that was itself retracted or purged since.
        """
        history = self.history()
        turned_down = {*history.fold(self.head).retracted, *history.purged}
        replaced = [digest for digest in history.superseded_by(self.head, gone) if digest not in turned_down]
        back = self.facts_by_digest(replaced).values()
        away = set(gone)
        taken = {name for fact in self.facts() if fact.digest not in away for name in identities(fact)}
        return [fact for fact in back if taken.isdisjoint(identities(fact))]

    def _nothing(self, sieved: Sieved) -> StepRecord:
        """No step to commit, but the places are consumed.

        Otherwise a record that was skipped because its fact was live would, after that fact was superseded and the
        stream was run again, count as news.
        """
        head, state = self.head, self.history().state_of(self.head)
        if sieved.places:
            self._log.consume(state, sieved.places)
            self.history().consume(state, sieved.places)
        return self.show(head)


def _handled(sieved: Sieved, handling: Handling) -> Sieved:
    """A sieved batch, to be handled as is said now; what the sieve has to know cannot be said after it."""
    was = sieved.handling
    if (handling.again and not was.again) or (handling.reviewed and not was.reviewed):
        late = "again" if handling.again and not was.again else "reviewed"
        raise UsageError(f"found {late}=True with a batch that was sieved without it; expected it at `sieve`")
    if handling.conflicts is not None:
        sieved.handling = replace(was, conflicts=handling.conflicts)
    return sieved
