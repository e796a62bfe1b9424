"""The ablation table: what it compares is what it says, and the page in docs/ is what the figures make."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from benchmarks import ablations_page
from benchmarks.ablated import Otherwise, free_space, solve_otherwise
from benchmarks.bench_ablations import VARIANTS, measured
from lifelong_edit import Settings
from lifelong_edit.bench import Bench, prepare
from lifelong_edit.editors.gradient.rule import make
from lifelong_edit.editors.ridge.editor import RidgeEditor
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
def editor(tiny_gpt2: Path, sentences: list[str]) -> RidgeEditor:
    probes = [Probe(s.rsplit(" ", 1)[0], subject=f"none {i}") for i, s in enumerate(sentences)]
    settings = SMALL.replace(reconsolidation_preserved=len(probes) // 2)
    loaded = load_model(str(tiny_gpt2))
    fixed = prepare(loaded, settings, text=[" ".join(sentences * 8)], preserve=probes)
    return make(Bench(loaded, settings, fixed))


def test_nothing_done_otherwise_is_a_reconsolidation(editor: RidgeEditor) -> None:
    """To the bit; and each of the things done otherwise is something."""
    expected = {name: torch.from_numpy(array) for name, array in editor.relearn(FACTS).weights({}).items()}
    plain = solve_otherwise(editor, FACTS, Otherwise())
    assert all(torch.equal(plain[n], expected[n]) for n in editor.bench.names)
    for changed in (
        Otherwise(refresh="metric"),
        Otherwise(refresh="step"),
        Otherwise(in_turn=True),
        Otherwise(free=0.2),
        Otherwise(near=False),
    ):
        other = solve_otherwise(editor, FACTS, changed)
        assert any(not torch.equal(other[n], expected[n]) for n in editor.bench.names), changed


def test_one_module_moves_at_a_time(editor: RidgeEditor) -> None:
    """After one pass the lowest module has moved as it does in one pass over all, and no other."""
    bench = editor.bench
    once = make(Bench(bench.loaded, editor.settings.replace(reconsolidation_passes=1), bench.fixed))
    together, alone = (solve_otherwise(once, FACTS, Otherwise(in_turn=turn)) for turn in (False, True))
    first, *others = bench.names
    assert others
    assert torch.equal(alone[first], together[first])
    assert not any(bool(alone[n].any()) for n in others)


def test_a_module_that_does_not_move_lets_nothing_go(editor: RidgeEditor) -> None:
    """In the second pass the second module moves; the lowest stays where the first pass had brought it."""
    bench, passes = editor.bench, [editor.settings.replace(reconsolidation_passes=number) for number in (1, 2)]
    one, two = (
        solve_otherwise(make(Bench(bench.loaded, some, bench.fixed)), FACTS, Otherwise(in_turn=True)) for some in passes
    )
    lowest, next_one = bench.names[:2]
    assert torch.equal(one[lowest], two[lowest]) and bool(one[lowest].any())
    assert bool(two[next_one].any()) and not bool(one[next_one].any())


def test_a_shift_in_the_free_space_leaves_the_rest_as_it_is(editor: RidgeEditor) -> None:
    """No change for keys along the great eigenvectors of what is preserved; in a plain solve they do change."""
    free = solve_otherwise(editor, FACTS, Otherwise(free=0.2))
    plain = solve_otherwise(editor, FACTS, Otherwise())
    s, subjects = editor.settings, frozenset(fact.subject.casefold() for fact in FACTS)
    for name in editor.bench.names:
        preserved = editor.preservation.gram(name, s, s.reconsolidation_keys, {}, subjects)
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
