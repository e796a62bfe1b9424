"""Fine-tuning: the same as a bare torch loop, bounded, ended, and mixed as the settings say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong_edit.bench import Bench, Fixed, State
from lifelong_edit.editors.contract import Change, Lesson, moved_by
from lifelong_edit.editors.ft.settings import FtSettings
from lifelong_edit.editors.ft_replay.settings import ReplaySettings
from lifelong_edit.editors.li.curve import robustness_curve
from lifelong_edit.editors.li.rule import InterpolatedEditor
from lifelong_edit.editors.li.rule import make as make_li
from lifelong_edit.editors.li.settings import LiSettings
from lifelong_edit.editors.locft.settings import LocftSettings
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.editors.tuning.editor import TunedEditor, closed
from lifelong_edit.editors.tuning.gradients import weight_gradients
from lifelong_edit.editors.tuning.training import Beside, Tuning
from lifelong_edit.eval.metrics.verdicts import predict_answers
from lifelong_edit.facts import Fact
from lifelong_edit.models import LoadedModel, encode, load_model
from lifelong_edit.settings import StoreSettings
from lifelong_edit.stores import materialise
from lifelong_edit.tasks import task_of
from lifelong_edit.tracing.rows import Row, fact_rows, shuffled
from tests.mathematics.conftest import shift_of, whole_of

SMALL: dict[str, Any] = {"text_tokens": 3000, "micro_batch": 8, "rate": 1e-2, "epochs": 3, "batch": 4, "epsilon": 1e-3}
Make = Callable[[StoreSettings], TunedEditor]


@pytest.fixture
def make(loaded: LoadedModel, fixed: Fixed) -> Make:
    """The rule that settings name, on a bench of the tiny GPT-2."""

    def of(settings: StoreSettings) -> TunedEditor:
        found = rule_of(settings.editor).make(Bench(loaded, settings, fixed))
        assert isinstance(found, TunedEditor)
        return found

    return of


def bare(loaded: LoadedModel, facts: Sequence[Fact], batches: Sequence[Sequence[int]], end: int | None) -> Any:
    """ΔW by module after torch's own Adam on the matrices themselves, a step for each batch of facts."""
    model = loaded.edited_copy({})
    weights = {m.name: model.get_submodule(m.name).weight.requires_grad_() for m in loaded.modules}
    first = {name: weight.detach().clone() for name, weight in weights.items()}
    adam = torch.optim.Adam(list(weights.values()), lr=SMALL["rate"], eps=SMALL["epsilon"])
    for batch in batches:
        adam.zero_grad()
        losses = []
        for i in batch:
            encoded = encode(loaded.tokenizer, facts[i].prompt, facts[i].target)
            ids = torch.tensor([[*encoded.ids, *([] if end is None else [end])]])
            logits = model(input_ids=ids).logits[0, encoded.answer_start - 1 : -1]
            losses.append(torch.nn.functional.cross_entropy(logits, ids[0, encoded.answer_start :]))
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
        adam.step()
    moved = {name: (weight - first[name]).detach() for name, weight in weights.items()}
    return {m.name: moved[m.name] if m.orientation == "conv1d" else moved[m.name].T for m in loaded.modules}


def added(change: Change) -> dict[str, torch.Tensor]:
    """The shift of a change, by module (d_in, d_out)."""
    return {name: torch.from_numpy(materialise(shift)) for name, shift in shift_of(change).items()}


def apart(found: dict[str, Any], wanted: dict[str, Any]) -> float:
    """The greatest relative distance of any module, Frobenius."""
    assert found.keys() == wanted.keys()
    return max(float((found[n] - wanted[n]).norm() / wanted[n].norm()) for n in wanted)


def test_a_batch_is_a_bare_loop_of_adam(make: Make, news: list[Fact]) -> None:
    """FT-M: the mean over facts of the target's mean cross-entropy, all modules, from the base."""
    editor = make(FtSettings(**SMALL))
    change = editor.learn(State(digest="s"), Lesson(news[:6]))
    drawn = (0, "s", tuple(fact.digest for fact in news[:6]))
    orders = [shuffled(6, "order", *drawn, epoch) for epoch in range(3)]
    wanted = bare(editor.bench.loaded, news, [part for o in orders for part in (o[:4], o[4:])], None)
    assert apart(added(change), wanted) < 1e-4
    assert change.report["steps"] == 6


def test_breadth_first_is_a_bare_loop_over_all_facts(make: Make, news: list[Fact]) -> None:
    """Whatever was learned before: the facts so far by digest, and the end of the text behind each answer."""
    editor = make(LocftSettings(**SMALL))
    loaded = editor.bench.loaded
    state = moved_by(State(), editor.learn(State(), Lesson(news[4:7])), news[4:7])
    change = editor.learn(state, Lesson(news[:4], retire=[news[4].digest]))
    facts = sorted([*news[:4], *news[5:7]], key=lambda fact: fact.digest)
    orders = [shuffled(6, "order", 0, "", tuple(f.digest for f in facts), epoch) for epoch in range(3)]
    batches = [part for o in orders for part in (o[:4], o[4:])]
    assert apart(whole_of(change), bare(loaded, facts, batches, loaded.tokenizer.eos_token_id)) < 1e-4
    assert apart(whole_of(change), bare(loaded, facts, batches, None)) > 1e-2
    again = editor.relearn(facts[::-1])
    assert all(torch.equal(whole_of(again)[name], found) for name, found in whole_of(change).items())


