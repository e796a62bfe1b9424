"""A state is made by replay and moved by the same function: whoever goes on from an earlier one stands at the same."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from lifelong_edit.errors import StoreDamagedError
from lifelong_edit.stores import MOMENTS, EditLog, Part, tensors_digest
from lifelong_edit.timeline.history import History
from lifelong_edit.timeline.states import StoredState, keys_at, parts_at, weights_at
from tests.stores.archives import schema_4
from tests.stores.conftest import SHAPE


def content(state: StoredState) -> dict[str, object]:
    """All that there is to a state."""
    return {
        "step": state.record.step,
        "live": list(state.live),
        "weights": tensors_digest(state.weights),
        "keys": [(f, k.conflict.tolist(), {n: r.tolist() for n, r in k.rows.items()}) for f, k in state.keys.items()],
        "moments": tensors_digest(state.parts.get(MOMENTS, {})),
        "further": state.further,
    }


@pytest.fixture(params=["lived", "schema 4"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int, dict[str, tuple[int, int]]]:
    """A store, its first step from which on facts have keys, and the shapes of its modules."""
    if request.param == "lived":
        return request.getfixturevalue("lived"), 1, {"m": SHAPE}
    return schema_4(tmp_path), 11, {"m": (4, 3)}


def test_going_on_leads_to_where_reading_leads(store: tuple[Path, int, dict[str, tuple[int, int]]]) -> None:
    path, first, shapes = store
    followed = 0
    with EditLog.open(path, read_only=True) as log:
        history = History(log.steps(), log.idle())
        for start in range(first, history.head + 1):
            for end in range(start, history.head + 1):
                coming = history.after(history.state_of(start), end)
                if coming is None:
                    assert history.state_of(start) not in {record.step for record in history.line(end)}
                    continue
                state = StoredState.at(log, history, start, shapes)
                for record in coming:
                    state.follow(record, log.blob)
                    followed += 1
                assert content(state) == content(StoredState.at(log, history, end, shapes)), (start, end)
    assert followed > 5


def test_a_state_has_what_its_views_have(lived: Path) -> None:
    with EditLog.open(lived, read_only=True) as log:
        history = History(log.steps(), log.idle())
        for step in range(1, history.head + 1):
            state = StoredState.at(log, history, step, {"m": SHAPE})
            assert tensors_digest(state.weights) == tensors_digest(weights_at(log, history, step, {"m": SHAPE}))
            assert list(state.keys) == list(keys_at(log, history, step)) == history.live(step)
            assert tensors_digest(state.parts[MOMENTS]) == tensors_digest(parts_at(log, history, step).get(MOMENTS, {}))


def test_going_on_checks_what_it_comes_to(lived: Path) -> None:
    with EditLog.open(lived, read_only=True) as log:
        history = History(log.steps(), log.idle())
        state = StoredState.at(log, history, 1, {"m": SHAPE})
        wrong = msgspec.structs.replace(history.record(2), weights_digest="0" * 32)
        with pytest.raises(StoreDamagedError, match="step 2 were rebuilt with digest"):
            state.follow(wrong, log.blob)
        state = StoredState.at(log, history, 1, {"m": SHAPE})
        keyless = {name: part for name, part in history.record(2).parts.items() if name != "keys"}
        with pytest.raises(StoreDamagedError, match="no keys of the live fact"):
            state.follow(msgspec.structs.replace(history.record(2), parts=keyless), log.blob)


def test_moments_are_part_of_what_a_state_is(lived: Path, tmp_path: Path) -> None:
    """Two states of the same weights and facts and of other moments are not the same to any draw."""
    with EditLog.open(lived, read_only=True) as log:
        history = History(log.steps(), log.idle())
        one = StoredState.at(log, history, 2, {"m": SHAPE})
        assert one.further == f"\nmoments {history.record(2).parts[MOMENTS].digest}" != "\nmoments "
        parts = history.record(3).parts
        other = msgspec.structs.replace(history.record(3), parts=parts | {MOMENTS: _with_digest(parts[MOMENTS], "x")})
        one.follow(other, log.blob)
        assert one.further == "\nmoments x"
    old = schema_4(tmp_path / "old")
    with EditLog.open(old, read_only=True) as log:
        history = History(log.steps(), log.idle())
        state = StoredState.at(log, history, 12, {"m": (4, 3)})
        assert state.parts[MOMENTS].keys() == {"m/count", "m/mean", "m/squares"}
        assert np.all(state.parts[MOMENTS]["m/squares"] == 0.75)
        assert state.further == "", "its draws are those of the release that made it"


def _with_digest(part: Part, digest: str) -> Part:
    return msgspec.structs.replace(part, digest=digest)
