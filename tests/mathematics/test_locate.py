"""Locate-then-edit: what each rule solves, against NumPy; what is searched, against a plain loop; what is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lifelong_edit.bench import Bench, Fixed, State, prepare
from lifelong_edit.editors.contract import Given, Lesson, moved_by
from lifelong_edit.editors.locate.editor import LocateEditor, Met, Work, require
from lifelong_edit.editors.locate.material import Asked, asked_of, essence
from lifelong_edit.editors.locate.published import (
    GPT2_LARGE,
    GPT2_MEDIUM,
    GPT2_XL,
    GPT_J,
    LLAMA_2,
    LLAMA_3,
    LLAMA_32_1B,
    LLAMA_32_3B,
    MISTRAL,
    QWEN_2,
    constants_of,
    outline_of,
)
from lifelong_edit.editors.locate.settings import LocateSettings
from lifelong_edit.editors.locate.sites import read
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.editors.ridge.clock import Clock
from lifelong_edit.editors.search.contexts import contexts_of
from lifelong_edit.errors import BadInputError, StepRefusedError, UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.models import Forms, LoadedModel, encode_prompt, load_model
from lifelong_edit.models.families import default_entries
from lifelong_edit.numerics.located import (
    Projection,
    equality,
    free_directions,
    projected,
    rank_one,
    ridge,
    ridge_among,
    strongest,
)
from lifelong_edit.tracing.rows import Row

TEXT = ["The river was long and the people of the town went home. Nobody knew where the road would lead them to."] * 40
LINES = [f"The {name} road of the people was long and old." for name in "abcdefghijklmnopqrstuvwxyz"]
SMALL: dict[str, Any] = {"text_tokens": 2000, "micro_batch": 4, "steps": 4, "rate": 0.2, "contexts": 2, "c0": 5.0}
RULES = ("rome", "r-rome", "memit", "memit-seq", "emmet", "alphaedit", "nse")
EXACT = 1e-9
"""Relative. Two float64 solves of one well conditioned system of 12 differ by some hundred roundings."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A model this small gains nothing from threads, and on a busy machine they wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- solves


@pytest.fixture(scope="module")
def solve() -> dict[str, torch.Tensor]:
    """Keys of five facts (n, 12), what they ask (n, 7), a gram of text and one of earlier keys, float64."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    text, earlier = draw(40, 12), draw(6, 12)
    return {"K": draw(5, 12), "R": draw(5, 7), "C": text.T @ text / 4, "Q": earlier.T @ earlier}


def close(found: torch.Tensor, wanted: np.ndarray, tolerance: float = EXACT) -> bool:
    """Whether an array is what a judge found."""
    return bool(np.abs(found.numpy() - wanted).max() <= tolerance * np.abs(wanted).max())


def test_every_rule_solves_what_its_equation_says(solve: dict[str, torch.Tensor]) -> None:
    """Explicit inverses of the published equations in NumPy, none of them symmetrised or factored."""
    k, c, q = (solve[name].numpy() for name in "KCQ")
    inverse, eye = np.linalg.inv(c), np.eye(12)
    mean, plain = k[:1], k[1:2]
    u = mean @ inverse
    assert close(rank_one(solve["K"][:1], solve["K"][1:2], solve["C"]), u.T / (plain @ u.T))
    assert close(ridge(solve["K"], solve["C"] + solve["Q"]), np.linalg.inv(c + q + k.T @ k) @ k.T)
    inner = np.linalg.inv(k @ inverse @ k.T + 0.1 * np.eye(5))
    assert close(equality(solve["K"], solve["C"], 0.1), inverse @ k.T @ inner)
    free = free_directions(solve["C"], None, 0.2)
    values, vectors = np.linalg.eigh(c)
    few = vectors[:, np.cumsum(values) <= 0.2 * values.sum()]
    project = few @ few.T
    assert 0 < few.shape[1] < 12 and close(free.basis @ free.basis.T, project)
    nulled = np.linalg.solve(project @ (k.T @ k + q) + 10 * eye, project @ k.T)
    assert close(projected(solve["K"], free, solve["Q"], 10.0), nulled)
    order = np.argsort(-np.abs(k).sum(0))
    carried = np.cumsum(np.abs(k).sum(0)[order]) / np.abs(k).sum()
    some = np.sort(order[: int((carried < 0.6).sum()) + 1])
    wanted = np.zeros((12, 5))
    wanted[some] = np.linalg.inv((c + q + k.T @ k)[np.ix_(some, some)]) @ k[:, some].T
    assert 0 < len(some) < 12
    assert close(ridge_among(solve["K"], solve["C"] + solve["Q"], strongest(solve["K"], 0.6)), wanted)


def test_a_threshold_counts_eigenvalues_and_a_share_the_trace(solve: dict[str, torch.Tensor]) -> None:
    values = np.linalg.eigvalsh(solve["C"].numpy())
    threshold = float(values[4] + values[5]) / 2
    assert free_directions(solve["C"], threshold, 1.0).rank == 5
    held = free_directions(solve["C"], None, 0.3)
    assert held.left == pytest.approx(float((held.basis * (solve["C"] @ held.basis)).sum()))
    assert held.left <= 0.3 * float(solve["C"].trace())


def test_emmet_is_a_constraint_and_with_a_slack_of_one_memit(solve: dict[str, torch.Tensor]) -> None:
    """KS = R at μ = 0; the push-through identity at μ = 1; the more slack, the farther from what is asked."""
    k, r, c = solve["K"], solve["R"], solve["C"]
    assert close(k @ equality(k, c, 0.0) @ r, r.numpy())
    assert close(equality(k, c, 1.0), ridge(k, c).numpy())
    far = [float((k @ equality(k, c, mu) @ r - r).norm()) for mu in (0.0, 0.1, 0.5, 1.0, 2.0)]
    assert far == sorted(far) and far[1] > 1e-3


def test_one_fact_of_emmet_is_r_rome(solve: dict[str, torch.Tensor]) -> None:
    """With MEMIT's keys, at any c₀."""
    one = solve["K"][:1]
    for c0 in (0.01, 1.0, 300.0):
        assert close(equality(one, c0 * solve["C"], 0.0), rank_one(one, one, solve["C"]).numpy())


