"""UltraEdit's running moments: those of all rows at once, carried as arrays in the state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lifelong_edit.bench import State
from lifelong_edit.editors.contract import Change, Lesson, moved_by
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.editors.ridge.settings import RidgeSettings
from lifelong_edit.editors.ridge.targets import Asker, Moments, Seen
from lifelong_edit.editors.ridge.together import CHUNK
from lifelong_edit.editors.ultraedit.rule import NormalisedTargets, settings_on, step_of
from lifelong_edit.editors.ultraedit.settings import UltraSettings
from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.stores.tensors import decode_tensors, encode_tensors, materialise
from lifelong_edit.timeline.config import Config, ModelIdentity
from lifelong_edit.tracing.rows import fact_rows
from lifelong_edit.tracing.trace import trace
from tests.mathematics.conftest import MakeEditor, editor_of, make_fact, moments_of, shift_of, whole_of

Rows = tuple[Tensor, Tensor]


def rows(seed: int, n: int, d_in: int = 5, d_out: int = 3) -> Rows:
    """Keys and gradients whose mean is far from zero, in which naive sums of squares would cancel."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d_in, generator=g) + 30, torch.randn(n, d_out, generator=g) * 1e-3


def ready(eta: float, batch: Rows, state: Moments, centre: bool = False) -> Asker:
    """The rule made ready on a batch of one module."""
    keys, gradients = batch
    return NormalisedTargets(eta, centre).ready(Seen({"m": keys}, {"m": gradients}), state)


def moments(batches: list[Rows]) -> dict[str, np.ndarray]:
    """The state after the editor has seen the batches one after the other, stored and read in between."""
    state: dict[str, np.ndarray] = {}
    for batch in batches:
        kept = ready(1e-6, batch, state).moments
        state = {n: np.array(a) for n, a in decode_tensors(encode_tensors(kept)).items()}
        assert {n: a.tobytes() for n, a in state.items()} == {n: a.tobytes() for n, a in kept.items()}
        assert all(a.shape == kept[n].shape and a.dtype == np.float64 for n, a in state.items())
    return state


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_running_moments_are_those_of_all_rows_at_once(seed: int, sizes: list[int]) -> None:
    batches = [rows(seed + i, n) for i, n in enumerate(sizes)]
    state = moments(batches)
    whole = np.concatenate([torch.cat(b, -1).double().numpy() for b in batches])
    assert float(state["m/count"]) == len(whole)
    np.testing.assert_allclose(state["m/mean"], whole.mean(0), rtol=1e-10, atol=1e-12)
    spread = ((whole - whole.mean(0)) ** 2).sum(0)
    # Two-pass sums in float64; with naive sums of squares 30² · eps would already be 1e-13 a row.
    np.testing.assert_allclose(state["m/squares"], spread, rtol=1e-9, atol=1e-11)


def test_the_judge_notices_a_batch_that_was_not_carried_on() -> None:
    batches = [rows(1, 4), rows(2, 6)]
    assert not np.allclose(moments(batches)["m/squares"], moments(batches[1:])["m/squares"])
    # What is left out when two means differ: the term count·count′/total·(difference)².
    apart = sum(moments([b])["m/squares"] for b in batches)
    assert not np.allclose(moments(batches)["m/squares"], apart, rtol=1e-3)


@pytest.mark.parametrize("centre", [False, True])
def test_the_rule_is_the_formula(centre: bool) -> None:
    """d = −η ‖ĥ‖² ĝ with the moments of earlier batches and this one, in NumPy."""
    earlier, (keys, gradients) = rows(3, 9), rows(4, 7)
    state = moments([earlier])
    asker = ready(0.01, (keys, gradients), state, centre)
    whole = np.concatenate([torch.cat(b, -1).double().numpy() for b in (earlier, (keys, gradients))])
    mean, deviation = whole.mean(0), whole.std(0, ddof=1)
    key = (keys.double().numpy() - mean[:5]) / deviation[:5]
    gradient = (gradients.double().numpy() - (mean[5:] if centre else 0)) / deviation[5:]
    wanted = -0.01 * (key**2).sum(1, keepdims=True) * gradient
    np.testing.assert_allclose(asker.ask("m", keys, gradients).numpy(), wanted, rtol=1e-3, atol=1e-5)
    without = -0.01 * (key**2).sum(1, keepdims=True) * gradients.double().numpy()
    assert not np.allclose(asker.ask("m", keys, gradients).numpy(), without, rtol=1e-2)


def test_the_state_given_is_not_changed() -> None:
    state = moments([rows(5, 4)])
    before = {n: a.copy() for n, a in state.items()}
    keys, gradients = rows(6, 4)
    for array in state.values():
        array.flags.writeable = True
    asker = ready(1e-6, (keys, gradients), state)
    asker.ask("m", keys, gradients)
    assert all(np.array_equal(a, before[n]) for n, a in state.items())


