"""A timeline against a list of what its states have to be, under any order of edits, rollbacks and reopenings.

After each rule the newest state and one before it are looked at, in the end all: a rule that spoils an old state is
found in the end at the latest.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from lifelong_edit.facts import Fact
from lifelong_edit.timeline import Timeline


def test_a_timeline_is_a_list_of_states(
    start_store: Callable[..., Timeline], batch: Callable[..., list[Fact]], lenient: Callable[..., Any], tmp_path: Path
) -> None:
    start_store(tmp_path / "template").close()

    class Machine(RuleBasedStateMachine):
        """`states`: per step the digest of the weights and the live facts in order; `known`: digest by content."""

        @initialize()
        def begin(self) -> None:
            self.folder = Path(tempfile.mkdtemp(dir=tmp_path))
            shutil.copytree(tmp_path / "template", self.folder / "store")
            self.timeline = Timeline.open(self.folder / "store")
            self.random = random.Random(0)
            self.states: list[tuple[str, tuple[str, ...]]] = [(self.timeline.show(0).weights_digest, ())]
            self.known: dict[tuple[str, int], str] = {}

        @rule(number=st.integers(0, 3))
        def apply(self, number: int) -> None:
            before, live = self.states[-1]
            facts = [fact.digest for fact in batch(number, 2)]
            record = self.timeline.apply(batch(number, 2), again=True, gate=lenient)
            if set(facts) <= set(live):
                assert record.step == len(self.states) - 1
                return
            self.states.append((record.weights_digest, (*live, *facts)))
            assert self.known.setdefault((before, number), record.weights_digest) == record.weights_digest

        @rule(data=st.data())
        def roll_back(self, data: st.DataObject) -> None:
            step = data.draw(st.integers(0, len(self.states) - 1))
            record = self.timeline.rollback(step)
            self.states.append(self.states[step])
            assert record.weights_digest == self.states[step][0]

        @rule()
        def reopen(self) -> None:
            self.timeline.close()
            self.timeline = Timeline.open(self.folder / "store")

        @invariant()
        def the_newest_state_is_what_the_list_says(self) -> None:
            assert self.timeline.head == len(self.states) - 1
            self.check(self.timeline.head)
            self.check(self.random.randrange(len(self.states)))

        def check(self, step: int) -> None:
            weights, live = self.states[step]
            assert self.timeline.show(step).weights_digest == weights
            self.timeline.weights(step)  # raises where it does not have the logged digest
            assert tuple(fact.digest for fact in self.timeline.at(step).facts()) == live

        def teardown(self) -> None:
            """Every state, after all that has happened, and as another process finds them."""
            if hasattr(self, "timeline"):
                with contextlib.closing(self.timeline):
                    for step in range(len(self.states)):
                        self.check(step)

    limits = settings(
        max_examples=10, stateful_step_count=12, deadline=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(Machine, settings=limits)
