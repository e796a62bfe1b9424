"""What `init` fixed: out of a store and into one it stays what it is, and nothing that is missing goes unnoticed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch

from lifelong_edit.bench import Bench, Fixed, prepare
from lifelong_edit.editors.malmen.network import NetworkSet
from lifelong_edit.editors.malmen.rule import NETWORK_CONFIG, pack, unpack
from lifelong_edit.errors import StoreDamagedError
from lifelong_edit.facts import Probe
from lifelong_edit.models import LoadedModel
from lifelong_edit.timeline.defaults import default_scorer
from tests.mathematics.conftest import BASIC

OPTIONAL = ("preserved/subjects", "conflict/scorer")
"""What stores of earlier releases lack."""


def same(one: object, other: object) -> bool:
    """Whether two things are equal all the way down, arrays by their bytes, shape and dtype."""
    if isinstance(one, np.ndarray):
        if not isinstance(other, np.ndarray):
            return False
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(same(one[n], other[n]) for n in one)
    if is_dataclass(one):
        return type(one) is type(other) and all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return one == other


@pytest.fixture
def whole(fixed: Fixed, random_network: Callable[..., NetworkSet]) -> Fixed:
    """With everything that can be fixed."""
    return replace(fixed, scorer=default_scorer(), rule=pack(random_network("joint")))


@pytest.mark.parametrize("kind", ["everything", "no prompts, a factor", "a store older than scorers and subjects"])
def test_it_comes_back_from_its_arrays(kind: str, loaded: LoadedModel, whole: Fixed, sentences: list[str]) -> None:
    if kind == "no prompts, a factor":
        whole = prepare(loaded, BASIC.replace(gram_rank=5), text=[" ".join(sentences * 20)])
    if kind.startswith("a store older"):
        assert whole.preserved is not None
        whole = replace(whole, scorer=None, preserved=replace(whole.preserved, subjects=None))
    arrays = whole.arrays()
    back = Fixed.of(arrays)
    assert same(back, whole)
    assert same(back.arrays(), arrays)
    assert (back.preserved is None) == (kind == "no prompts, a factor")
    moved = replace(back, conflict_mean=back.conflict_mean + np.float32(1e-3))
    assert not same(moved, whole)  # the check can fail


def test_what_comes_back_shares_nothing_and_can_be_written_to(whole: Fixed) -> None:
    """A store's arrays are views of bytes that nobody may write to; torch wants others."""
    arrays = {name: np.array(array) for name, array in whole.arrays().items()}
    for array in arrays.values():
        array.flags.writeable = False
    back = Fixed.of(arrays)
    back.conflict_mean[:] = 0
    assert arrays["conflict/mean"].any()


@pytest.mark.parametrize("rank", [0, 5])
def test_a_missing_array_is_damage_and_is_named(
    rank: int, loaded: LoadedModel, sentences: list[str], probes: list[Probe]
) -> None:
    """Each of them in turn; without those that earlier releases did not have the store is as good as ever."""
    found = prepare(loaded, BASIC.replace(gram_rank=rank), text=[" ".join(sentences * 20)], preserve=probes)
    arrays = replace(found, scorer=default_scorer()).arrays()
    assert set(OPTIONAL) <= arrays.keys()
    for name in arrays:
        left = {n: a for n, a in arrays.items() if n != name}
        if name in OPTIONAL:
            Bench(loaded, BASIC, Fixed.of(left))
            continue
        with pytest.raises(StoreDamagedError) as caught:
            Fixed.of(left)
        assert name.removeprefix("preserved/") in str(caught.value)
        assert "backup" in str(caught.value)


def test_a_network_comes_back_with_it_and_is_missed_without_its_config(
    loaded: LoadedModel, whole: Fixed, random_network: Callable[..., NetworkSet]
) -> None:
    rule = Fixed.of(whole.arrays()).rule
    given, back = random_network("joint"), unpack(rule)
    keys = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    for module in loaded.modules:
        asked = back.ask(module.name, keys, keys[:, :32])
        assert torch.equal(asked, given.ask(module.name, keys, keys[:, :32]))
        assert bool(asked.any())
    with pytest.raises(StoreDamagedError, match="config"):
        unpack({name: array for name, array in rule.items() if name != NETWORK_CONFIG})


def test_a_scorer_that_a_store_has_is_read_and_is_damage_where_it_cannot_be(whole: Fixed) -> None:
    arrays = whole.arrays()
    assert Fixed.of(arrays).scorer == default_scorer()
    assert Fixed.of({n: a for n, a in arrays.items() if n != "conflict/scorer"}).scorer is None
    with pytest.raises(StoreDamagedError, match="scorer of conflicts cannot be read"):
        Fixed.of({**arrays, "conflict/scorer": arrays["conflict/scorer"][1:]})