@pytest.mark.parametrize("kind", ["tiny_gpt2", "tiny_llama", "tiny_opt"])
def test_gradients_of_weights_are_those_of_autograd(
    kind: str, request: pytest.FixtureRequest, news: list[Fact]
) -> None:
    """However a matrix is stored, however its input is shaped, wherever padding stands; away from the base."""
    path: Path = request.getfixturevalue(kind)
    loaded = load_model(str(path), modules=["1", "3"])
    bench = Bench.__new__(Bench)  # without what `init` measures, of which gradients know nothing
    bench.loaded, bench.task, bench.settings = loaded, task_of(loaded), FtSettings(micro_batch=2)
    bench.names = [m.name for m in loaded.modules]
    torch.manual_seed(0)
    shifts = {m.name: 0.1 * torch.randn(m.d_in, m.d_out) for m in loaded.modules}
    rows, weights = fact_rows(loaded, news[:3], 1), [0.5, 1.0, 0.25, 2.0, 0.1, 0.7]
    with loaded.at(shifts):
        found, losses = weight_gradients(bench, rows, weights)
    model = loaded.edited_copy(shifts)
    named = {m.name: model.get_submodule(m.name).weight.requires_grad_() for m in loaded.modules}
    total, alone = torch.zeros(()), []
    for row, weight in zip(rows, weights, strict=True):
        ids, start = torch.tensor([row.encoded.ids]), row.encoded.answer_start
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, start - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, start:])
        alone.append(float(loss.detach()))
        total = total + weight * loss
    wanted = dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))
    for module in loaded.modules:
        own = wanted[module.name] if module.orientation == "conv1d" else wanted[module.name].T
        torch.testing.assert_close(found[module.name], own, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses, torch.tensor(alone), rtol=1e-5, atol=1e-5)


def test_a_relative_rate_is_a_share_of_each_matrix(make: Make, news: list[Fact]) -> None:
    """The first step of Adam moves what has a gradient by the rate."""
    editor = make(FtSettings(**{**SMALL, "epochs": 1, "epsilon": 1e-12}, relative_rate=0.02))
    shifts = added(editor.learn(State(), Lesson(news[:1])))
    for name, shift in shifts.items():
        size = editor.bench.loaded.base_weight(name).square().mean().sqrt()
        torch.testing.assert_close(shift.abs().median(), 0.02 * size, rtol=1e-3, atol=0.0)
    assert len({round(float(shift.abs().median()), 7) for shift in shifts.values()}) > 1


def test_no_weight_goes_further_than_the_norm(make: Make, news: list[Fact]) -> None:
    """From where it was before the batch: FT-L."""
    editor = make(FtSettings(**SMALL, norm=0.004))
    state = moved_by(State(), editor.learn(State(), Lesson(news[:2])), news[:2])
    for moved in (shift.abs() for shift in added(editor.learn(state, Lesson(news[2:4]))).values()):
        assert moved.max() <= 0.004 + 1e-6
        assert (moved > 0.0039).float().mean() > 0.1, "the bound is never met"


def test_what_is_known_well_enough_is_left_alone(make: Make, news: list[Fact]) -> None:
    """No step below the loss that is enough, and no further epoch."""
    change = make(FtSettings(**SMALL, enough=100.0)).learn(State(), Lesson(news[:6]))
    assert not any(bool(shift.any()) for shift in added(change).values())
    assert (change.report["epochs"], change.report["steps"]) == (1, 2)


def test_replay_mixes_live_facts_and_free_prompts_into_each_step(make: Make, news: list[Fact]) -> None:
    editor = make(ReplaySettings(**SMALL, replay=3, preserved=4))
    live = {fact.digest: fact for fact in news[:6]}
    drawn = (0, "s", (news[6].digest,))
    prompts = editor.bench.preserved
    subjects = frozenset({"none 1"})
    beside = editor.beside(State(live=live, digest="s"), news[6:7], subjects, drawn)
    asked = [beside(step) for step in range(4)]
    assert all(len(found.facts) == 3 and len(found.preserved) == 4 for found in asked)
    assert all(row.fact in live and row.kind == "rehearsal" for found in asked for own in found.facts for row in own)
    assert len({tuple(own[0].fact for own in found.facts) for found in asked}) > 1, "each step draws afresh"
    free = {prompts.row(i, 1.0).encoded for i in prompts.free(subjects)}
    assert {row.encoded for found in asked for row in found.preserved} <= free
    assert len(free) < len(prompts.probes)


