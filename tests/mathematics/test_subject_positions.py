"""Modules that are edited at the tokens of the subject: what stays at rest, and facts that do not mention theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from lifelong_edit.bench import Bench, Fixed, State, prepare
from lifelong_edit.editors.contract import Lesson, moved_by
from lifelong_edit.editors.malmen.network import NetworkSet
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.models import LoadedModel, TokenBatch, encode_prompt, load_model
from lifelong_edit.stores import decode_entries, encode_entries
from lifelong_edit.stores.tensors import materialise
from lifelong_edit.tasks.causal import task as causal
from lifelong_edit.tracing.conflict_keys import _last_keys
from lifelong_edit.tracing.rows import fact_rows
from lifelong_edit.tracing.trace import trace
from tests.mathematics.conftest import BASIC, MakeBench, MakeEditor, editor_of, moments_of, shift_of


@pytest.fixture
def mute(news: list[Fact]) -> list[Fact]:
    """Facts whose prompts and phrasings do not mention their subject."""
    return [
        msgspec.structs.replace(
            fact, subject=f"Atlantis {i}", prompt=f"Number {i} of the cities is", rephrases=(f"City number {i}:",)
        )
        for i, fact in enumerate(news)
    ]


def test_a_span_one_token_further_is_another_trace(
    loaded: LoadedModel, news: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutation: as many positions, each one further; only modules at the subject may see it."""
    rows, right = fact_rows(loaded, news, 2), causal.subject_mask

    def further(batch: TokenBatch) -> torch.Tensor:
        return right(batch).roll(1, 1)

    one = trace(loaded, rows, 8)
    monkeypatch.setattr(causal, "subject_mask", further)
    other = trace(loaded, rows, 8)
    for module in loaded.modules:
        same = torch.equal(one.keys[module.name], other.keys[module.name])
        assert same == (module.positions == "answer")
        assert len(one.keys[module.name]) == len(other.keys[module.name])
        assert len(one.keys[module.name]) == sum(row.positions_in(module) for row in rows)


def test_conflict_keys_stay_the_same_bytes_though_lower_layers_are_edited(
    make_editor: MakeEditor, news: list[Fact]
) -> None:
    editor, state = make_editor(rehearse=3), State()
    bench, loaded = editor.bench, editor.bench.loaded
    assert loaded.modules[0] != loaded.conflict_module
    before = {d: key.tobytes() for d, key in bench.conflict_of(news).items()}
    prompts = [encode_prompt(loaded.tokenizer, fact.prompt) for fact in news]
    unedited = _last_keys(loaded, prompts, 8)
    stored: dict[str, bytes] = {}
    for start in (0, 4, 8):
        batch = news[start : start + 4]
        state = moved_by(state, editor.learn(state, Lesson(batch)), batch)
        with loaded.at(state.shifts):
            weights = {m.name: loaded.model.get_submodule(m.name).weight.clone() for m in loaded.modules}
            assert {d: key.tobytes() for d, key in bench.conflict_of(news).items()} == before
            for name, weight in weights.items():  # and the model stands where it stood
                assert torch.equal(loaded.model.get_submodule(name).weight, weight)
        stored |= {d: k.conflict.tobytes() for d, k in state.keys.items() if d not in stored}
        # Those of earlier facts, rehearsed in between, are what they were.
        assert {d: k.conflict.tobytes() for d, k in state.keys.items()} == stored
    # The check can fail: at the edited weights the same keys are others.
    with loaded.at(state.shifts):
        moved = _last_keys(loaded, prompts, 8)
    assert float((moved - unedited).norm() / unedited.norm()) > 1e-3


