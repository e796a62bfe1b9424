"""The ablation table: what it compares is what it says, and the page in docs/ is what the figures make."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from benchmarks import ablations_page
from benchmarks.ablated import Otherwise, free_space, solve_otherwise
from benchmarks.bench_ablations import VARIANTS, measured
from lifelong_edit.editors.ridge.batch import Bench, prepare
from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.editors.ridge.together import for_all, reconsolidate
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.models import load_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ablations.md"
ORDER = [(variant.group, variant.name) for variant in VARIANTS]
SMALL = Settings(c0=50.0, text_tokens=1500, phrasings=1, reconsolidation_passes=3, reconsolidation_gain=0)
NAMES = ("Paris", "London", "Vienna", "Warsaw", "Belgrade", "Sydney")
FACTS = [
    Fact(
        subject=name,
        prompt=f"The capital of {name} is",
        target=NAMES[i - 2],
        relation="capital",
        rephrases=(f"{name} has the capital",),
    )
    for i, name in enumerate(NAMES)
]


@pytest.fixture(scope="module")
def bench(tiny_gpt2: Path, sentences: list[str]) -> Bench:
    probes = [Probe(s.rsplit(" ", 1)[0], subject=f"none {i}") for i, s in enumerate(sentences)]
    settings = SMALL.replace(reconsolidation_preserved=len(probes) // 2)
    loaded = load_model(str(tiny_gpt2))
    return Bench(loaded, settings, prepare(loaded, settings, text=[" ".join(sentences * 8)], preserve=probes))


def test_nothing_done_otherwise_is_a_reconsolidation(bench: Bench) -> None:
    """To the bit; and each of the things done otherwise is something."""
    expected = reconsolidate(bench, FACTS).shifts
    plain = solve_otherwise(bench, FACTS, Otherwise())
    assert all(torch.equal(plain[n], expected[n]) for n in bench.names)
    for changed in (
        Otherwise(refresh="metric"),
        Otherwise(refresh="step"),
        Otherwise(in_turn=True),
        Otherwise(free=0.2),
        Otherwise(near=False),
    ):
        other = solve_otherwise(bench, FACTS, changed)
        assert any(not torch.equal(other[n], expected[n]) for n in bench.names), changed


def test_one_module_moves_at_a_time(bench: Bench) -> None:
    """After one pass the lowest module has moved as it does in one pass over all, and no other."""
    once = Bench.__new__(Bench)
    once.__dict__ |= bench.__dict__ | {"settings": bench.settings.replace(reconsolidation_passes=1)}
    together, alone = (solve_otherwise(once, FACTS, Otherwise(in_turn=turn)) for turn in (False, True))
    first, *others = bench.names
    assert others
    assert torch.equal(alone[first], together[first])
    assert not any(bool(alone[n].any()) for n in others)


def test_a_shift_in_the_free_space_leaves_the_rest_as_it_is(bench: Bench) -> None:
    """No change for keys along the great eigenvectors of what is preserved; in a plain solve they do change."""
    free = solve_otherwise(bench, FACTS, Otherwise(free=0.2))
    plain = solve_otherwise(bench, FACTS, Otherwise())
    for name in bench.names:
        preserved = for_all(bench).preservation(name, {}, frozenset(fact.subject.casefold() for fact in FACTS))
        values, vectors = torch.linalg.eigh(preserved)
        space, held = free_space(preserved, 0.2), vectors[:, values >= 0.2 * values.mean()]
        assert 0 < space.shape[1] < len(values)
        # Shifts are float32: what is left along a held direction is rounding.
        assert float((held.T @ free[name].double()).norm()) < 1e-5 * float(free[name].norm())
        assert float((held.T @ plain[name].double()).norm()) > 1e-3 * float(plain[name].norm())


def test_the_page_is_what_the_figures_make() -> None:
    """`python -m benchmarks.bench_ablations --table` writes it; another figure would be another page."""
    results = measured()
    assert PAGE.read_text(encoding="utf-8") == ablations_page.page(results, ORDER)
    changed = copy.deepcopy(results)
    changed["variants"][ablations_page.DEFAULT]["locality"]["teacher_forced"] = 0.123
    assert ".123" in ablations_page.page(changed, ORDER)


def test_all_that_was_measured_is_on_the_page() -> None:
    known = {f"{group}: {name}" for group, name in ORDER}
    assert len(known) == len(ORDER)
    assert set(measured()["variants"]) <= known
    assert {group for group, _ in ORDER} <= ablations_page.GROUPS.keys()
    page = PAGE.read_text(encoding="utf-8")
    for key in measured()["variants"]:
        group, name = key.split(": ", 1)
        assert f"| {name} |" in page
        assert ablations_page.GROUPS[group][1], f"say in GROUPS what the figures of {group} say"
