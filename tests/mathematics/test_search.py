"""Targets that are searched with the edit in place: what is a variable, what a round moves and asks, what holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lifelong_edit.bench import Bench, Fixed, State, prepare
from lifelong_edit.editors.contract import Given, Lesson
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.editors.search.adapters import Adapted
from lifelong_edit.editors.search.around import AROUND, Around, token_keys
from lifelong_edit.editors.search.contexts import contexts_of
from lifelong_edit.editors.search.material import anchored, anchored_rows, swapped_prompts
from lifelong_edit.editors.search.rule import READ, SearchEditor
from lifelong_edit.editors.search.searching import Adam, ThroughSolve, differentiated
from lifelong_edit.editors.search.settings import SearchSettings
from lifelong_edit.facts import Fact, Probe, general_names, mentions
from lifelong_edit.models import LoadedModel, encode_prompt
from lifelong_edit.stores.tensors import materialise
from lifelong_edit.tracing.rows import fact_rows
from lifelong_edit.tracing.trace import trace

SMALL = SearchSettings(
    rounds=4,
    more_rounds=0,
    contexts=3,
    swapped=2,
    text_tokens=2000,
    micro_batch=8,
    rehearse=2,
    precision="float32",
    c0=50.0,
    rate=0.3,
    decay=0.0,
    preserved=8,
    preserved_at_once=4,
    reconsolidation_rounds=3,
    reconsolidation_facts=5,
)
TEXT = ["The river was long and the people of the town went home. Nobody knew where the road would lead them to."] * 40


@pytest.fixture(scope="module")
def bench(gpt2: LoadedModel, probes: list[Probe]) -> Bench:
    """A bench of the rule on the tiny GPT-2, edited at the subject and at the answer."""
    return bench_of(gpt2, SMALL, probes)


def bench_of(loaded: LoadedModel, settings: SearchSettings, probes: list[Probe]) -> Bench:
    """A bench with what `init` would fix."""
    kept = rule_of("search").fix(loaded, settings, Given({}, TEXT, probes))
    measured = prepare(loaded, settings, text=TEXT, preserve=probes, rule=kept)
    return Bench(loaded, settings, Fixed.of(measured.arrays()))


def search_of(editor: SearchEditor, facts: list[Fact]) -> ThroughSolve:
    """A search for facts from the base, about to begin."""
    bench, drawn = editor.bench, ("test",)
    rows = editor.rows(facts, "new")
    material = editor.material(facts, rows, frozenset(), torch.zeros(0, len(bench.conflict_mean)), drawn)
    shifts = editor.shifts_of(State())
    held = editor.held({}, frozenset())
    variables = editor.variables(material, shifts, held)
    return ThroughSolve(bench, editor.settings, variables, material, drawn, shifts=shifts)


def test_a_variable_is_what_its_keys_outputs_change_by(bench: Bench, news: list[Fact]) -> None:
    """In the mean over the keys of a group, and to the others what NumPy's ridge says."""
    editor = SearchEditor(bench)
    search = search_of(editor, news[:4])
    material, held = search.material, editor.held({}, frozenset())
    read = [[*own, *behind[:READ]] for own, behind in zip(material.rows, material.behind, strict=True)]
    traced = trace(bench.loaded, [row for own in read for row in own], 8, gradients=False)
    fact = np.repeat(range(4), [len(own) for own in read])
    for module in (m for m in bench.loaded.modules if m.positions == "subject"):
        name = module.name
        k, group = traced.keys[name].double().numpy(), fact[traced.row[name].numpy()]
        assert len(k) == len(fact)  # one token of each row
        member = np.eye(4)[group] / np.bincount(group)[group][:, None]
        ridge = np.exp(SMALL.log_ridge) * bench.text_gram.trace(name) / k.shape[1]
        gram = k.T @ (k / np.bincount(group)[group][:, None])
        left = np.linalg.solve(gram + held[name].numpy() + ridge * np.eye(k.shape[1]), k.T @ member)
        left /= np.diag(member.T @ k @ left)
        found = search.variables.left[name].double().numpy()
        assert np.abs(found - left).max() < 1e-5 * np.abs(left).max()  # U is float32
        assert np.abs(np.diag(member.T @ k @ found) - 1).max() < 1e-4
    upper = next(m for m in bench.loaded.modules if m.positions == "answer")
    wanted = [i for i, own in enumerate(material.rows) for _ in range(own[0].positions)]
    assert search.variables.owner[upper.name].tolist() == wanted