def test_rome_meets_the_plain_key_and_not_the_mean(solve: dict[str, torch.Tensor]) -> None:
    mean, plain = solve["K"][:1], solve["K"][1:2]
    left = rank_one(mean, plain, solve["C"])
    assert float(plain @ left) == pytest.approx(1, abs=1e-12)
    assert abs(float(mean @ left) - 1) > 0.1
    assert float(mean @ rank_one(mean, mean, solve["C"])) == pytest.approx(1, abs=1e-12)
    with pytest.raises(StepRefusedError, match="meets nothing of its key behind contexts"):
        rank_one(mean, torch.zeros_like(plain), solve["C"])


def test_alphaedit_with_nothing_to_keep_free_is_sequential_memit(solve: dict[str, torch.Tensor]) -> None:
    """P = I against c₀C₀ = λI."""
    k, q, eye = solve["K"], solve["Q"], torch.eye(12, dtype=torch.float64)
    assert close(projected(k, Projection(eye, 1.0), q, 10.0), ridge(k, 10 * eye + q).numpy())
    few = free_directions(solve["C"], None, 0.2)
    shift = projected(k, few, q, 10.0) @ solve["R"]
    assert close(few.basis @ (few.basis.T @ shift), shift.numpy())
    assert not close(projected(k, few, q, 10.0), ridge(k, 10 * eye + q).numpy(), 0.1)


def test_nse_of_all_inputs_is_sequential_memit(solve: dict[str, torch.Tensor]) -> None:
    k, held = solve["K"], solve["C"] + solve["Q"]
    assert close(ridge_among(k, held, strongest(k, 1.0)), ridge(k, held).numpy())
    assert not close(ridge_among(k, held, strongest(k, 0.5)), ridge(k, held).numpy(), 0.1)


def test_batch_after_batch_is_one_ridge_regression(solve: dict[str, torch.Tensor]) -> None:
    """Recursive least squares: with earlier keys in Q the shifts add up to the joint solution for what was wanted."""
    k, r, c = solve["K"], solve["R"], solve["C"]
    first = ridge(k[:2], c) @ r[:2]
    both = first + ridge(k[2:], c + k[:2].T @ k[:2]) @ r[2:]
    wanted = torch.cat([r[:2], r[2:] + k[2:] @ first])
    assert close(both, (ridge(k, c) @ wanted).numpy())
    forgetful = first + ridge(k[2:], c) @ r[2:]
    assert not close(forgetful, (ridge(k, c) @ wanted).numpy(), 0.01)


