"""19. Rollback under readers, repeated, to 0, to a future step, then new edits: weights equal the logged digest.

A store of arrays alone, against a list of the weights that each step left; with a model and branches the same is held
in tests/timeline/test_history_machine.py. Compacted in between, it keeps the states that it says it keeps.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from lifelong_edit.errors import UsageError
from lifelong_edit.stores import Dense, Edit, EditLog, digest_bytes, encode_shifts, encode_tensors, tensors_digest
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.keeping import compact
from lifelong_edit.timeline.states import environment, sketch
from tests.faults import small
from tests.stores.archives import schema_1


def edit(log: EditLog, parent: int, before: np.ndarray, number: int, snapshot: bool) -> np.ndarray:
    """A step by hand: a shift drawn by its number."""
    head = log.head()
    shift = np.random.default_rng(number).standard_normal(before.shape).astype(np.float32)
    after = before + shift
    stored, encoded = encode_tensors({"m": after}), encode_shifts({"m": Dense(shift)})
    digest, whole = tensors_digest({"m": after}), digest_bytes(stored) if snapshot else None
    record = Edit(
        step=head.step + 1, parent=parent, previous=head.chain, time="t", weights_digest=digest,
        parts=small.parts(digest, shift=digest_bytes(encoded), snapshot=whole),
        live_digest=log.step(parent).live_digest,
        provenance={"environment": environment(), "sketch": sketch({"m": after})},
    )  # fmt: skip
    blobs = {digest_bytes(data): data for data in (stored, encoded)}
    log.append(record, facts={}, blobs=blobs, weights=digest_bytes(stored))
    return after


class Machine(RuleBasedStateMachine):
    """`states`: the weights at each step. `views`: what readers look at, with what they saw first.

    `gone`: the steps whose states a compaction said to be out of reach.
    """

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store = schema_1(self.folder)
        self.timeline = Timeline.open(self.store)
        self.states = [self.timeline.weights(step)["m"].copy() for step in range(4)]
        self.views: list[tuple[object, np.ndarray]] = []
        self.gone: set[int] = set()
        self.reader = Timeline.open(self.store, read_only=True)

    @rule(snapshot=st.booleans())
    def append(self, snapshot: bool) -> None:
        log = self.timeline._log
        parent = self.timeline.head
        self.states.append(edit(log, parent, self.states[-1], len(self.states), snapshot))
        self.reopen()

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        step = data.draw(st.integers(0, len(self.states) - 1))
        if self.is_gone(step):
            with pytest.raises(UsageError, match="was dropped by step"):
                self.timeline.rollback(step)
            return
        record = self.timeline.rollback(step)
        assert record.weights_digest == self.timeline.show(step).weights_digest
        self.states.append(self.states[step])

    @rule(beyond=st.integers(0, 3))
    def roll_forward(self, beyond: int) -> None:
        with pytest.raises(UsageError, match="there is no step"):
            self.timeline.rollback(len(self.states) + beyond)

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from([s for s in range(len(self.states)) if not self.is_gone(s)]))
        self.views.append((self.timeline.at(step), self.states[step]))

    @rule()
    def compact(self) -> None:
        """The head's state and the base stay; whoever has the store open has to open it again."""
        self.views.clear()
        self.reader.close()
        self.timeline.close()
        found = compact(self.store)
        self.gone.update(found.out_of_reach)
        self.states += [] if found.step is None else [self.states[-1]]
        self.timeline = Timeline.open(self.store)
        self.reader = Timeline.open(self.store, read_only=True)
        assert not self.is_gone(self.timeline.head) and not self.is_gone(0)

    def is_gone(self, step: int) -> bool:
        """Whether the state at a step was dropped."""
        return self.timeline.history().state_of(step) in self.gone

    @rule()
    def reopen(self) -> None:
        self.views.clear()  # a view lives as long as its timeline
        self.timeline.close()
        self.timeline = Timeline.open(self.store)

    @invariant()
    def every_state_is_what_it_was(self) -> None:
        if not hasattr(self, "timeline"):
            return
        assert self.timeline.head == len(self.states) - 1
        np.testing.assert_array_equal(self.timeline.weights("head")["m"], self.states[-1])
        for view, wanted in self.views[-3:]:
            np.testing.assert_array_equal(view.shifts()["m"], wanted)  # type: ignore[attr-defined]

    def teardown(self) -> None:
        if hasattr(self, "timeline"):
            for step, wanted in enumerate(self.states):
                if self.is_gone(step):
                    with pytest.raises(UsageError, match="was dropped by step"):
                        self.timeline.weights(step)
                    continue
                np.testing.assert_array_equal(self.timeline.weights(step)["m"], wanted)
                assert tensors_digest({"m": wanted}) == self.timeline.show(step).weights_digest
            self.timeline.close()
            np.testing.assert_array_equal(self.reader.weights("head")["m"], self.states[-1])
            self.reader.close()
            shutil.rmtree(self.folder)


def test_a_store_is_a_list_of_states() -> None:
    """12 histories of up to 15 moves."""
    run_machine(
        Machine,
        settings=settings(
            max_examples=12, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_other_weights_than_the_logged_ones_are_not_served(tmp_path: Path) -> None:
    """Every record is intact, and yet the sum is another: the digest of the state is what tells."""
    from lifelong_edit.errors import StoreDamagedError

    store = schema_1(tmp_path)
    with EditLog.open(store) as log:
        head = log.head()
        stored, encoded = (
            encode_tensors({"m": np.ones((4, 3), "f4")}),
            encode_shifts({"m": Dense(np.ones((4, 3), "f4"))}),
        )
        log.append(
            Edit(
                step=4, parent=3, previous=head.chain, time="t", weights_digest="0" * 32, live_digest="",
                parts=small.parts("0" * 32, shift=digest_bytes(encoded)), provenance={"environment": environment()},
            ),
            facts={}, blobs={digest_bytes(data): data for data in (stored, encoded)}, weights=digest_bytes(stored),
        )  # fmt: skip
    with Timeline.open(store, read_only=True) as timeline, pytest.raises(StoreDamagedError, match="step 4"):
        timeline.weights(4)