def test_a_state_that_cannot_be_written_to_is_read_all_the_same() -> None:
    state = moments([rows(7, 4)])
    for array in state.values():
        array.flags.writeable = False
    keys, gradients = rows(8, 4)
    assert float(ready(1e-6, (keys, gradients), state).moments["m/count"]) == 8


@pytest.fixture
def editor(make_editor: MakeEditor) -> RidgeEditor:
    """UltraEdit on the tiny GPT-2, with moments of each module alone."""
    return make_editor(editor="ultraedit", moments="module", eta=1e-3, reconsolidation_passes=3)


def same_weights(one: Change, other: Change) -> bool:
    """Whether two changes give the same weights, bit for bit."""
    found, wanted = whole_of(one), whole_of(other)
    return found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in found)


def same_moments(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    """Whether two states of the moments are the same, bit for bit."""
    return one.keys() == other.keys() and all(one[n].tobytes() == other[n].tobytes() for n in one)


def test_solving_again_gives_the_same_in_whatever_order_the_facts_come(editor: RidgeEditor, news: list[Fact]) -> None:
    """Also of more facts than one batch of it has."""
    facts = [make_fact(number) for number in range(CHUNK + 6)]
    usual = editor.relearn(facts)
    order = torch.randperm(len(facts), generator=torch.Generator().manual_seed(3)).tolist()
    for other in (facts[::-1], [facts[i] for i in order]):
        assert [f.digest for f in other] != [f.digest for f in facts]
        again = editor.relearn(other)
        assert same_weights(usual, again)
        assert same_moments(moments_of(usual), moments_of(again))
    assert any(bool(weights.any()) for weights in whole_of(usual).values())
    # Of other facts both are others: the check can fail.
    fewer = editor.relearn(facts[1:])
    assert not same_weights(usual, fewer)
    assert not same_moments(moments_of(usual), moments_of(fewer))


def test_moments_of_facts_solved_for_again_are_those_of_exactly_these_facts(
    editor: RidgeEditor, news: list[Fact]
) -> None:
    """In NumPy: count, mean and spread of their rows at the base weights, each once."""
    found = moments_of(editor.relearn(news))
    loaded = editor.bench.loaded
    traced = trace(loaded, fact_rows(loaded, news, editor.phrasings), 8)
    for name in editor.bench.names:
        seen = torch.cat([traced.keys[name], traced.gradients[name]], -1).double().numpy()
        assert float(found[f"{name}/count"]) == len(seen) > 0
        # float32 traces, which other batches of rows round differently.
        np.testing.assert_allclose(found[f"{name}/mean"], seen.mean(0), rtol=1e-4, atol=1e-6)
        spread = ((seen - seen.mean(0)) ** 2).sum(0)
        np.testing.assert_allclose(found[f"{name}/squares"], spread, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("facts", [slice(0, 4), slice(4, 8), slice(0, 8)], ids=["first batch", "second batch", "both"])
def test_no_history_is_left_in_what_is_solved_again(editor: RidgeEditor, news: list[Fact], facts: slice) -> None:
    """Learn, learn, solve again for a part: moments and weights of a state that never learned anything else."""
    state = State(digest="begun")
    for batch in (news[:4], news[4:8]):
        state = moved_by(state, editor.learn(state, Lesson(batch)), batch)
    remembered = dict(state.parts["moments"])
    again = editor.relearn(news[facts])
    fresh = moved_by(State(digest="fresh"), editor_of(editor.bench).relearn(news[facts]), news[facts])
    state = moved_by(state, again, news[facts], [fact.digest for fact in news[:8]])
    assert same_moments(state.parts["moments"], fresh.parts["moments"])
    if facts != slice(0, 8):  # the check can fail: what was remembered was of both batches
        assert not same_moments(state.parts["moments"], remembered)
    assert state.shifts.keys() == fresh.shifts.keys()
    assert all(torch.equal(state.shifts[n], fresh.shifts[n]) for n in fresh.shifts)
    assert state.live == fresh.live == {fact.digest: fact for fact in news[facts]}
    # What is learned next is the same too, whichever way the state was come by.
    one, other = (editor.learn(replace(s, digest="same"), Lesson(news[8:10])) for s in (state, fresh))
    for name in editor.bench.names:
        assert materialise(shift_of(one)[name]).tobytes() == materialise(shift_of(other)[name]).tobytes()
    assert same_moments(moments_of(one), moments_of(other))


def test_it_relearns_from_the_base_alone_and_only_what_is_there(editor: RidgeEditor, news: list[Fact]) -> None:
    warm = {name: torch.zeros(128, 32) for name in editor.bench.names}
    with pytest.raises(UsageError, match="found a warm start, expected none"):
        editor.relearn(news[:2], start=warm)
    with pytest.raises(UsageError, match="no live facts"):
        editor.relearn([])


# -- one normaliser for all modules of a shape, as published


def test_modules_of_one_shape_share_their_moments(make_editor: MakeEditor, news: list[Fact]) -> None:
    """In NumPy: count, mean and spread of all their rows at the base weights, of batch after batch."""
    editor = make_editor(editor="ultraedit")
    loaded, state = editor.bench.loaded, State(digest="begun")
    for batch in (news[:5], news[5:9]):
        state = moved_by(state, editor.learn(state, Lesson(batch)), batch)
    traced = trace(loaded, fact_rows(loaded, news[:9], editor.phrasings), 8)
    shapes = {f"{m.d_in}x{m.d_out}" for m in loaded.modules}
    assert len(shapes) < len(loaded.modules)
    assert {name.partition("/")[0] for name in state.parts["moments"]} == shapes
    for shape in shapes:
        own = [m.name for m in loaded.modules if f"{m.d_in}x{m.d_out}" == shape]
        seen = torch.cat([torch.cat([traced.keys[n], traced.gradients[n]], -1) for n in own]).double().numpy()
        found = {part: np.asarray(state.parts["moments"][f"{shape}/{part}"]) for part in ("count", "mean", "squares")}
        assert float(found["count"]) == len(seen)
        np.testing.assert_allclose(found["mean"], seen.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found["squares"], ((seen - seen.mean(0)) ** 2).sum(0), rtol=1e-3, atol=1e-6)


def test_a_module_asks_by_the_rows_of_all_and_not_by_its_own(make_editor: MakeEditor) -> None:
    """Two modules of one shape, in NumPy; the order in which they are taken is of no matter."""
    one, other = rows(11, 6), rows(12, 8)
    other = (other[0] + 2.0, other[1] * 3)
    targets = NormalisedTargets(0.01, centre=True, group=lambda _: "5x3")
    asker = targets.ready(Seen({"a": one[0], "b": other[0]}, {"a": one[1], "b": other[1]}), {})
    whole = np.concatenate([torch.cat(b, -1).double().numpy() for b in (one, other)])
    mean, deviation = whole.mean(0), whole.std(0, ddof=1)
    normal = (torch.cat(one, -1).double().numpy() - mean) / deviation
    wanted = -0.01 * (normal[:, :5] ** 2).sum(1, keepdims=True) * normal[:, 5:]
    np.testing.assert_allclose(asker.ask("a", *one).numpy(), wanted, rtol=1e-3, atol=1e-5)
    alone = NormalisedTargets(0.01, centre=True).ready(Seen({"a": one[0]}, {"a": one[1]}), {})
    assert not np.allclose(alone.ask("a", *one).numpy(), wanted, rtol=1e-2)
    turned = targets.ready(Seen({"b": other[0], "a": one[0]}, {"b": other[1], "a": one[1]}), {})
    np.testing.assert_allclose(turned.ask("a", *one).numpy(), wanted, rtol=1e-3, atol=1e-5)


def test_the_step_goes_by_the_outputs_of_the_matrix(make_editor: MakeEditor) -> None:
    """ρ √(tr(WᵀCW)/d_out) / d_in, in NumPy; twice the weights, twice the step; a step that is given wins."""
    bench = make_editor(editor="ultraedit", eta=None, relative_step=0.2).bench
    options = settings_on(bench)
    step = step_of(bench, options)
    for module in bench.loaded.modules:
        weight = bench.loaded.base_weight(module.name).double().numpy()
        gram = bench.text_gram[module.name].numpy()
        usual = np.sqrt(np.trace(weight.T @ gram @ weight) / module.d_out)
        np.testing.assert_allclose(step(module.name), 0.2 * usual / module.d_in, rtol=1e-6)
    assert step_of(bench, options.replace(eta=1e-6))("any") == 1e-6
    assert step_of(bench, options.replace(relative_step=None))("any") == 1e-6


def test_a_store_that_is_older_than_the_settings_goes_on_as_it_was() -> None:
    """They are what they were, and in no digest; a new store says all of them."""
    new = UltraSettings(seed=3)
    identity = ModelIdentity(source="x", revision=None, trust_remote_code=False, dtype="float32", fingerprint="f",
                             modules={})  # fmt: skip
    config = Config.made(identity, new, None)
    assert config.settings == new and b'"moments":"shape"' in config.settings.encoded()
    given = {name: value for name, value in config.given.items() if name not in ("moments", "relative_step")}
    old = msgspec.structs.replace(config, given=given).settings
    assert isinstance(old, UltraSettings)
    assert (old.moments, old.relative_step) == ("module", None)
    assert old.encoded() == RidgeSettings(editor="ultraedit", seed=3).encoded()
