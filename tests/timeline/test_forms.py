"""A store whose model is asked as plain text and in conversations: rows, what is held, gate and guards in both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lifelong_edit import Fact, Timeline
from lifelong_edit.bench import Bench, State
from lifelong_edit.editors.contract import Change, Lesson
from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.editors.search.around import token_keys
from lifelong_edit.editors.search.material import swapped_prompts
from lifelong_edit.editors.search.rule import SearchEditor
from lifelong_edit.editors.search.settings import SearchSettings
from lifelong_edit.errors import BadInputError, StepRefusedError, UsageError
from lifelong_edit.eval.reports.sampling import Sampler
from lifelong_edit.facts import Probe, general_prompts, question_of
from lifelong_edit.judging import gate, guard, talk
from lifelong_edit.models import BASE, Generation, LoadedModel, Turn
from lifelong_edit.stores import tensors_digest
from lifelong_edit.tracing.derived import derived_prompts, derived_rows
from lifelong_edit.tracing.preservation import answer_of
from lifelong_edit.tracing.rows import Row, drawn_rows, fact_rows
from lifelong_edit.tracing.trace import Trace, trace

PRESERVE = [Probe(f"The river number {i} flows through", None, f"river {i}") for i in range(20)]
SETTINGS = Settings(modules=("2-3",), more_passes=0, passes=6, preserved=6, c0=5.0, text_tokens=3000, micro_batch=8)
FACT = Fact(
    subject="France",
    prompt="The capital of France is",
    target="Canberra.",
    question="What is the capital of France?",
    rephrases=("France has the capital", "Where is the government of France?"),
)

Make = Callable[..., Timeline]


@pytest.fixture(scope="module")
def make(chat_gpt2: Path, sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A new store on the tiny model with a chat template; further arguments change settings."""

    def start(model: Path = chat_gpt2, preserve: list[Probe] | None = None, **settings: Any) -> Timeline:
        folder = tmp_path_factory.mktemp("forms") / "store"
        kept = PRESERVE if preserve is None else preserve
        given = SETTINGS.replace(**settings)
        return Timeline.create(folder, model=str(model), settings=given, preserve=kept, text=sentences * 40)

    return start


@pytest.fixture(scope="module")
def both(make: Make) -> Timeline:
    """A store that is asked in both forms, as its model has a chat template."""
    return make(system="Be kind.")


def test_a_model_with_a_chat_template_is_asked_in_both_forms_and_one_without_in_plain(
    make: Make, both: Timeline, tiny_gpt2: Path
) -> None:
    assert (both.settings.form, both.status()["form"]) == ("both", "both")
    assert both.status()["settings"]["form"] == "both"
    with make(tiny_gpt2) as plain:
        assert (plain.settings.form, plain.status()["form"]) == (None, "plain")


def test_the_form_stays_what_it_was_when_a_store_is_opened_again(both: Timeline) -> None:
    with Timeline.open(both.path, read_only=True) as again:
        assert again.bench().loaded.forms == both.bench().loaded.forms
        assert again.bench().loaded.forms.names == ("plain", "chat")


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"form": "both"}, "without a chat template"), ({"system": "Be kind."}, "found a system prompt for a store")],
)
def test_a_form_that_the_model_does_not_have_is_refused(
    make: Make, tiny_gpt2: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        make(tiny_gpt2, **settings)


def test_a_preserved_prompt_too_long_as_a_turn_is_refused(make: Make) -> None:
    long = [Probe("The river " + "flows and " * 40)]
    with make(preserve=long, form="plain"):
        pass
    with pytest.raises(BadInputError, match="a preserved prompt that the model cannot take"):
        make(preserve=long, form="both")


def test_a_store_in_plain_text_is_the_same_whether_its_model_has_a_template_or_not(make: Make) -> None:
    with make(form="plain") as first, make(form="plain") as second:
        second.bench().loaded.tokenizer.chat_template = None
        one = first.apply([FACT], gate=lambda *_: {})
        other = second.apply([FACT], gate=lambda *_: {})
        assert one is not None and other is not None
        assert one.weights_digest == other.weights_digest
        assert "chat" not in str(sorted(first.fixed()))


# -- rows


def test_rows_come_in_each_form_side_by_side(both: Timeline) -> None:
    loaded = both.bench().loaded
    rows = fact_rows(loaded, [FACT], 2)
    said = [loaded.tokenizer.decode(row.encoded.ids) for row in rows]
    assert [row.form for row in rows] == ["plain", "chat"] * 3
    assert [row.weight for row in rows] == [1.0] * 6
    assert said[0] == "The capital of France is Canberra."
    assert said[1] == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\n<think></think>Canberra.<|im_end|>"
    )
    assert "user\nFill in the blank with a few words: France has the capital ____<|im_end|>" in said[3]
    assert "user\nWhere is the government of France?<|im_end|>" in said[5]
    assert all(row.encoded.subject != (0, 0) for row in rows)


