"""Hooks: whom they step in for, by NumPy; texts read as written; what is solved, and with which hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lifelong_edit.bench import Bench, Fixed, State, prepare
from lifelong_edit.editors.coachhook.overlay import Hook, Hooked, Running
from lifelong_edit.editors.coachhook.rule import CoachHookEditor
from lifelong_edit.editors.coachhook.settings import CoachHookSettings
from lifelong_edit.editors.contract import Given, Lesson, moved_by
from lifelong_edit.editors.locate.settings import LocateSettings
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.facts import Fact
from lifelong_edit.models import BASE, LoadedModel, Shifts, encode_prompt, load_model
from lifelong_edit.stores import Entry
from lifelong_edit.tasks import task_of

SMALL: dict[str, Any] = {"text_tokens": 1000, "micro_batch": 4, "steps": 3, "rate": 0.2, "contexts": 1, "c0": 5.0}
TEXT = ["The river was long and the people of the town went home. Nobody knew where the road would lead them to."] * 40


@pytest.fixture(scope="module")
def model(tiny_gpt2: Path) -> LoadedModel:
    return load_model(str(tiny_gpt2), modules=["0-1@subject"])


@pytest.fixture(scope="module")
def measured(model: LoadedModel) -> Fixed:
    return prepare(model, CoachHookSettings(**SMALL), text=TEXT)


def editor_of(model: LoadedModel, measured: Fixed, name: str = "coachhook", **changes: Any) -> Any:
    kind = CoachHookSettings if name == "coachhook" else LocateSettings
    settings = kind(editor=name, **{**SMALL, **changes})
    contexts = rule_of(name).fix(model, settings, Given({}, TEXT, []))
    fixed = Fixed(measured.text, measured.conflict_mean, None, None, contexts)
    return rule_of(name).make(Bench(model, settings, fixed))


def shifted(model: LoadedModel, size: float = 0.3) -> dict[str, torch.Tensor]:
    """A random shift of each matrix."""
    g = torch.Generator().manual_seed(1)
    return {m.name: torch.randn(m.d_in, m.d_out, generator=g) * size for m in model.modules}


def state_of(model: LoadedModel, alpha: float) -> State:
    """A state in which one fact stands out by so much."""
    return State(shifted(model), parts={"scores": {"a": Entry({"score": np.array([[9.0, 9.0], [alpha, alpha]])})}})


# -- who stands out


def test_scores_are_those_of_the_text_so_far() -> None:
    """Against NumPy, prefix by prefix; padding on either side counts nowhere, and passes may be cut anywhere."""
    random = np.random.default_rng(0)
    sizes, mask = random.uniform(0, 3, (5, 12)), np.ones((5, 12), bool)
    mask[1, :4], mask[2, 9:], mask[3, :11] = False, False, False
    sizes[4] = 1.7
    wanted = np.full(sizes.shape, -np.inf)
    for row in range(4):
        for t in range(12):
            seen = sizes[row, : t + 1][mask[row, : t + 1]]
            if mask[row, t] and len(seen) > 1:
                wanted[row, t] = (sizes[row, t] - seen.mean()) / seen.std(ddof=1)
    whole = Running().scores(torch.from_numpy(sizes), torch.from_numpy(mask)).numpy()
    np.testing.assert_allclose(whole, wanted, rtol=1e-9)
    assert np.isfinite(whole).sum() == 11 + 7 + 8 and whole.max() > 1.2
    running, parts = Running(), []
    for start, end in ((0, 7), (7, 8), (8, 12)):
        parts.append(running.scores(torch.from_numpy(sizes[:, start:end]), torch.from_numpy(mask[:, start:end])))
    np.testing.assert_allclose(torch.cat(parts, 1).numpy(), wanted, rtol=1e-9)


def test_what_is_written_step_by_step_is_what_is_read(model: LoadedModel, measured: Fixed, news: list[Fact]) -> None:
    """Greedily with a cache, many at a time, padded on the left: as each text read anew for every token, alone."""
    overlay = editor_of(model, measured).overlay(state_of(model, 1.5))
    prompts = [fact.prompt for fact in news[:6]]
    with model.at(overlay):
        written = task_of(model).answer(model, prompts, 6)
        assert written == [task_of(model).answer(model, [prompt], 6)[0] for prompt in prompts]
        for prompt, said in zip(prompts, written, strict=True):
            ids = encode_prompt(model.tokenizer, prompt)
            for token in said.ids:
                with torch.no_grad():
                    logits = model.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
                assert int(logits.argmax()) == token
                ids.append(token)
    assert written != task_of(model).answer(model, prompts, 6)
    with model.at(Shifts(shifted(model))):
        assert written != task_of(model).answer(model, prompts, 6), "they speak everywhere"


def test_padding_has_no_say(model: LoadedModel, measured: Fixed, news: list[Fact]) -> None:
    ids = encode_prompt(model.tokenizer, news[1].prompt)
    tokens = torch.tensor([[*ids, 0, 0, 0, 0]])
    mask = (torch.arange(len(ids) + 4) < len(ids)).long()[None]
    with model.at(editor_of(model, measured).overlay(state_of(model, 1.0))), torch.no_grad():
        alone = model.model(input_ids=torch.tensor([ids])).logits[0]
        padded = model.model(input_ids=tokens, attention_mask=mask).logits[0, : len(ids)]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert not torch.allclose(alone, model.model(input_ids=torch.tensor([ids])).logits[0], atol=1e-2)


def test_hooks_that_speak_everywhere_are_edited_weights_and_silent_ones_the_base(
    model: LoadedModel, measured: Fixed, news: list[Fact]
) -> None:
    tokens, shifts = torch.tensor([encode_prompt(model.tokenizer, news[2].prompt)]), shifted(model)

    def logits(overlay: Any) -> torch.Tensor:
        with model.at(overlay), torch.no_grad():
            found: torch.Tensor = model.model(input_ids=tokens).logits
        return found

    torch.testing.assert_close(
        logits(Hooked([Hook(n, s, None) for n, s in shifts.items()])), logits(Shifts(shifts)), rtol=1e-3, atol=1e-3
    )
    assert torch.equal(logits(editor_of(model, measured, alpha=50.0).overlay(State(shifts))), logits(BASE))
    assert editor_of(model, measured).overlay(State({n: 0 * s for n, s in shifts.items()})) is BASE


# -- what is solved


def test_the_first_batch_of_one_matrix_is_that_of_sequential_memit(
    tiny_gpt2: Path, news: list[Fact], model: LoadedModel
) -> None:
    """Nothing speaks yet. The second meets hooks where that one meets edited weights."""
    single = load_model(str(tiny_gpt2), modules=["1@subject"])
    fixed = prepare(single, CoachHookSettings(**SMALL), text=TEXT)
    hooks, weights = editor_of(single, fixed), editor_of(single, fixed, "memit-seq")
    zeros = {m.name: np.zeros((m.d_in, m.d_out), np.float32) for m in single.modules}
    first = [editor.learn(State(), Lesson(news[:3])) for editor in (hooks, weights)]
    (name,) = zeros
    found, wanted = (change.weights(zeros)[name] for change in first)
    # Only the other reads texts in two parts, which rounds otherwise.
    assert np.allclose(found, wanted, rtol=1e-4, atol=1e-6) and np.abs(found).max() > 1e-3
    state = moved_by(State(), first[0], news[:3])
    second, other = (editor.learn(state, Lesson(news[3:5])).weights(zeros)[name] for editor in (hooks, weights))
    assert not np.allclose(second, other, rtol=1e-3)


def test_matrices_not_yet_solved_speak_everywhere(model: LoadedModel, measured: Fixed) -> None:
    editor = editor_of(model, measured)
    work, (low, high) = editor.begun(state_of(model, 1.2), ()), editor.bench.names
    work.done.add(low)
    assert [(h.module, h.alpha) for h in editor.standing(work, high).hooks] == [(low, 1.2), (high, None)]
    assert [h.alpha for h in editor.standing(work).hooks] == [1.2, 1.2]


def test_a_threshold_is_the_least_score_of_the_facts_in_force(
    model: LoadedModel, measured: Fixed, news: list[Fact]
) -> None:
    """By hand, of the base model's keys; it rises again when the fact goes, and each fact's prompt reaches it."""
    editor: CoachHookEditor = editor_of(model, measured)
    change = editor.learn(State(), Lesson(news[:4]))
    state = moved_by(State(), change, news[:4])
    scores = {}
    for fact in news[:4]:
        keys: dict[str, np.ndarray] = {}
        handles = [
            model.model.get_submodule(n).register_forward_hook(
                lambda _, i, o, n=n, keys=keys: keys.update({n: i[0][0].double().numpy()})
            )
            for n in editor.bench.names
        ]
        with torch.no_grad():
            model.model(torch.tensor([encode_prompt(model.tokenizer, fact.prompt)]))
        for handle in handles:
            handle.remove()
        for n in editor.bench.names:
            sizes = np.linalg.norm(keys[n] @ state.shifts[n].double().numpy(), axis=1)
            past = [sizes[: t + 1] for t in range(1, len(sizes))]
            scores[fact.digest, n] = max((p[-1] - p.mean()) / p.std(ddof=1) for p in past)
    for n in editor.bench.names:
        least = min(2.2, *(scores[f.digest, n] for f in news[:4]))
        assert editor._alphas(state.parts["scores"])[n] == pytest.approx(least, rel=1e-3)
    lowest = min(news[:4], key=lambda f: min(scores[f.digest, n] for n in editor.bench.names))
    left = {d: e for d, e in state.parts["scores"].items() if d != lowest.digest}
    assert editor._alphas(left) != editor._alphas(state.parts["scores"])
    assert editor.begun(state, {lowest.digest}).alphas == editor._alphas(left)