def test_the_gradient_is_that_of_the_loss_with_the_edit_in_place(bench: Bench, news: list[Fact]) -> None:
    """Central differences of the summed loss at the weights W₀ + U(D ± h) against what a round differentiates."""
    search = search_of(SearchEditor(bench), news[:3])
    own = [row for i in range(3) for row in search.material.of(i)] + search.material.held(4)
    weights = [0.5 + 0.1 * i for i in range(len(own))]
    left = search.variables.left
    right = {n: torch.zeros_like(d, requires_grad=True) for n, d in search.variables.right.items()}
    with bench.loaded.at(Adapted({}, left, right)):
        differentiated(bench, SMALL, own, weights, list(right.values()))
    generator = torch.Generator().manual_seed(0)
    for name, variable in right.items():
        assert variable.grad is not None
        direction = torch.randn(variable.shape, generator=generator)
        slope = float((variable.grad * direction).sum())
        step = 1e-2 / float(direction.norm())
        values = []
        for sign in (1.0, -1.0):
            with bench.loaded.at({name: sign * step * left[name] @ direction}):
                losses, _ = differentiated_only(bench, own)
                values.append(float((losses * torch.tensor(weights)).sum()))
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=0.03, abs=0.02)


def differentiated_only(bench: Bench, rows: list) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[type-arg]
    """Losses of rows at the model as it stands, none differentiated."""
    traced = trace(bench.loaded, rows, 8, gradients=False)
    return traced.losses, traced.worst


def test_hooks_and_weights_are_the_same_edit(bench: Bench, news: list[Fact]) -> None:
    search = search_of(SearchEditor(bench), news[:3])
    generator = torch.Generator().manual_seed(1)
    right = {n: 0.1 * torch.randn(d.shape, generator=generator) for n, d in search.variables.right.items()}
    ids = torch.tensor([encode_prompt(bench.loaded.tokenizer, news[0].prompt)])
    with torch.no_grad():
        base = bench.loaded.model(ids).logits
        with bench.loaded.at(Adapted({}, search.variables.left, right)):
            hooked = bench.loaded.model(ids).logits
        with bench.loaded.at({n: left @ right[n] for n, left in search.variables.left.items()}):
            weighed = bench.loaded.model(ids).logits
        assert torch.equal(bench.loaded.model(ids).logits, base)  # the hooks are gone
    assert float((hooked - weighed).abs().max()) < 1e-3 < float((hooked - base).abs().max())


def test_rounds_lower_the_loss_and_facts_at_rest_are_left_alone(bench: Bench, news: list[Fact]) -> None:
    search = search_of(SearchEditor(bench), news[:4])
    search.run(6)
    assert search.losses[-1] < 0.7 * search.losses[0]
    asked: list[list[int]] = []
    resting = search_of(SearchEditor(bench), news[:4])
    first = resting.round

    def noted(facts: list[int], awake: list[int], number: int):  # type: ignore[no-untyped-def]
        asked.append(list(awake))
        return _settled(first(facts, awake, number), {0, 2})

    resting.round = noted  # type: ignore[method-assign, assignment]
    resting.run(4)
    assert asked == [[0, 1, 2, 3], [1, 3], [1, 3], [0, 1, 2, 3]]  # all again in every fourth round


def _settled(asked, facts: set[int]):  # type: ignore[no-untyped-def]
    asked.worst = {fact: 0.0 if fact in facts else 9.0 for fact in asked.worst}
    return asked


