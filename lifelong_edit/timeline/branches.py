"""What a timeline does with states that are there: go to one, give it a name, compare two. No torch.

Each rollback, tag, branch and switch is a step of the log, with reason, author and time; none has a state of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lifelong_edit.errors import UsageError
from lifelong_edit.stores import Branch, Rollback, StepRecord, Switch, Tag
from lifelong_edit.timeline.base import Facet
from lifelong_edit.timeline.commit import UNMADE, Draft
from lifelong_edit.timeline.diff import Diff, compare
from lifelong_edit.timeline.locking import locked
from lifelong_edit.timeline.names import MAIN, StepName


@dataclass(frozen=True)
class BranchAt:
    """A branch as it stands. state: the step that made the state at its tip; time: of its tip, UTC, ISO 8601."""

    name: str
    current: bool
    tip: int
    state: int
    live_facts: int
    time: str


@dataclass(frozen=True)
class TagAt:
    """A tag. step: the one whose state it names; time: of that step, UTC, ISO 8601."""

    name: str
    step: int
    live_facts: int
    time: str


class Branching(Facet):
    """The facet of a timeline that makes no states. A step may be given by number, tag, branch or `head`."""

    # -- looking

    @locked
    def branches(self) -> list[BranchAt]:
        """All branches, in the order in which they were made."""
        history, found = self.history(), []
        for name, branch in history.names.branches.items():
            state, record = history.state_of(branch.tip), history.record(branch.tip)
            live = len(history.live(state))
            found.append(BranchAt(name, name == history.names.current, branch.tip, state, live, record.time))
        return found

    @locked
    def tags(self) -> list[TagAt]:
        """All tags, in the order in which they were made."""
        history = self.history()
        tags = history.names.tags
        # In this order the fold of each state goes on from that of the one before.
        live = {step: len(history.live(step)) for step in sorted(set(tags.values()))}
        return [TagAt(name, step, live[step], history.record(step).time) for name, step in tags.items()]

    @locked
    def diff(self, one: StepName, other: StepName) -> Diff:
        """What lies between the states at two steps: facts, and how far each module's weights moved. No torch.

        Raises UsageError where there is no such step.
        """
        return compare(self.history(), self.weights, one, other)

    # -- changing

    @locked
    def rollback(self, step: StepName, *, reason: str | None = None) -> StepRecord:
        """Go back to the state at a step, as a new step of the log, on the current branch. Step 0 is the base.

        The weights' digest is that of the step gone back to. Raises UsageError where there is no such step.
        """
        self._refuse_read_only(reason)
        return self._go("rollback", self.history().state_of(step), reason)

    @locked
    def tag(self, name: str, step: StepName = "head", *, reason: str | None = None) -> StepRecord:
        """Name the state at a step, for good: what a tag names stays within reach.

        Where the tag names that state already, no step is made and the head's record is returned. Raises UsageError
        for a name that is taken or no name, and where there is no such step.
        """
        self._refuse_read_only(reason)
        history = self.history()
        history.require_kept(step)
        state = history.state_of(step)
        if isinstance(name, str) and history.names.tags.get(name) == state:
            return history.record(history.head)
        history.names.require_free(name)
        return self._stay("tag", name, state, reason)

    @locked
    def delete_tag(self, name: str, *, reason: str | None = None) -> StepRecord:
        """Take a tag away; the step that it named stays in the log. Raises UsageError where there is no such tag."""
        self._refuse_read_only(reason)
        self.history().names.require("tag", name)
        return self._stay("tag", name, None, reason)

    @locked
    def branch(self, name: str, step: StepName = "head", *, reason: str | None = None) -> StepRecord:
        """Begin a branch at the state of a step, and go there: further steps move it, and no other branch.

        Raises UsageError for a name that is taken or no name, and where there is no such step.
        """
        self._refuse_read_only(reason)
        history = self.history()
        state = history.state_of(step)
        history.names.require_free(name)
        return self._go("branch", state, reason, name)

    @locked
    def switch(self, name: str, *, reason: str | None = None) -> StepRecord:
        """Go to the tip of a branch. Where it is the current one, no step is made and the head's record is returned.

        Raises UsageError, listing the branches, where there is none of that name.
        """
        self._refuse_read_only(reason)
        history = self.history()
        tip = history.names.require("branch", name)
        if name == history.names.current:
            return history.record(history.head)
        return self._go("switch", history.state_of(tip), reason, name)

    @locked
    def delete_branch(self, name: str, *, reason: str | None = None) -> StepRecord:
        """Take a branch away; its steps stay in the log. Raises UsageError for `main`, the current one, and none."""
        self._refuse_read_only(reason)
        names = self.history().names
        names.require("branch", name)
        if name == MAIN:
            raise UsageError(f"the branch {MAIN!r} cannot be deleted: every store has it; leave it as it is")
        if name == names.current:
            raise UsageError(f"the branch {name!r} is the current one; expected another; switch away from it first")
        return self._stay("branch", name, None, reason)

    def _stay(self, kind: Literal["tag", "branch"], name: str, named: int | None, reason: str | None) -> StepRecord:
        """A step that leaves state and stored weights as they are."""
        history = self.history()
        target = history.record(history.state_of(history.head))
        made = Tag if kind == "tag" else Branch
        record = made(**UNMADE, parent=target.step, name=name, named=named, reason=reason)
        return self._commit(Draft(record=record, weights=None, target=target))

    def _go(
        self, kind: Literal["rollback", "branch", "switch"], state: int, reason: str | None, name: str | None = None
    ) -> StepRecord:
        """A step that goes to a state; with a name, further steps move that branch."""
        history = self.history()
        record: StepRecord
        if kind == "rollback":
            record = Rollback(**UNMADE, parent=state, reason=reason)
        else:
            made = Branch if kind == "branch" else Switch
            record = made(**UNMADE, parent=state, name=name, named=state, reason=reason)
        weights = None if state == history.state_of(history.head) else self.weights(state)
        return self._commit(Draft(record=record, weights=weights, target=history.record(state)))