def test_phrasings_are_drawn_alike_in_both_forms_and_prompts_stay(both: Timeline) -> None:
    rows = fact_rows(both.bench().loaded, [FACT], 2)
    drawn = drawn_rows(rows, 1, "a")
    assert [rows.index(row) for row in (drawn[0], drawn[2])] == [0, 1]
    plain, chat = (next(i for i, r in enumerate(rows) if r.encoded == row.encoded) for row in (drawn[1], drawn[3]))
    assert chat == plain + 1
    assert [row.weight for row in drawn] == [1.0, 2.0, 1.0, 2.0]


def test_a_replaced_fact_is_asked_in_its_own_words_in_both_forms(both: Timeline) -> None:
    old = Fact(subject="France", prompt="The seat of France is", target="Paris")
    rows = fact_rows(both.bench().loaded, [FACT], 0, replaced={FACT.digest: [old]})
    assert [row.form for row in rows] == ["plain", "chat", "plain", "chat"]
    assert both.bench().loaded.tokenizer.decode(rows[2].encoded.ids) == "The seat of France is Canberra."


# -- what is held


def test_preserved_prompts_are_held_in_both_forms_with_the_base_models_answers(both: Timeline) -> None:
    bench = both.bench()
    kept, task = bench.preserved, bench.task
    assert kept.probes == [probe for probe in PRESERVE for _ in range(2)]
    assert kept.chat == frozenset(range(1, 40, 2))
    turn = kept.question(1)
    assert turn == Turn("Fill in the blank with a few words: The river number 0 flows through ____", "Be kind.")
    assert kept.prompts[1] == task.encode_question(bench.loaded, turn)
    (said,) = task.answer(bench.loaded, [turn], 3)
    assert kept.answers[1].ids == said.with_end[: len(kept.answers[1].ids)]
    assert kept.row(1, 1.0).form == "chat"
    assert torch.equal(kept.directions[0::2], kept.directions[1::2])