# -- on a model


@pytest.fixture(scope="module")
def read_at_the_subject(tiny_gpt2: Path) -> LoadedModel:
    """The tiny GPT-2, two matrices of which are edited at the subject."""
    return load_model(str(tiny_gpt2), modules=["0-1@subject"])


@pytest.fixture(scope="module")
def single(tiny_gpt2: Path) -> LoadedModel:
    """The same with one matrix."""
    return load_model(str(tiny_gpt2), modules=["1@subject"])


MEASURED: dict[tuple[str, int], Fixed] = {}


def editor_of(loaded: LoadedModel, name: str, **changes: Any) -> Any:
    """A rule at work on a model, with what `init` would fix."""
    settings = LocateSettings(editor=name, **{**SMALL, **changes})
    contexts = rule_of(name).fix(loaded, settings, Given({}, TEXT, []))
    key = (loaded.source, len(loaded.modules))
    if key not in MEASURED:
        MEASURED[key] = prepare(loaded, settings, text=TEXT)
    measured = MEASURED[key]
    fixed = Fixed(measured.text, measured.conflict_mean, measured.preserved, measured.scorer, contexts)
    return rule_of(name).make(Bench(loaded, settings, fixed))


def searched_by_hand(editor: LocateEditor, fact: Fact, asked: Asked, essence: Row) -> torch.Tensor:
    """δ of one fact by torch's own Adam, one text at a time, the whole vocabulary, as the published code has it."""
    loaded, c, s = editor.bench.loaded, editor.constants, editor.settings
    block = loaded.model.get_submodule(editor.site.name)

    def logits(ids: Sequence[int], position: int, delta: torch.Tensor) -> torch.Tensor:
        def add(module: Any, arguments: Any, output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            moved = torch.cat(
                [states[:, :position], states[:, position : position + 1] + delta, states[:, position + 1 :]], 1
            )
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        handle = block.register_forward_hook(add)
        try:
            found: torch.Tensor = loaded.model(torch.tensor([list(ids)])).logits[0]
        finally:
            handle.remove()
        return found.log_softmax(-1)

    states = read(loaded, [asked.own[0]], editor.site, 1).states[0]
    delta = torch.zeros_like(states, requires_grad=True)
    rate = c.rate if c.rate is not None else 0.5 * 1.4826 * float(np.quantile(states.abs(), 0.5, method="lower"))
    adam = torch.optim.Adam([delta], lr=rate)
    ids, end = encode_prompt(loaded.tokenizer, f"{fact.subject} is a"), essence.encoded.subject[1]
    base = logits(ids, end - 1, torch.zeros_like(states))[end - 1].detach()
    for look in range(c.steps):
        losses = []
        for row in asked.rows:
            e = row.encoded
            at = torch.arange(e.answer_start - 1, len(e.ids) - 1)
            found = logits(e.ids, e.subject[1] - 1, delta)
            losses.append(-found[at, list(e.answer)].mean())
        kl = (base.exp() * (base - logits(ids, end - 1, delta)[end - 1])).sum()
        loss = torch.stack(losses).mean() + s.kl * kl + c.decay * delta.norm() / states.norm() ** 2
        if float(loss.detach()) < s.enough or look == c.steps - 1:
            break
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        with torch.no_grad():
            if float(delta.norm()) > c.clamp * float(states.norm()):
                delta *= c.clamp * float(states.norm()) / float(delta.norm())
    return delta.detach()


@pytest.mark.parametrize("clamp", [4.0, 0.1], ids=["free", "at its bound"])
def test_the_search_is_the_published_one(read_at_the_subject: LoadedModel, news: list[Fact], clamp: float) -> None:
    """Side by side in micro-batches against fact by fact and text by text. Float32 passes differ by 1e-6."""
    editor = editor_of(read_at_the_subject, "memit", clamp=clamp, steps=5, rate=None, kl=0.5, decay=2.0)
    facts = news[:3]
    asked = asked_of(editor.bench, facts, editor.contexts, 0)
    found, sizes = editor.wanted(Work({}), facts, asked, lambda _: None), []
    for i, fact in enumerate(facts):
        own = essence(editor.bench, fact)
        assert own is not None
        delta = searched_by_hand(editor, fact, asked[i], own)
        states = read(read_at_the_subject, [asked[i].own[0]], editor.site, 1).states[0]
        assert float((found[i] - states - delta).norm()) < 1e-3 * float(delta.norm())
        sizes.append(float(delta.norm() / states.norm()))
    assert max(sizes) == pytest.approx(0.1, rel=1e-4) if clamp == 0.1 else 0.1 < max(sizes) < clamp


def test_a_search_is_over_before_its_first_step_where_the_fact_is_known(
    read_at_the_subject: LoadedModel, news: list[Fact]
) -> None:
    editor = editor_of(read_at_the_subject, "memit", enough=1e3)
    asked = asked_of(editor.bench, news[:2], editor.contexts, 0)
    work = Work({})
    found = editor.wanted(work, news[:2], asked, lambda _: None)
    assert work.looks == [1]
    assert torch.equal(found, read(read_at_the_subject, [own.own[0] for own in asked], editor.site, 4).states)


def test_the_residual_is_spread_over_layers_traced_anew(read_at_the_subject: LoadedModel, news: list[Fact]) -> None:
    """A plain loop: at layer i of n the keys and states of the weights so far, R/(n − i), MEMIT's inverse."""
    editor = editor_of(read_at_the_subject, "memit")
    loaded, facts = read_at_the_subject, news[:3]
    asked = asked_of(editor.bench, facts, editor.contexts, 0)
    change = editor.learn(State(), Lesson(facts))
    assert change.report["rows"] == {"new": 3, "behind contexts": 6} and change.report["looks"] == [4]
    wanted = editor.wanted(Work({}), facts, asked, lambda _: None).double().numpy()
    shifts: dict[str, torch.Tensor] = {}
    for i, name in enumerate(editor.bench.names):
        with loaded.at(shifts):
            seen = [read(loaded, own.rows, editor.site, 1) for own in asked]
        keys = np.stack(
            [s.keys[name][0].double().numpy() / 2 + s.keys[name][1:].double().numpy().mean(0) / 2 for s in seen]
        )
        rest = (wanted - np.stack([s.states[0].double().numpy() for s in seen])) / (2 - i)
        gram = editor.bench.text_gram[name].numpy()
        held = 5.0 * gram + np.exp(-9.2) * np.trace(gram) / len(gram) * np.eye(len(gram))
        shift = np.linalg.inv(held + keys.T @ keys) @ keys.T @ rest
        shifts[name] = torch.from_numpy(shift).float()
    found = change.weights({n: np.zeros_like(s.numpy()) for n, s in shifts.items()})
    for name, shift in shifts.items():
        assert np.linalg.norm(found[name] - shift.numpy()) < 1e-3 * float(shift.norm())  # float32 states, inverses


def test_one_fact_is_reached_exactly_where_nothing_holds_still(single: LoadedModel, news: list[Fact]) -> None:
    """EMMET takes a single fact as a constraint: the state at its subject is what was searched; MEMIT stays short."""
    for name, reached in (("emmet", True), ("memit", False)):
        editor = editor_of(single, name, contexts=0, c0=500.0)
        asked = asked_of(editor.bench, news[:1], [], 0)
        wanted = editor.wanted(Work({}), news[:1], asked, lambda _: None)
        before = read(single, asked[0].rows, editor.site, 1).states
        state = moved_by(State(), editor.learn(State(), Lesson(news[:1])), news[:1])
        with single.at(state.shifts):
            after = read(single, asked[0].rows, editor.site, 1).states
        far = float((wanted - after).norm() / (wanted - before).norm())
        assert (far < 1e-4) if reached else (far > 0.05), name


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_opt"])
@pytest.mark.parametrize("name", ["rome", "emmet"])
def test_states_are_reached_in_models_that_are_made_otherwise(
    request: pytest.FixtureRequest, news: list[Fact], kind: str, name: str
) -> None:
    """Matrices stored transposed, blocks that give tuples, an MLP that sees batch and positions as one dimension."""
    loaded = load_model(str(request.getfixturevalue(kind)), modules=["1@subject"])
    editor = editor_of(loaded, name, contexts=0)
    asked = asked_of(editor.bench, news[:2], [], 0)
    wanted = editor.wanted(Work({}), news[:2], asked, lambda _: None)
    before = read(loaded, [own.own[0] for own in asked], editor.site, 1).states
    state = moved_by(State(), editor.learn(State(), Lesson(news[:1])), news[:1])
    with loaded.at(state.shifts):
        after = read(loaded, asked[0].rows, editor.site, 1).states
    assert float((wanted - before).norm()) > 0.1
    assert float((wanted[0] - after[0]).norm() / (wanted - before)[0].norm()) < 1e-3


def test_a_fact_is_asked_in_a_turn_as_well(chat_gpt2: Path, news: list[Fact]) -> None:
    """In a model with a chat template: the prompt and the turn are own words, half of the key together."""
    loaded = load_model(str(chat_gpt2), modules=["0-1@subject"])
    loaded.forms = Forms(("plain", "chat"))
    editor = editor_of(loaded, "memit", form="both")
    asked = asked_of(editor.bench, news[:1], editor.contexts, 0)[0]
    assert [row.form for row in asked.own] == ["plain", "chat"] and asked.behind
    assert sum(asked.weights(evenly=False)[:2]) == 0.5
    last = [row.encoded.ids[row.encoded.subject[0]] for row in asked.own]
    assert last[0] == last[1]  # both at the name's last token
    keys = editor.learn(State(), Lesson(news[:1])).keys()[news[0].digest]
    assert all(len(rows) == 3 for rows in keys.rows.values())


def test_keys_are_kept_in_own_words_and_in_the_mean(read_at_the_subject: LoadedModel, news: list[Fact]) -> None:
    """What later batches hold still is the gram of the means of live facts that are not replaced, as NumPy has it."""
    editor = editor_of(read_at_the_subject, "memit-seq")
    state = State()
    for part in (news[:2], news[2:4]):
        state = moved_by(state, editor.learn(state, Lesson(part)), part)
    name = editor.bench.names[0]
    scale = editor.bench.scale[name].numpy()
    with read_at_the_subject.at(state.shifts):
        asked = asked_of(editor.bench, news[3:4], editor.contexts, 0)[0]
        seen = read(read_at_the_subject, asked.rows, editor.site, 4).keys[name].double().numpy()
    kept = state.keys[news[3].digest].rows[name] * scale
    assert kept.shape == (2, len(scale))
    assert np.abs(kept[0] - seen[0]).max() <= scale.max()
    assert np.abs(kept[1] - (seen[0] / 2 + seen[1:].mean(0) / 2)).max() <= scale.max()
    means = [state.keys[f.digest].rows[name][-1].astype(float) * scale for f in (news[0], news[2], news[3])]
    live = {d: k for d, k in state.keys.items() if d != news[1].digest}
    assert close(editor._earlier.over(live)[name], sum(np.outer(m, m) for m in means), 1e-14)  # type: ignore[arg-type]


def test_a_replaced_fact_no_longer_holds_still(read_at_the_subject: LoadedModel, news: list[Fact]) -> None:
    """It is as if it had never been kept in mind; with it the step is another."""
    editor = editor_of(read_at_the_subject, "memit-seq")
    state = moved_by(State(), editor.learn(State(), Lesson(news[:2])), news[:2])
    gone, again = news[0].digest, Fact(subject=news[0].subject, prompt=news[0].prompt, target="Japan")
    without = State(state.shifts, {news[1].digest: news[1]}, {news[1].digest: state.keys[news[1].digest]})
    zeros = {name: np.zeros(shift.shape, np.float32) for name, shift in state.shifts.items()}
    found, wanted, kept = (
        editor.learn(at, Lesson([again], retire=retire)).weights(zeros)
        for at, retire in ((state, (gone,)), (without, ()), (state, ()))
    )
    for name in zeros:
        assert np.array_equal(found[name], wanted[name])
        assert np.linalg.norm(kept[name] - wanted[name]) > 0.01 * np.linalg.norm(wanted[name])


def judged(editor: Any, met: Met) -> np.ndarray:
    """L of a rule by its equation, with what the store measured and the settings say, in NumPy."""
    name, c = editor.settings.editor, editor.bench.text_gram[met.module].numpy()
    eye, relative = np.eye(len(c)), editor.settings.units == "relative"
    k, plain, q = met.mean.numpy(), met.plain.numpy(), 0.0 if met.earlier is None else met.earlier.numpy()
    tiny = np.exp(editor.settings.log_ridge) * np.trace(c) / len(c) * eye if relative else 0 * eye
    if name in ("rome", "r-rome"):
        u = np.linalg.solve(c + tiny, k.T)
        return u / ((plain if name == "rome" else k) @ u)
    if name == "alphaedit":
        values, vectors = np.linalg.eigh(c)
        few = vectors[:, np.cumsum(values) <= 0.02 * values.sum()] if relative else vectors[:, values < 0.02]
        project = few @ few.T
        penalty = 0.1 * np.trace(project @ c) if relative else 10.0
        return np.linalg.solve(project @ (k.T @ k + q) + penalty * eye, project @ k.T)
    held = 5.0 * c + tiny + q
    if name == "emmet":
        moved = np.linalg.solve(held, k.T)
        return moved @ np.linalg.inv(k @ moved + 0.1 * np.eye(len(k)))
    return np.linalg.solve(held + k.T @ k, k.T)


@pytest.mark.parametrize("units", ["relative", "published"])
@pytest.mark.parametrize("name", RULES)
def test_a_rule_at_work_solves_its_equation(single: LoadedModel, name: str, units: str) -> None:
    """With the keys, the text, the earlier facts and the constants that are its own; text here spans all directions."""
    editor, generator = editor_of(single, name, units=units), torch.Generator().manual_seed(5)
    module, width = editor.bench.names[0], editor.bench.text_gram.width(editor.bench.names[0])
    draw = lambda n: torch.randn(n, width, generator=generator, dtype=torch.float64)  # noqa: E731
    spread = draw(300)
    editor.bench.text_gram._whole[module] = spread.T @ (0.02 * torch.arange(1, 301).double()[:, None] * spread) / 9e4
    n = 1 if editor.alone else 3
    earlier = draw(4)
    met = Met(module, draw(n), draw(n), earlier.T @ earlier if editor.recalls else None)
    wanted = judged(editor, met)
    assert np.abs(wanted).max() > 0
    assert close(editor.influence(met), wanted, 1e-6)
    assert editor.recalls == (name in ("memit-seq", "alphaedit", "nse"))


@pytest.mark.parametrize("name", ["rome", "r-rome"])
def test_one_after_another_in_the_order_of_digests(single: LoadedModel, news: list[Fact], name: str) -> None:
    editor = editor_of(single, name)
    state = State()
    for fact in sorted(news[:3], key=lambda fact: fact.digest):
        state = moved_by(state, editor.learn(state, Lesson([fact])), [fact])
    again = editor.relearn(news[:3][::-1]).weights({})
    for module, shift in state.shifts.items():
        assert np.linalg.norm(again[module] - shift.numpy()) < 1e-4 * float(shift.norm())
    together = editor.learn(State(), Lesson(sorted(news[:3], key=lambda fact: fact.digest)))
    for module, shift in together.weights({n: np.zeros(s.shape, np.float32) for n, s in state.shifts.items()}).items():
        assert np.linalg.norm(again[module] - shift) < 1e-4 * np.linalg.norm(shift)


def test_nse_solves_again_for_those_that_are_far_off(read_at_the_subject: LoadedModel, news: list[Fact]) -> None:
    def solves(**changes: Any) -> tuple[int, object]:
        editor = editor_of(read_at_the_subject, "nse", c0=200.0, **changes)
        asked = asked_of(editor.bench, news[:3], editor.contexts, 0)
        zeros = {m.name: torch.zeros(m.d_in, m.d_out) for m in editor.bench.loaded.modules}
        work = editor.edit_in(editor.begun(State(zeros), ()), news[:3], asked, {}, Clock())
        return len(next(iter(work.left.values()), [])), work.out_of_reach

    assert solves(passes=1) == (1, [])
    assert solves(passes=2) == (2, [])
    assert solves(passes=2, settled=1e6) == (0, [])
    assert solves(passes=2, reach=1e-6) == (0, [f.digest for f in news[:3]])


def test_nse_searches_at_the_base_and_memit_where_it_stands(read_at_the_subject: LoadedModel, news: list[Fact]) -> None:
    moved = {
        m.name: 0.05 * torch.randn(m.d_in, m.d_out, generator=torch.Generator().manual_seed(1))
        for m in read_at_the_subject.modules
    }
    for name, same in (("nse", True), ("memit-seq", False)):
        editor = editor_of(read_at_the_subject, name, steps=2)
        asked = asked_of(editor.bench, news[:2], editor.contexts, 0)
        found = [editor.wanted(Work(dict(shifts)), news[:2], asked, lambda _: None) for shifts in ({}, moved)]
        assert torch.equal(*found) is same, name


@pytest.mark.parametrize("name", RULES)
def test_a_fact_that_does_not_name_its_subject_is_refused(
    read_at_the_subject: LoadedModel, single: LoadedModel, name: str
) -> None:
    editor = editor_of(single if rule_of(name).places == "one" else read_at_the_subject, name)
    mute = Fact(subject="Atlantis", prompt="The mayor of that town is", target="London")
    for attempt in (lambda: editor.require(mute), lambda: editor.learn(State(), Lesson([mute]))):
        with pytest.raises(BadInputError, match="does not mention its subject 'Atlantis'"):
            attempt()


def test_modules_that_a_rule_does_not_edit_are_refused(gpt2: LoadedModel, read_at_the_subject: LoadedModel) -> None:
    with pytest.raises(UsageError, match=r"memit edits at the last token of the subject, but found .*h\.2\.mlp"):
        require(LocateSettings(editor="memit"), Given(), gpt2.modules)
    with pytest.raises(UsageError, match="the editing rule rome edits one matrix, but found 2"):
        require(LocateSettings(editor="rome"), Given(), read_at_the_subject.modules)
    require(LocateSettings(editor="memit"), Given(), read_at_the_subject.modules)


def test_a_key_is_half_its_own_words_or_all_alike() -> None:
    row: Any = object()
    assert Asked([row], [row] * 5).weights(evenly=False) == [0.5] + [0.1] * 5
    assert Asked([row], [row] * 4).weights(evenly=True) == [0.2] * 5
    assert Asked([row, row], []).weights(evenly=False) == [0.5, 0.5]


def test_contexts_are_as_many_as_the_rule_was_published_with(read_at_the_subject: LoadedModel) -> None:
    def drawn(name: str, **told: Any) -> list[str]:
        settings = LocateSettings(editor=name, context_tokens=12, **told)
        return contexts_of(rule_of(name).fix(read_at_the_subject, settings, Given({}, LINES, [])))

    assert [len(drawn(name)) for name in RULES] == [20, 20, 5, 5, 5, 5, 5]
    assert drawn("rome", contexts=5) == drawn("memit") == drawn("memit")
    assert drawn("memit") != drawn("memit", seed=1)


# -- constants


def test_published_constants_are_those_of_the_model_at_hand() -> None:
    def of(name: str, known: tuple[str, int, int], **told: Any) -> Any:
        return constants_of(LocateSettings(editor=name, **told), known)

    xl, j, l3 = of("memit", GPT2_XL), of("memit", GPT_J), of("memit", LLAMA_3)
    assert [(c.steps, c.rate, c.clamp, c.c0) for c in (xl, j, l3)] == [
        (20, 0.5, 0.75, 20_000.0),
        (25, 0.5, 0.75, 15_000.0),
        (25, 0.1, 0.75, 15_000.0),
    ]
    assert of("memit", LLAMA_2).clamp == 4.0
    assert (of("rome", LLAMA_3).metric, of("rome", GPT_J).metric) == ("identity", "text")
    assert (of("emmet", GPT2_XL).c0, of("emmet", GPT_J).c0) == (1000.0, 1.0)
    assert (of("nse", GPT_J).neurons, of("nse", GPT2_XL).neurons) == (0.8, 1.0)
    absolute = of("alphaedit", GPT_J, units="published")
    assert (absolute.threshold, absolute.penalty) == (0.02, 10.0)
    assert of("alphaedit", LLAMA_3, units="published").penalty == 1.0
    assert of("nse", LLAMA_3, units="published").reach == 50.0 and of("nse", LLAMA_3).reach is None
    other = of("memit", ("llama", 30, 1536))
    assert (other.rate, other.c0, other.c0_share, other.threshold) == (None, None, 1.0, None)
    assert of("memit", GPT2_XL, steps=3, c0=7.0).steps == 3


MODELS = {
    "GPT-2 medium": GPT2_MEDIUM,
    "GPT-2 large": GPT2_LARGE,
    "GPT-2 XL": GPT2_XL,
    "GPT-J": GPT_J,
    "Llama-2 7B": LLAMA_2,
    "Llama-3 8B": LLAMA_3,
    "Llama-3.2 1B": LLAMA_32_1B,
    "Llama-3.2 3B": LLAMA_32_3B,
    "Mistral 7B": MISTRAL,
    "Qwen2 and 2.5 7B": QWEN_2,
}


def test_the_documented_table_is_what_models_get() -> None:
    """A line for each model that has constants of its own, and what it says is what the rules take."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
    table = page.partition("| model | layers | search |")[2].partition("\n\n")[0].splitlines()[2:]
    lines = {cells[0]: cells[1:] for row in table for cells in [[c.strip() for c in row.strip("|").split("|")]]}
    assert lines.keys() == MODELS.keys()

    def told(name: str, known: tuple[str, int, int]) -> str:
        c = constants_of(LocateSettings(editor=name), known)
        told = f"{c.steps} / {c.rate:g} / {c.decay:g} / {c.clamp:g}"
        return told + (", identity" if c.metric == "identity" else "")

    for name, known in MODELS.items():
        several, search, c0, one, alone = lines[name]
        assert default_entries(known[1], "one", known[0]) == [f"{one}@subject"] and told("rome", known) == alone
        assert told("r-rome", known) == alone
        published = constants_of(LocateSettings(editor="memit"), known)
        if not several:
            assert published.rate is None and published.c0 is None, "as of a model of which nothing is published"
            continue
        assert default_entries(known[1], "located", known[0]) == [f"{several}@subject"]
        assert told("memit", known) == search and f"{published.c0:.0f}" == c0
        for other in ("memit-seq", "alphaedit", "emmet", "nse"):
            assert told(other, known) == search


@pytest.mark.parametrize("known", [("gemma2", 26, 9216), ("gemma3_text", 18, 2048), ("llama", 32, 1536)])
def test_other_models_have_relative_constants(known: tuple[str, int, int]) -> None:
    """Gemma among them: a rate by the hidden state, c₀ by the inputs, layers by the depth."""
    for name in RULES:
        found = constants_of(LocateSettings(editor=name), known)
        assert found.rate is None and found.c0 is None and found.metric == "text"
        assert found.clamp == (4.0 if name in ("rome", "r-rome") else 0.75)
    if known[0] != "llama":
        assert default_entries(known[1], "located", known[0]) == default_entries(known[1], "located")


def test_a_model_is_known_by_its_type_depth_and_width(gpt2: LoadedModel) -> None:
    assert outline_of(gpt2) == ("gpt2", 4, 128)


@pytest.mark.parametrize(
    ("model", "layers", "several", "one"),
    [
        ("gpt2", 24, "3-7@subject", "8@subject"),
        ("gpt2", 48, "13-17@subject", "17@subject"),
        ("gptj", 28, "3-8@subject", "5@subject"),
        ("llama", 32, "4-8@subject", "5@subject"),
        ("llama", 30, "5-9@subject", "7@subject"),
        ("gpt2", 4, "0-1@subject", "0@subject"),
        ("gpt2", 1, "0-0@subject", "0@subject"),
    ],
)
def test_where_a_rule_edits_by_itself(model: str, layers: int, several: str, one: str) -> None:
    assert default_entries(layers, "located", model) == [several]
    assert default_entries(layers, "one", model) == [one]
    assert default_entries(32, "subject", "llama") == ["6-10@subject"]  # what stores of `search` always had