def test_a_step_is_that_of_adam_in_units_of_the_outputs(bench: Bench, news: list[Fact]) -> None:
    """Against torch's own, over three rounds of gradients, some keys left out of the second; with decay beside it."""
    variables = search_of(SearchEditor(bench), news[:3]).variables
    adam, generator = Adam(variables, 0.1, 0.0), torch.Generator().manual_seed(2)
    name = next(iter(variables.right))
    count, width = variables.right[name].shape
    judges = [torch.zeros(width, requires_grad=True) for _ in range(count)]
    theirs = [torch.optim.Adam([j], lr=0.1 * variables.scale[name], betas=Adam.BETAS, eps=1e-12) for j in judges]
    for keys in (list(range(count)), [0], list(range(count))):
        gradient = torch.randn(len(keys), width, generator=generator)
        adam.step(variables, name, torch.tensor(keys), gradient)
        for key, own in zip(keys, gradient, strict=True):
            judges[key].grad = own
            theirs[key].step()
    wanted = torch.stack([j.detach() for j in judges])
    assert float((variables.right[name] - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
    before = variables.right[name].clone()
    Adam(variables, 0.1, 0.25).step(variables, name, torch.tensor([0]), torch.zeros(1, width))
    assert torch.equal(variables.right[name][0], 0.75 * before[0])
    assert torch.equal(variables.right[name][1:], before[1:])


def test_a_fact_is_edited_at_the_last_token_of_its_subject_or_of_its_prompt(loaded: LoadedModel) -> None:
    named = Fact(subject="Paris the Great", prompt="The mayor of Paris the Great is", target="London")
    mute = Fact(subject="Atlantis", prompt="The mayor of that town is", target="London")
    for fact, text in ((named, "The mayor of Paris the Great"), (mute, "The mayor of that town is")):
        row = fact_rows(loaded, [fact], 0)[0]
        last = len(encode_prompt(loaded.tokenizer, text))
        assert anchored(row).encoded.subject == (last - 1, last)
    lower = [m for m in loaded.modules if m.positions == "subject"]
    assert anchored(fact_rows(loaded, [named], 0)[0]).positions_in(lower[0]) == 1


def test_prompts_with_other_subjects_never_speak_of_edited_ones(news: list[Fact]) -> None:
    names = [fact.subject for fact in news]
    taken = frozenset(fact.subject.casefold() for fact in news[:4])
    found = swapped_prompts(news[:4], names, 3, taken, "draw")
    assert len(found) > 4  # one prompt for all of them, so the same prompt comes for several facts
    for probe in found:
        assert probe.subject in names[4:]
        assert mentions(probe.prompt, probe.subject)
        assert not any(mentions(probe.prompt, fact.subject) and probe.prompt == fact.prompt for fact in news[:4])
    assert found == swapped_prompts(news[:4], names[::-1], 3, taken, "draw")
    assert found != swapped_prompts(news[:4], names, 3, taken, "another draw")


def test_names_that_everybody_knows_stand_in_where_preserved_prompts_name_few(bench: Bench, news: list[Fact]) -> None:
    """Of `probes` none has fifty subjects; with as many of their own the general ones are not drawn."""
    tokenizer = bench.loaded.tokenizer
    few = search_of(SearchEditor(bench), news[:2]).material.preserved
    texts = {tokenizer.decode(row.encoded.prompt) for row in few}
    assert any(name in text for text in texts for name in general_names())
    many = bench_of(bench.loaded, SMALL, [Probe(f"Who is {i}?", None, f"Nobody {i}") for i in range(60)])
    texts = {tokenizer.decode(row.encoded.prompt) for row in search_of(SearchEditor(many), news[:2]).material.preserved}
    assert not any(name in text for text in texts for name in general_names())


def test_all_tokens_of_preserved_prompts_are_held_but_for_edited_subjects(bench: Bench, probes: list[Probe]) -> None:
    keys: dict[str, list[np.ndarray]] = {}
    for name, part in token_keys(bench.loaded, [p for p in probes if p.subject != "Paris"], 4):
        keys.setdefault(name, []).append(part.double().numpy())
    grams = {n: torch.zeros(len(bench.scale[n]), len(bench.scale[n]), dtype=torch.float64) for n in bench.names}
    Around(bench).add_to(grams, 2.0, frozenset({"paris"}))
    for name, gram in grams.items():
        every = np.concatenate(keys[name])
        assert len(every) == sum(
            len(encode_prompt(bench.loaded.tokenizer, p.prompt)) for p in probes if p.subject != "Paris"
        )
        wanted = 2 * every.T @ every
        assert np.abs(gram.numpy() - wanted).max() < 1e-4 * np.abs(wanted).max()  # keys are float32
    assert any(name.startswith(AROUND) for name in bench.fixed.rule)


def test_contexts_are_drawn_from_the_text_and_by_the_model_and_stay(bench: Bench, probes: list[Probe]) -> None:
    contexts = contexts_of(bench.fixed.rule)
    assert contexts == contexts_of(bench_of(bench.loaded, SMALL, probes).fixed.rule)
    assert all(context.endswith(". ") for context in contexts)
    assert contexts_of({}) == []
    sentences = " ".join(TEXT)
    assert any(context.rstrip(". ") in sentences for context in contexts)


def test_a_shift_is_stored_as_the_factors_that_were_found(bench: Bench, news: list[Fact]) -> None:
    change = SearchEditor(bench).learn(State(digest="a"), Lesson(news[:2]))
    assert change.shift is not None
    for name, shift in change.shift.items():
        assert np.isfinite(materialise(shift)).all()
        assert np.linalg.norm(materialise(shift)) == pytest.approx(change.report["norm"][name], rel=1e-4)  # type: ignore[index]
    assert set(change.keys()) == {fact.digest for fact in news[:2]}


def test_a_batch_that_has_not_taken_has_further_rounds(bench: Bench, news: list[Fact]) -> None:
    def rounds(**changes: float) -> object:
        editor = SearchEditor(bench_of(bench.loaded, SMALL.replace(**changes), bench.preserved.probes))
        return editor.learn(State(digest="a"), Lesson(news[:2])).report["rounds"]

    assert rounds(rounds=1, more_rounds=2) == 3
    assert rounds(rounds=1, more_rounds=2, taken_enough=0.0) == 1


def test_phrasings_given_are_rows_and_one_of_them_is_asked_in_a_round(bench: Bench, news: list[Fact]) -> None:
    rows = anchored_rows(bench, SMALL, news[:2])
    assert [len(rows[f.digest]) for f in news[:2]] == [3, 3]
    material = search_of(SearchEditor(bench), news[:2]).material
    texts = {tuple(row.encoded.ids) for number in range(12) for row in material.of(0, number)}
    asked = material.of(0, 0)
    assert asked[0] is material.rows[0][0]
    assert len(asked) == 2 + bool(material.behind[0])
    assert {tuple(row.encoded.ids) for row in material.rows[0]} <= texts