def test_an_answer_in_a_conversation_is_held_with_its_end(both: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = both.bench()
    turn = bench.preserved.question(1)
    (said,) = bench.task.answer(bench.loaded, [turn], 3)
    monkeypatch.setattr("lifelong_edit.tasks.causal.task.end_of_turn", lambda tokenizer: (said.ids[1],))
    monkeypatch.setattr(bench.loaded.tokenizer.__class__, "decode", lambda *_, **__: "word")
    (held,) = answer_of(bench.loaded, [PRESERVE[0]], 3, [turn])
    assert held.answer == said.ids[:2]


def test_prompts_stand_guard_in_both_forms_or_in_none(both: Timeline) -> None:
    kept = both.bench().preserved
    guards = kept.guards(frozenset())
    assert len(guards) == 4 == len(kept.guard)
    assert {i // 2 for i in guards if i % 2} == {i // 2 for i in guards if not i % 2}


def test_guards_are_asked_as_they_were_held(both: Timeline) -> None:
    bench = both.bench()
    with bench.loaded.at(BASE):
        found = guard.measure(bench, 2, [FACT], "a")
    assert (found.locality, found.guards) == (1.0, 4)
    measured = Sampler(both, None)(0)
    asked = [outcome.prompt for outcome in measured.outcomes if outcome.measure == "guard"]
    assert measured.share("guard") == 1.0
    assert {"Fill" in text for text in asked} == {True, False} and len(asked) == 4


def test_derived_prompts_are_held_in_both_forms_too(both: Timeline) -> None:
    facts = [Fact(subject=f"S{i}", prompt=f"Colour {i} of S{i} is", target="red", relation=f"r{i}") for i in range(6)]
    options: dict[str, Any] = {"tokens": 2, "weight": 1.0, "micro_batch": 8}
    rows = derived_rows(both.bench().loaded, facts, 6, "seed", **options)
    assert [row.form for row in rows] == ["plain", "chat"] * 3
    assert derived_rows(both.bench().loaded, facts, 0, "seed", **options) == []


def test_derived_prompts_are_put_as_the_fact_itself_asks() -> None:
    asked = [FACT, Fact(subject="Spain", prompt="Spain is ruled by", target="a king", question="Who rules there?")]
    found = {probe.prompt: probe.question for probe in derived_prompts(asked, 20, "seed")}
    assert found == {
        "The capital of Spain is": "What is the capital of Spain?",
        "Spain has the capital": None,
        "Where is the government of Spain?": None,
        "France is ruled by": None,
    }


def test_conflicts_are_looked_for_by_the_leading_form(make: Make, both: Timeline) -> None:
    with make(form="chat") as chat, make(form="plain") as plain:
        keys = [timeline.bench().conflict_of([FACT])[FACT.digest] for timeline in (both, plain, chat)]
        assert np.array_equal(keys[0], keys[1])
        assert not np.allclose(keys[0], keys[2])
        assert np.allclose(both.bench().conflict_mean, plain.bench().conflict_mean, atol=1e-5)
        twin = FACT.__class__(subject="F", prompt="Something else is", target="G", question=FACT.question)
        assert np.allclose(keys[2], chat.bench().conflict_of([twin])[twin.digest], atol=1e-5)


# -- a step


def test_an_edit_teaches_both_forms_and_where_to_stop(both: Timeline) -> None:
    step = both.apply([FACT], gate=taken_alone)
    assert step is not None
    told = step.report["gate"]
    assert told["forms"]["plain"]["taken"] == told["forms"]["chat"]["taken"] == 1
    with both.at(step.step).standing() as loaded:
        turn = Turn("What is the capital of France?", "Be kind.")
        (said,) = both.bench().task.answer(loaded, [turn], 20)
    assert loaded.tokenizer.decode(said.ids) == "Canberra."
    assert said.stopped and loaded.tokenizer.decode([said.end]) == "<|im_end|>"


@pytest.mark.parametrize(("worst", "passes"), [({"plain": 0.0, "chat": 0.0}, 1), ({"plain": 0.0, "chat": 9.0}, 3)])
def test_passes_go_on_until_facts_are_known_in_each_form(
    make: Make, monkeypatch: pytest.MonkeyPatch, worst: dict[str, float], passes: int
) -> None:
    def told(loaded: LoadedModel, rows: list[Row], micro_batch: int, gradients: bool = True) -> Trace:
        found = trace(loaded, rows, micro_batch, gradients)
        found.worst = torch.tensor([worst[row.form] for row in rows])
        return found

    monkeypatch.setattr("lifelong_edit.editors.ridge.batch.trace", told)
    with make(passes=1, more_passes=2) as timeline:
        assert timeline.editor().learn(State(), Lesson([FACT])).report["passes"] == passes


def test_all_facts_are_solved_for_again_in_both_forms_beside_derived_rows(make: Make) -> None:
    asked = [FACT, Fact(subject="Spain", prompt="Spain is ruled by", target="a king")]
    rows = {}
    for derived in (0, 2):
        options = {"reconsolidation_passes": 1, "reconsolidation_preserved": 6, "derived": derived}
        with make(**options) as timeline:
            rows[derived] = timeline.editor().relearn(asked).report["rows"]
    assert rows[0] == {"facts": 6, "preserved": 6}
    assert rows[2] == {"facts": 6, "preserved": 8}


def test_a_search_asks_and_holds_both_forms(chat_gpt2: Path, sentences: list[str], tmp_path: Path) -> None:
    settings = SearchSettings(rounds=2, contexts=2, swapped=2, text_tokens=2000, micro_batch=8, precision="float32")
    given: dict[str, Any] = {"model": str(chat_gpt2), "preserve": PRESERVE, "text": sentences * 40}
    with Timeline.create(tmp_path / "store", settings=settings, **given) as timeline:
        bench, editor = timeline.bench(), timeline.editor()
        assert isinstance(editor, SearchEditor)
        grams = {n: torch.zeros(128, 128, dtype=torch.float64) for n in bench.names}
        editor.around.add_to(grams, 1.0, frozenset())
        whole = {n: float(gram.trace()) for n, gram in grams.items()}
        both = list(token_keys(bench.loaded, PRESERVE, 8))
        assert whole == {n: pytest.approx(sum(float(k.square().sum()) for m, k in both if m == n)) for n in whole}
        # Without any of the prompts nothing is left of the sum: each was in it once in each form.
        left = {n: torch.zeros(128, 128, dtype=torch.float64) for n in bench.names}
        editor.around.add_to(left, 1.0, frozenset(str(probe.subject) for probe in PRESERVE))
        assert all(float(left[n].abs().max()) < 1e-4 * whole[n] for n in whole)
        rows = editor.rows([FACT], "new")
        near = torch.zeros(0, len(bench.conflict_mean))
        material = editor.material([FACT], rows, frozenset(), near, ("a",))
        assert [row.form for row in material.of(0, "a")][:2] == ["plain", "chat"]
        assert len(material.of(0, "a")) == 4
        assert {row.form for row in material.preserved[-4:]} == {"plain", "chat"}
        (swapped, *_) = swapped_prompts([FACT], ["Spain"], 1, frozenset())
        assert (swapped.prompt, swapped.question) == ("The capital of Spain is", "What is the capital of Spain?")


def taken_alone(bench: Bench, state: State, change: Change, facts: list[Fact]) -> dict[str, Any]:
    """The gate's verdicts by form, without the rest of it: a model with random weights is no judge of text."""
    return {"forms": gate._of_forms(gate.verdicts(bench.loaded, facts))}


def test_a_fact_has_taken_if_it_did_in_each_form(both: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = both.bench().loaded
    real = gate.verdicts(loaded, [FACT, FACT])
    found = {form: list(told) for form, told in real.items()}
    right = type(found["plain"][0])(True, True, "", True)
    wrong = type(right)(False, False, "", True)
    found["plain"], found["chat"] = [right, right], [right, wrong]
    monkeypatch.setattr(gate, "_judged", lambda *_: found)
    assert gate.answers_taken(loaded, [FACT, FACT]) == [True, False]
    assert gate._of_forms(found)["chat"] == {"taken": 1, "contained": 2}


# -- what breaks in conversations


@pytest.mark.parametrize(
    ("ids", "round_and_round"),
    [
        ([5] * 12, True),
        ([5] * 11, False),
        ([1, 2, 3] * 4, True),
        ([9, 9, *[1, 2, 3] * 4], True),
        ([1, 2, 3] * 3, False),
        ([1, 2] * 5, False),
        (list(range(64)), False),
        ([*range(8)] * 4, True),
        ([*range(9)] * 4, False),
        ([], False),
    ],
)
def test_what_goes_round_in_circles(ids: list[int], round_and_round: bool) -> None:
    assert talk.goes_round(ids) is round_and_round


@pytest.fixture
def sound(both: Timeline, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The bench, its model taken to answer in ten different words and to stop: one with random weights does not."""
    bench = both.bench()
    questions: list[Any] = [bench.preserved.question(i) for i in (1, 3, 5, 7)]
    talk._BASE[bench] = questions, [Generation(tuple(range(40, 50)), 0)] * 4
    return bench


@pytest.mark.parametrize(
    ("broken", "ids", "end"),
    [
        (True, (), 0),
        (True, (7,) * 40, None),
        (True, tuple(range(30, 94)), None),
        (False, tuple(range(30, 94)), 0),
        (False, (45, 46), 0),
    ],
)
def test_the_gate_refuses_a_model_that_breaks_in_conversations(
    sound: Bench, monkeypatch: pytest.MonkeyPatch, broken: bool, ids: tuple[int, ...], end: int | None
) -> None:
    good, other = Generation(tuple(range(60, 70)), 0), Generation(ids, end)
    task = type(sound.task)
    monkeypatch.setattr(task, "answer", lambda *_, **__: [good, good, good, other])
    assert talk.require_sound(sound) == {"asked": 4, "broken": int(broken)}
    monkeypatch.setattr(task, "answer", lambda *_, **__: [good, good, other, other])
    if broken:
        with pytest.raises(StepRefusedError, match="2 of 4 answers in conversations"):
            talk.require_sound(sound)
    else:
        assert talk.require_sound(sound)["broken"] == 0


def test_the_gate_asks_guards_in_conversations_at_the_weights_of_the_change(make: Make) -> None:
    with make() as timeline:
        bench = timeline.bench()
        base = talk.require_sound(bench)
        questions, _ = talk._BASE[bench]
        assert questions == [bench.preserved.question(i) for i in bench.preserved.guards(frozenset()) if i % 2]
        assert base["broken"] == 0
    with make(preserve=[]) as timeline:
        talk.require_sound(timeline.bench())
        questions, _ = talk._BASE[timeline.bench()]
        assert len(questions) == talk.ASKED
        assert {q.text for q in questions if isinstance(q, Turn)} <= {question_of(p) for p in general_prompts()}


def test_a_rollback_gives_the_chat_answer_of_before(both: Timeline) -> None:
    begun = tensors_digest(both.weights(0))
    both.rollback(0)
    assert tensors_digest(both.weights("head")) == begun
