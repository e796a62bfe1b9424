"""Guard prompts are drawn by subject: no phrasing of what they ask is a row, or held by its key."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lifelong_edit.bench import prepare
from lifelong_edit.facts import Probe
from lifelong_edit.models import LoadedModel
from lifelong_edit.tracing import preservation
from lifelong_edit.tracing.preservation import PreservedPrompts
from tests.mathematics.conftest import BASIC

MakePreserved = Callable[..., PreservedPrompts]
SUBJECTS = [f"Vienna {i}" for i in range(24)]
PATTERNS = ("The river of {} is", "{} lies at the", "In {} they see the")


@pytest.fixture(scope="module")
def asked() -> list[Probe]:
    """Three phrasings about each of 24 subjects, apart from each other and in several cases; six about nobody."""
    about = [
        Probe(pattern.format(name), subject=name.upper() if i % 2 else name)
        for i, pattern in enumerate(PATTERNS)
        for name in SUBJECTS
    ]
    return [*about, *(Probe(f"In {1960 + i} people walked on the") for i in range(6))]


@pytest.fixture
def make_preserved(loaded: LoadedModel, asked: list[Probe], sentences: list[str]) -> MakePreserved:
    """Loads the prompts with a seed."""
    fixed = prepare(loaded, BASIC, text=[" ".join(sentences * 20)], preserve=asked)

    def make(seed: int) -> PreservedPrompts:
        return PreservedPrompts.load(fixed.preserved, loaded.modules, torch.from_numpy(fixed.conflict_mean), seed)

    return make


def about(probe: Probe) -> str:
    return (probe.subject or probe.prompt).casefold()


@pytest.mark.parametrize("seed", range(4))
def test_all_phrasings_of_a_guards_subject_stay_out_of_rows_and_grams(
    make_preserved: MakePreserved, asked: list[Probe], seed: int
) -> None:
    found = make_preserved(seed)
    subjects = {about(asked[i]) for i in found.guard}
    assert len(subjects) == 3  # a tenth of 24 subjects and six prompts about themselves
    assert found.guard == {i for i, probe in enumerate(asked) if about(probe) in subjects}
    free = [i for i, probe in enumerate(asked) if about(probe) not in subjects]
    assert found.free(frozenset()) == free
    assert found.keys_outside(frozenset()).keys() == set(map(str, free))
    rows = found.rows(len(asked), torch.zeros(0, found.directions.shape[1]), 1.0, frozenset(), seed)
    assert [row.encoded for row in rows] == [found.row(i, 1.0).encoded for i in free]


@pytest.mark.parametrize("seed", range(4))
def test_one_prompt_of_each_subject_is_asked(make_preserved: MakePreserved, asked: list[Probe], seed: int) -> None:
    found = make_preserved(seed)
    guards = found.guards(frozenset())
    names = [about(asked[i]) for i in guards]
    assert len(set(names)) == len(names) == 3
    assert set(guards) <= found.guard
    for i, name in zip(guards, names, strict=True):
        assert i == min(j for j in found.guard if about(asked[j]) == name)
    left = found.guards(frozenset(names[:1]))
    assert left == guards[1:]  # its answer may have to change, whatever the case in which it is written
    assert set(left) < found.guard


def test_a_draw_by_prompt_would_split_the_phrasings(make_preserved: MakePreserved, asked: list[Probe]) -> None:
    """The control: of as many prompts drawn one by one, most have their other phrasings among the rows."""
    found = make_preserved(0)
    drawn = np.random.default_rng(0).choice(len(asked), len(found.guard), replace=False)
    split = {about(asked[i]) for i in drawn} & {about(p) for i, p in enumerate(asked) if i not in drawn}
    assert len(split) > 3


def test_guards_are_a_function_of_the_seed_and_at_most_so_many(
    make_preserved: MakePreserved, asked: list[Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_preserved(1).guard == make_preserved(1).guard
    assert any(make_preserved(seed).guard != make_preserved(1).guard for seed in (2, 3, 4))
    monkeypatch.setattr(preservation, "GUARDS", 1)
    assert len({about(asked[i]) for i in make_preserved(1).guard}) == 1