@pytest.mark.parametrize("editor", ["gradient", "ultraedit", "malmen"])
def test_facts_that_do_not_mention_their_subject_are_edited_at_the_answer(
    make_editor: MakeEditor, random_network: Callable[..., NetworkSet], news: list[Fact], mute: list[Fact], editor: str
) -> None:
    networks = random_network("joint", size=0.05) if editor == "malmen" else None
    eta = {"gradient": 0.4, "ultraedit": 1e-5, "malmen": None}[editor]
    made = make_editor(networks, editor=editor, eta=eta, passes=4, preserved=0)
    first = made.learn(State(), Lesson(mute[:4]))
    first_keys = first.keys()
    losses = first.report["loss"]
    assert isinstance(losses, list)
    assert losses[-1] < losses[0]
    for module in made.bench.loaded.modules:
        moved = np.abs(materialise(shift_of(first)[module.name])).max()
        assert (moved > 0) == (module.positions == "answer")
        for keys in first_keys.values():
            assert (len(keys.rows[module.name]) > 0) == (module.positions == "answer")
    assert all(np.isfinite(array).all() for array in moments_of(first).values())
    # What is stored of them comes back, and what follows finds its way: facts that mention theirs, beside such ones.
    back = decode_entries(encode_entries(first_keys), "keys")
    for digest, keys in first_keys.items():
        assert all(np.array_equal(back[digest].rows[n], rows) for n, rows in keys.rows.items())
    state = moved_by(State(), first, mute[:4])
    second = made.learn(state, Lesson([*news[:3], *mute[4:6]]))
    assert bool(moments_of(first)) == bool(moments_of(second)) == (editor == "ultraedit")
    assert all(np.abs(materialise(shift)).max() > 0 for shift in shift_of(second).values())
    assert all(np.isfinite(array).all() for array in moments_of(second).values())


def test_preserved_rows_alone_ask_for_nothing_where_no_fact_is_edited(
    make_editor: MakeEditor, mute: list[Fact]
) -> None:
    """Preserved prompts that mention their subjects, facts that do not: the solve at the subject stays finite."""
    for editor, eta in (("gradient", 0.4), ("ultraedit", 1e-5)):
        made = make_editor(editor=editor, eta=eta, preserved=99)
        found = made.learn(State(), Lesson(mute[:3]))
        norms = found.report["norm"]
        assert isinstance(norms, dict)
        answers = [norms[m.name] for m in made.bench.loaded.modules if m.positions == "answer"]
        assert all(np.isfinite(norm) for norm in norms.values())
        assert max(norms.values()) < 10 * max(answers)


def test_facts_that_do_not_mention_their_subject_are_solved_for_again(
    make_editor: MakeEditor, mute: list[Fact]
) -> None:
    solved = make_editor(reconsolidation_passes=3, reconsolidation_eta=0.1).relearn(mute[:4])
    losses = solved.report["loss"]
    assert isinstance(losses, list)
    assert losses[-1] < losses[0]
    assert set(solved.keys()) == {fact.digest for fact in mute[:4]}


def test_arrays_of_a_store_that_knew_no_subjects(
    tiny_gpt2: Path, sentences: list[str], probes: list[Probe], news: list[Fact]
) -> None:
    """What `init` fixed before there were `preserved/subjects`: all else as it is, and the same step."""
    loaded, settings = load_model(str(tiny_gpt2), modules=["2-3"]), BASIC
    fixed = prepare(loaded, settings, text=[" ".join(sentences * 20)], preserve=probes)
    old = {name: array for name, array in fixed.arrays().items() if name != "preserved/subjects"}
    assert len(old) == len(fixed.arrays()) - 1
    one, other = Bench(loaded, settings, fixed), Bench(loaded, settings, Fixed.of(old))
    assert other.preserved.subjects == [(0, 0)] * len(probes)
    assert other.preserved.guard == one.preserved.guard
    for a, b in zip(one.preserved.keys, other.preserved.keys, strict=True):
        assert all(np.array_equal(a.rows[n], b.rows[n]) for n in one.names)
    steps = [shift_of(editor_of(bench).learn(State(), Lesson(news[:4]))) for bench in (one, other)]
    for name in one.names:
        assert materialise(steps[0][name]).tobytes() == materialise(steps[1][name]).tobytes()


def test_keys_of_preserved_prompts_are_those_at_their_positions(make_bench: MakeBench) -> None:
    """Cut apart by the number of positions that each has in a module: of subject tokens here, of the answer there."""
    bench = make_bench()
    prompts = bench.preserved
    counts = {
        m.name: [prompts.row(i, 1.0).positions_in(m) for i in range(len(prompts.probes))] for m in bench.loaded.modules
    }
    assert counts[bench.names[0]] != counts[bench.names[-1]]
    assert 0 in counts[bench.names[0]]
    for name, numbers in counts.items():
        assert [len(keys.rows[name]) for keys in prompts.keys] == numbers
        for i, number in enumerate(numbers):
            found = trace(bench.loaded, [prompts.row(i, 1.0)], 1, gradients=False).keys[name].double()
            apart = torch.from_numpy(prompts.keys[i].rows[name]) * bench.scale[name] - found
            assert number == 0 or float((apart / bench.scale[name]).abs().max()) < 2
