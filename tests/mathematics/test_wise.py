"""The side memory: merges, steps and margins against NumPy; a router that reads as it writes; bounded shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lifelong_edit.bench import Bench, Fixed, State
from lifelong_edit.editors.contract import Given, Lesson, moved_by
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.editors.wise.overlay import Means, Routed, distances
from lifelong_edit.editors.wise.published import constants_of
from lifelong_edit.editors.wise.rule import SIZE, Read, Shards, WiseEditor
from lifelong_edit.editors.wise.settings import WiseSettings
from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.models import BASE, Encoded, LoadedModel, Shifts, encode, encode_prompt
from lifelong_edit.numerics.merging import ties, trimmed
from lifelong_edit.tasks import task_of

SMALL: dict[str, Any] = {"text_tokens": 1000, "micro_batch": 4, "steps": 3, "contexts": 0, "relative_rate": 0.1}


def editor_of(loaded: LoadedModel, fixed: Fixed, **changes: Any) -> WiseEditor:
    settings = WiseSettings(**(SMALL | changes))
    arrays = rule_of("wise").fix(loaded, settings, Given({}, ["The river was long and the people went home."], []))
    return WiseEditor(Bench(loaded, settings, Fixed(fixed.text, fixed.conflict_mean, fixed.preserved, None, arrays)))


def taught(editor: WiseEditor, state: State, facts: list[Fact]) -> State:
    return moved_by(state, editor.learn(state, Lesson(facts)), facts)


# -- merges


def test_a_merge_is_that_of_its_algorithm() -> None:
    """Entry by entry: the largest of each, the sign of their sum, the mean of those that have it."""
    random = np.random.default_rng(0)
    changes = [random.standard_normal((6, 5)) * (random.random((6, 5)) < 0.6) for _ in range(3)]
    wanted = np.zeros((6, 5))
    kept = [np.where(np.abs(c) >= np.sort(np.abs(c).ravel())[-12], c, 0) for c in changes]
    for at in np.ndindex(6, 5):
        here = [k[at] for k in kept]
        agreed = [value for value in here if value * sum(here) > 0]
        wanted[at] = np.mean(agreed) if agreed else 0
    found = ties([torch.from_numpy(c) for c in changes], 0.4)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)
    assert any(k.max() > 0 > k.min() for k in map(np.array, zip(*map(np.ravel, kept), strict=True))), "no signs clash"
    assert int((trimmed(torch.from_numpy(changes[0]), 0.4) != 0).sum()) == 12
    one = torch.from_numpy(changes[0])
    assert torch.equal(ties([one], 1.0), one)


def test_shards_stay_few(loaded: LoadedModel, fixed: Fixed, news: list[Fact]) -> None:
    """Two facts a shard, two shards a merge: never more than two, each with entries of its own; a merge reads anew."""
    editor = editor_of(loaded, fixed, shard=2, steps=1)
    state, counts, before = State(), [], {}
    for fact in news[:7]:
        before = dict(state.parts.get("activations", {}))
        state = taught(editor, state, [fact])
        shards = Shards.of(state.parts["shards"])
        counts.append((len(shards.changes), shards.taught, shards.begun))
    assert counts == [(1, 1, 1), (1, 2, 1), (2, 1, 2), (2, 2, 2), (2, 1, 3), (2, 2, 3), (2, 1, 4)]
    assert all(state.parts["activations"][d] is not before[d] for d in before), "the last one merged"
    shards = Shards.of(state.parts["shards"])
    moved, mask = shards.changes[-1] != 0, editor.mask(4)
    assert bool(moved.any()) and not bool((moved & ~mask).any())
    assert float(mask.float().mean()) == pytest.approx(0.2, abs=0.02)
    assert not torch.equal(mask, editor.mask(3))
    again = Shards.of(shards.arrays())
    assert all(map(torch.equal, again.changes, shards.changes)) and (again.taught, again.begun) == (1, 4)


# -- one fact


def test_a_step_is_masked_gradient_descent_within_a_bound(loaded: LoadedModel, fixed: Fixed, news: list[Fact]) -> None:
    """By autograd on the whole loss, margins with it; weight decay where the mask is, and the clamp."""
    options = {"rate": 0.5, "decay": 0.1, "clamp": 0.02, "margins": ("0.01", "5", "1"), "margin_weight": 0.5}
    editor = editor_of(loaded, fixed, steps=2, **options)
    found = Shards.of(taught(editor, State(), news[:1]).parts["shards"]).changes[0]
    fact, name, mask = news[0], editor.module.name, editor.mask(1)
    e, base = encode(loaded.tokenizer, fact.prompt, fact.target), loaded.base_weight(name)
    ids, at = torch.tensor([e.ids]), e.answer_start - 1
    unrelated = editor._unrelated(fact).ids
    side = torch.zeros_like(base)
    module = loaded.model.get_submodule(name)

    def states(tokens: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        seen: list[torch.Tensor] = []
        handle = module.register_forward_hook(lambda _, i, o: seen.extend((i[0][0], o[0])))
        with torch.no_grad():
            loaded.model(torch.tensor([list(tokens)]))
        handle.remove()
        return seen[0], seen[1]

    for _ in range(2):
        side.requires_grad_()
        handle = module.register_forward_hook(lambda _, i, o, side=side: o + i[0] @ side)
        logits = loaded.model(input_ids=ids).logits[0, at:-1]
        handle.remove()
        far = []
        for tokens in (e.prompt, unrelated):
            keys, given = states(tokens)
            far.append((editor.act(given + keys @ side) - editor.act(given)).norm(dim=-1).mean())
        hinge = (far[1] - 0.01).relu() + (5 - far[0]).relu() + (far[1] - far[0] + 1).relu()
        loss = torch.nn.functional.cross_entropy(logits, ids[0, at + 1 :]) + 0.5 * hinge
        (gradient,) = torch.autograd.grad(loss, [side])
        moved = torch.where(mask, gradient + 0.1 * (base + side.detach()), torch.zeros(()))
        side = (side.detach() - 0.5 * moved).clamp(-0.02, 0.02)
    torch.testing.assert_close(found, side, rtol=1e-3, atol=1e-6)
    assert float(found.abs().max()) == pytest.approx(0.02) and bool((found[~mask] == 0).all())


def test_steps_are_of_one_size_where_no_rate_is_known(loaded: LoadedModel, fixed: Fixed, news: list[Fact]) -> None:
    editor = editor_of(loaded, fixed, steps=1, relative_rate=0.03, clamp=10.0)
    side = Shards.of(taught(editor, State(), news[:1]).parts["shards"]).changes[0]
    base = loaded.base_weight(editor.module.name)
    size = side[editor.mask(1)].square().mean().sqrt()
    assert float(size) == pytest.approx(0.03 * float(base.square().mean().sqrt()), rel=1e-4)


def test_what_is_learnt_is_let_be(loaded: LoadedModel, fixed: Fixed, news: list[Fact]) -> None:
    editor = editor_of(loaded, fixed, steps=9, enough=100.0, settled=1e9)
    change = editor.learn(State(), Lesson(news[:2]))
    assert change.report["steps"] == 2, "one of each: before it there is nothing that it changed from"


def test_published_constants_are_those_of_the_model_at_hand() -> None:
    s = WiseSettings()
    llama2, llama3, gptj, other = (
        constants_of(s, known, 4.0)
        for known in (("llama", 32, 11008), ("llama", 32, 14336), ("gptj", 28, 16384), ("llama", 30, 1536))
    )
    assert (llama2.rate, llama2.steps, llama2.margins, llama2.threshold) == (1.0, 70, (5, 20, 10), 0.88)
    assert (llama3.rate, llama3.steps, llama3.margins, llama3.threshold) == (0.9, 30, (2, 20, 10), 0.5)
    assert gptj.margins == (15, 40, 20)
    assert other.rate is None and other.margins == pytest.approx((0.2, 0.8, 0.4)) and other.margin_weight == 0.25
    told = constants_of(WiseSettings(rate=2.0, margins=("1", "2", "3"), threshold=0.1), ("gptj", 28, 16384), 4.0)
    assert (told.rate, told.margins, told.threshold) == (2.0, (1, 2, 3), 0.1)
    for wrong in (("1", "2"), ("a", "b", "c")):
        with pytest.raises(UsageError, match="it must be three numbers by comma"):
            rule_of("wise").require(WiseSettings(margins=wrong), Given())


# -- the router


def test_a_text_is_judged_by_its_mean_so_far() -> None:
    random = np.random.default_rng(0)
    values, mask = random.uniform(0, 3, (3, 9)), np.ones((3, 9), bool)
    mask[1, :4], mask[2, 6:] = False, False
    means, parts = Means(), []
    for start, end in ((0, 5), (5, 6), (6, 9)):
        parts.append(means.over(torch.from_numpy(values[:, start:end]), torch.from_numpy(mask[:, start:end])))
    found = torch.cat(parts, 1).numpy()
    for row, t in np.ndindex(3, 9):
        seen = values[row, : t + 1][mask[row, : t + 1]]
        assert found[row, t] == (pytest.approx(seen.mean()) if mask[row, t] else -np.inf)


def test_what_is_written_step_by_step_is_what_is_read(loaded: LoadedModel, fixed: Fixed, news: list[Fact]) -> None:
    """Greedily with a cache, many at a time, padded on the left: as each text read anew for every token, alone."""
    editor = editor_of(loaded, fixed)
    generator = torch.Generator().manual_seed(1)
    side = torch.randn(editor.module.d_in, editor.module.d_out, generator=generator)
    prompts = [fact.prompt for fact in news[:6]]
    seen = [encode_prompt(loaded.tokenizer, prompt) for prompt in prompts]
    far = sorted(float(editor._activations(side, [fact])[fact.digest].rows["activation"][0]) for fact in news[:6])
    overlay = Routed(editor.module.name, side, (far[2] + far[3]) / 2, editor.act)
    with loaded.at(overlay):
        written = task_of(loaded).answer(loaded, prompts, 6)
        assert written == [task_of(loaded).answer(loaded, [prompt], 6)[0] for prompt in prompts]
        for ids, said in zip(seen, written, strict=True):
            ids = list(ids)
            for token in said.ids:
                with torch.no_grad():
                    logits = loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
                assert int(logits.argmax()) == token
                ids.append(token)
    base = task_of(loaded).answer(loaded, prompts, 6)
    with loaded.at(Shifts({editor.module.name: side})):
        edited = task_of(loaded).answer(loaded, prompts, 6)
    assert written not in (base, edited)


def test_a_fact_is_routed_and_what_changes_less_is_the_base_bit_for_bit(
    loaded: LoadedModel, fixed: Fixed, news: list[Fact]
) -> None:
    editor = editor_of(loaded, fixed, threshold=1.0)
    state = taught(editor, State(), news[:2])
    overlay = editor.overlay(state)
    assert isinstance(overlay, Routed)
    entries = state.parts["activations"]
    (inside,) = editor._read([Encoded.of(encode_prompt(loaded.tokenizer, news[0].prompt))])
    wanted = distances(editor.act, inside.given, inside.keys @ overlay.side).mean()
    assert float(entries[news[0].digest].rows["activation"][0]) == pytest.approx(float(wanted), rel=1e-5)
    ids = torch.tensor([encode_prompt(loaded.tokenizer, news[0].prompt)])
    with torch.no_grad():
        base = loaded.model(input_ids=ids).logits
        with loaded.at(overlay):
            assert not torch.equal(loaded.model(input_ids=ids).logits[0, -1], base[0, -1])
        with loaded.at(Routed(overlay.module, overlay.side, 1e6, overlay.act)):
            assert torch.equal(loaded.model(input_ids=ids).logits, base)
    gone = State(parts={"shards": state.parts["shards"], "activations": {}})
    assert editor.overlay(gone) is BASE


def test_margins_ask_for_a_difference(loaded: LoadedModel, fixed: Fixed) -> None:
    """Far at the fact, near elsewhere: nothing is asked; and a warm start is refused."""
    editor = editor_of(loaded, fixed, margins=("1", "2", "1"))
    d_in, d_out = editor.module.d_in, editor.module.d_out
    inside, outside = (
        Read(torch.ones(1, d_in), torch.zeros(1, d_out)),
        Read(torch.zeros(1, d_in), torch.zeros(1, d_out)),
    )
    loss, gradient = editor.margins(torch.ones(d_in, d_out), inside, outside)
    assert loss == 0 and not bool(gradient.any())
    loss, _ = editor.margins(torch.zeros(d_in, d_out), inside, outside)
    assert loss == pytest.approx(2 + 1)
    assert SIZE in editor.bench.fixed.rule
    with pytest.raises(UsageError, match="found a warm start, expected none"):
        editor.relearn([Fact(subject="a", prompt="a", target="b")], start={})
