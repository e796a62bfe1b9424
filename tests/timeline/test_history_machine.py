"""A timeline against a plain model of its history: whatever is streamed, gone back to, branched, named or taken back.

The model is a list of states (each the live facts, the places consumed, the digest of the weights seen first), the
branches as names of states, the tags as names of states. It knows nothing of lines, parents or folds. After each rule
the newest state and one before it are looked at, in the end all.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run

from lifelong_edit.facts import Fact, Record
from lifelong_edit.stores import tensors_digest
from lifelong_edit.timeline import Timeline

NAMES = ("a", "b", "c/1")


@dataclass(frozen=True)
class State:
    """What a step left behind. consumed: (file, number) of the records on the way to it."""

    step: int
    live: tuple[str, ...]
    ever: frozenset[str]
    retracted: frozenset[str]
    consumed: frozenset[tuple[str, int]]


@dataclass
class Line:
    """A branch: the state at its tip, and what its own steps brought, rolled back or not."""

    tip: State
    facts: set[str] = field(default_factory=set)
    places: set[tuple[str, int]] = field(default_factory=set)


def test_a_history_is_what_a_plain_model_says(
    start_store: Callable[..., Timeline],
    fact: Callable[..., Fact],
    placed: Callable[..., list[Record]],
    lenient: Callable[..., Any],
    tmp_path: Path,
) -> None:
    start_store(tmp_path / "template", passes=1, reconsolidation_passes=1).close()
    files = {name: placed([fact(2 * i), fact(2 * i + 1)], name) for i, name in enumerate("def")}
    files["0"] = placed([fact(0, "Kenya"), fact(3, "Kenya"), fact(6)], "0")  # two of them supersede, or are superseded
    subject = {record.fact.digest: record.fact.subject for records in files.values() for record in records}
    reached = set[str]()

    class Machine(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            self.folder = Path(tempfile.mkdtemp(dir=tmp_path))
            shutil.copytree(tmp_path / "template", self.folder / "store")
            self.timeline = Timeline.open(self.folder / "store")
            self.random = random.Random(0)
            base = State(0, (), frozenset(), frozenset(), frozenset())
            self.at = [base]
            """The state at each step of the log."""
            self.branches = {"main": Line(base)}
            self.tags: dict[str, State] = {}
            self.current = "main"
            self.seen: dict[int, str] = {}
            """The weights' digest by the step that made a state."""
            self.made: dict[tuple[str, tuple[str, ...]], str] = {}
            """The weights' digest after a batch, by the digest before it and the facts that it taught."""

        def here(self) -> Line:
            return self.branches[self.current]

        def went(self, state: State) -> None:
            self.at.append(state)
            self.here().tip = state

        @rule(name=st.sampled_from("def00"), again=st.booleans())
        def stream(self, name: str, again: bool) -> None:
            line, state, records = self.here(), self.here().tip, files[name]
            taught, places = [], set()
            for record in records:
                place, digest = (record.file_digest, record.number), record.fact.digest
                if place in state.consumed:
                    continue
                known = place in line.places or (digest in line.facts and digest not in state.ever)
                known |= digest in state.retracted
                if digest in state.live:
                    places.add(place)
                elif again or not known:
                    places.add(place)
                    taught.append(digest)
            step = self.timeline.apply(records, again=again, gate=lenient)
            if not taught:
                assert step.step == len(self.at) - 1
                return
            reached.add(f"stream on {'main' if self.current == 'main' else 'a branch'}")
            assert (step.kind, list(step.added)) == ("edit", taught)
            batch = (self.seen[state.step], tuple(taught))
            assert self.made.setdefault(batch, step.weights_digest) == step.weights_digest
            line.facts.update(taught)
            line.places.update((place.file_digest, place.number) for place in step.places)
            consumed = state.consumed | {(place.file_digest, place.number) for place in step.places}
            assert places <= consumed
            about = {subject[digest] for digest in taught}
            kept = tuple(digest for digest in state.live if subject[digest] not in about)
            assert set(step.superseded) == set(state.live) - set(kept)
            reached.update(["supersede"] if step.superseded else [])
            gone = state.retracted - set(taught)
            self.went(State(len(self.at), (*kept, *taught), state.ever | set(taught), gone, consumed))

        @rule(data=st.data())
        def roll_back(self, data: st.DataObject) -> None:
            name = data.draw(st.sampled_from([*range(len(self.at)), *self.tags, *self.branches]))
            self.went_to(name, self.timeline.rollback(name))

        def went_to(self, name: int | str, step: Any) -> None:
            named = {**self.tags, **{branch: line.tip for branch, line in self.branches.items()}}
            state = self.at[name] if isinstance(name, int) else named[name]
            assert step.step == len(self.at)
            self.went(state)

        @precondition(lambda self: self.here().tip.live)
        @rule(data=st.data())
        def retract(self, data: st.DataObject) -> None:
            state = self.here().tip
            digest = data.draw(st.sampled_from(state.live))
            step = self.timeline.retract([digest])
            assert step.kind == "retract"
            reached.add("retract")
            live = tuple(other for other in state.live if other != digest)
            self.went(State(len(self.at), live, state.ever, state.retracted | {digest}, state.consumed))

        @rule(data=st.data(), name=st.sampled_from(NAMES))
        def branch(self, data: st.DataObject, name: str) -> None:
            if name in self.branches or name in self.tags:
                return
            start = data.draw(st.integers(0, len(self.at) - 1))
            self.timeline.branch(name, start)
            self.branches[name], self.current = Line(self.at[start]), name
            self.at.append(self.at[start])

        @rule(data=st.data())
        def switch(self, data: st.DataObject) -> None:
            name = data.draw(st.sampled_from(sorted(self.branches)))
            step = self.timeline.switch(name)
            if name != self.current:
                reached.add("switch")
                self.current = name
                self.at.append(self.here().tip)
            assert step.step == len(self.at) - 1

        @rule(data=st.data(), name=st.sampled_from(NAMES))
        def tag(self, data: st.DataObject, name: str) -> None:
            if name in self.branches or name in self.tags:
                return
            step = data.draw(st.integers(0, len(self.at) - 1))
            self.timeline.tag(name, step)
            self.tags[name] = self.at[step]
            self.at.append(self.here().tip)

        @rule(data=st.data())
        def take_a_name_away(self, data: st.DataObject) -> None:
            names = sorted({*self.tags, *self.branches} - {"main", self.current})
            if not names:
                return
            name = data.draw(st.sampled_from(names))
            (self.timeline.delete_tag if name in self.tags else self.timeline.delete_branch)(name)
            (self.tags if name in self.tags else self.branches).pop(name)
            self.at.append(self.here().tip)
            reached.add("delete")

        @rule()
        def reopen(self) -> None:
            self.timeline.close()
            self.timeline = Timeline.open(self.folder / "store")

        @invariant()
        def names_are_what_the_model_says(self) -> None:
            assert self.timeline.head == len(self.at) - 1
            found = {b.name: (b.state, b.live_facts, b.current) for b in self.timeline.branches()}
            assert found == {
                name: (line.tip.step, len(line.tip.live), name == self.current) for name, line in self.branches.items()
            }
            assert {t.name: t.step for t in self.timeline.tags()} == {n: s.step for n, s in self.tags.items()}
            held = {self.at[-1].step, *(s.step for s in self.tags.values())}
            held |= {line.tip.step for line in self.branches.values()}
            assert self.timeline.history().protected().keys() == held

        @invariant()
        def states_are_what_the_model_says(self) -> None:
            self.check(len(self.at) - 1)
            self.check(self.random.randrange(len(self.at)))
            assert self.timeline.show("head").live_digest == self.timeline.show(self.current).live_digest

        def check(self, step: int) -> None:
            """At every visit of a state: live facts, and the digest of the weights seen at first."""
            state, digest = self.at[step], tensors_digest(self.timeline.weights(step))
            assert self.seen.setdefault(state.step, digest) == digest == self.timeline.show(step).weights_digest
            assert tuple(self.timeline.history().live(step)) == state.live
            assert {f.digest for f in self.timeline.facts("retracted", at=step)} == state.retracted

        def teardown(self) -> None:
            """Every state, after all that has happened."""
            if hasattr(self, "timeline"):
                with contextlib.closing(self.timeline):
                    for step in range(len(self.at)):
                        self.check(step)
            shutil.rmtree(self.folder, ignore_errors=True)

    limits = settings(
        max_examples=40, stateful_step_count=25, deadline=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run(Machine, settings=limits)
    assert reached == {"stream on main", "stream on a branch", "supersede", "retract", "switch", "delete"}