def test_a_step_weighs_what_stands_beside_its_facts(make: Make, news: list[Fact]) -> None:
    """The mean over taught and earlier facts, and the preserved rows' mean divergence by its weight."""
    editor = make(ReplaySettings(**SMALL, preserved_weight=0.5))
    bench, items = editor.bench, editor.items(news[:3], "new")
    kept = [bench.preserved.row(i, 1.0) for i in (3, 4)]
    tuning = Tuning(bench, FtSettings(**{**SMALL, "epsilon": 1e6}), {}, preserved_weight=0.5)
    loss = tuning.step(items[:1], Beside(items[1:], kept))
    rows = [row for own in items for row in own] + kept
    with bench.loaded.at({}):
        wanted, losses = weight_gradients(bench, rows, [1 / 3] * 3 + [0.25] * 2)
    assert loss == pytest.approx(float(losses[0]))
    for name, gradient in wanted.items():  # with an ε this large a step is the gradient itself
        torch.testing.assert_close(tuning.shifts[name], -1e-8 * gradient, rtol=1e-3, atol=1e-16)


def test_the_end_of_the_text_stands_behind_answers_but_those_of_turns(loaded: LoadedModel, news: list[Fact]) -> None:
    row = fact_rows(loaded, news[:1], 0)[0]
    end = loaded.tokenizer.eos_token_id
    assert closed(loaded, row).encoded.ids == (*row.encoded.ids, end)
    assert closed(loaded, row).encoded.answer == (*row.encoded.answer, end)
    turn = Row(row.encoded, "new", 1.0, row.fact, form="chat")
    assert closed(loaded, turn) == turn


# -- interpolated


def li_of(make_bench: Callable[[StoreSettings], Bench], **changes: Any) -> InterpolatedEditor:
    return make_li(make_bench(LiSettings(**{**SMALL, **changes})))


@pytest.fixture
def bench_of(loaded: LoadedModel, fixed: Fixed) -> Callable[[StoreSettings], Bench]:
    return lambda settings: Bench(loaded, settings, fixed)


def test_a_share_of_a_batch_is_kept(make: Make, bench_of: Any, news: list[Fact]) -> None:
    """Towards the state where the inner rule begins there, towards the base where it begins at the base."""
    state = moved_by(State(), make(FtSettings(**SMALL)).learn(State(), Lesson(news[:2])), news[:2])
    editor = li_of(bench_of, inner="ft", alpha=0.25, closing=False)
    whole = added(make(FtSettings(**SMALL)).learn(state, Lesson(news[2:4])))
    for name, shift in added(editor.learn(state, Lesson(news[2:4]))).items():
        torch.testing.assert_close(shift, 0.25 * whole[name])
    from_base = make(LocftSettings(**SMALL)).learn(state, Lesson(news[2:4]))
    breadth = li_of(bench_of, alpha=0.25)
    for name, shift in whole_of(breadth.learn(state, Lesson(news[2:4]))).items():
        torch.testing.assert_close(shift, 0.25 * whole_of(from_base)[name])


def test_a_warm_start_is_what_it_is_drawn_back_to(make: Make, bench_of: Any, news: list[Fact]) -> None:
    start = {m.name: torch.full((m.d_in, m.d_out), 1e-3) for m in bench_of(FtSettings(**SMALL)).loaded.modules}
    found = whole_of(li_of(bench_of, alpha=0.5).relearn(news[:3], start=start, identity="s"))
    inner = whole_of(make(LocftSettings(**SMALL)).relearn(news[:3], start=start, identity="s"))
    for name, shift in found.items():
        torch.testing.assert_close(shift, (start[name] + inner[name]) / 2)


def test_the_least_share_with_the_best_score_is_chosen(bench_of: Any, news: list[Fact]) -> None:
    editor = li_of(bench_of, grid=4, validation=6, rate=0.05, epochs=6)
    report = editor.learn(State(), Lesson(news[:4])).report
    points: Any = report["curve"]
    assert [point["alpha"] for point in points] == [0.25, 0.5, 0.75, 1.0]
    scores = [(point["efficacy"] + point["locality"]) / 2 for point in points]
    assert report["alpha"] == points[scores.index(max(scores))]["alpha"]
    assert len(set(scores)) > 1, "nothing to choose"


def test_the_curve_begins_at_the_base_and_ends_at_the_change(bench_of: Any, news: list[Fact]) -> None:
    """Nothing lost at the base: its answers are its own. At the end the figures are those of the change itself."""
    editor = li_of(bench_of, rate=0.05, epochs=6, alpha=1.0)
    bench, change = editor.bench, whole_of(editor.learn(State(), Lesson(news[:4])))
    facts, kept = editor.asked(news[:4]), editor.kept(news[:4], ())
    assert len(facts) == 4 + sum(len(fact.rephrases) for fact in news[:4])
    first, last = robustness_curve(bench, {}, change, facts, kept, [0.0, 1.0])
    with bench.loaded.at({}):
        assert (first.locality, first.perplexity) == (1.0, bench.task.health(bench.loaded, bench.guard_windows))
    with bench.loaded.at(change):
        said = predict_answers(bench.loaded, [row.encoded for row in facts])
        right = sum(guess == row.encoded.answer for guess, row in zip(said, facts, strict=True))
        assert last.perplexity == bench.task.health(bench.loaded, bench.guard_windows)
    assert last.efficacy == right / len(facts) > first.efficacy
    assert last.locality < 1
