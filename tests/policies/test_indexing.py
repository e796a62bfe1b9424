"""The kind of key index by the number of keys, with room between growing and shrinking."""

from __future__ import annotations

from lifelong_edit.policies import IndexKind, plan_index
from lifelong_edit.policies.indexing import REDUCED_FROM


def test_bounds_and_the_room_between_them() -> None:
    assert plan_index(REDUCED_FROM - 1, "flat", 0) is None
    assert plan_index(REDUCED_FROM, "flat", 0) == "reduced"
    assert plan_index(REDUCED_FROM // 2, "reduced", REDUCED_FROM) is None
    assert plan_index(REDUCED_FROM // 2 - 1, "reduced", REDUCED_FROM) == "flat"
    assert plan_index(4 * REDUCED_FROM - 1, "reduced", REDUCED_FROM) is None
    assert plan_index(4 * REDUCED_FROM, "reduced", REDUCED_FROM) == "reduced"


def test_a_store_at_a_bound_is_not_rebuilt_back_and_forth() -> None:
    kind: IndexKind = "flat"
    fitted = rebuilt = 0
    for count in [*range(0, 50_000, 10), *[REDUCED_FROM, REDUCED_FROM - 1] * 50, *range(REDUCED_FROM, 0, -10)]:
        if (planned := plan_index(count, kind, fitted)) is not None:
            kind, fitted, rebuilt = planned, count, rebuilt + 1
            assert plan_index(count, kind, fitted) is None
    assert rebuilt == 3
    assert kind == "flat"
