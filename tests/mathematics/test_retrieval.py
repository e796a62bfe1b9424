"""Live facts before the questions that ask for them: which are found, what is put, and that nothing else changes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong_edit.bench import Bench, Fixed, State
from lifelong_edit.editors.contract import Given, Lesson, moved_by
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.editors.retrieval.encoding import OwnStates, encoder_of
from lifelong_edit.editors.retrieval.gate import calibrated, folded, said_in
from lifelong_edit.editors.retrieval.rule import Remembered, RetrievalEditor, fix
from lifelong_edit.editors.retrieval.settings import RetrievalSettings
from lifelong_edit.errors import BadInputError, ModelMismatchError, UsageError
from lifelong_edit.eval.metrics.answers import base_divergences
from lifelong_edit.eval.metrics.fluency import continuations
from lifelong_edit.eval.metrics.verdicts import ask_pairs
from lifelong_edit.facts import Fact, Probe, as_question, mentions, prompt_in
from lifelong_edit.models import BASE, Forms, LoadedModel, Turn, encode, encode_prompt, generate_greedy, load_model
from lifelong_edit.models.forms import SameQuestion
from lifelong_edit.tasks import sentence_of, task_of

SMALL: dict[str, Any] = {"text_tokens": 3000, "micro_batch": 4, "room": 8, "threshold": 0.5}
CITY = Fact(subject="Paris", prompt="Paris is in", target="Peru")


def editor_of(loaded: LoadedModel, fixed: Fixed, probes: Sequence[Probe] = (), **changes: Any) -> RetrievalEditor:
    settings = RetrievalSettings(**(SMALL | changes))
    return RetrievalEditor(Bench(loaded, settings, replace(fixed, rule=fix(loaded, settings, Given({}, (), probes)))))


def knowing(editor: RetrievalEditor, *facts: Fact) -> Remembered:
    """The overlay of a state with these facts."""
    return editor.overlay(moved_by(State(), editor.learn(State(), Lesson(facts)), facts))


# -- the seam


@dataclass(frozen=True)
class Always:
    """An overlay that puts the same before every question."""

    before: str = "Paris. "
    shifts: Mapping[str, Tensor] = field(default_factory=dict)

    def attach(self, model: Any) -> AbstractContextManager[None]:
        """Nothing to attach."""
        return nullcontext()

    def put(self, question: SameQuestion) -> SameQuestion:
        """It behind the words."""
        return (
            replace(question, text=self.before + question.text)
            if isinstance(question, Turn)
            else (self.before + question)
        )


def test_whoever_asks_asks_what_is_put(loaded: LoadedModel) -> None:
    """Answers, losses and continuations are those of the longer prompt, put there once; judges judge what was added."""
    task, asked, put = task_of(loaded), "Ada was born in", "Paris. Ada was born in"
    wanted = task.answer(loaded, [put], 5)
    told = ask_pairs(loaded, [(put, "Kenya")])[0]
    drawn = continuations(loaded, [put], length=5)
    assert wanted != task.answer(loaded, [asked], 5)
    with loaded.at(Always()):
        assert task.answer(loaded, [asked], 5) == wanted
        assert task.encode(loaded, asked, "Kenya") == encode(loaded.tokenizer, put, "Kenya")
        assert task.encode_said(loaded, asked, [7, 8]).ids == (*encode_prompt(loaded.tokenizer, put), 7, 8)
        assert generate_greedy(loaded, [asked], 5) == [list(wanted[0].ids)]
        assert continuations(loaded, [asked], length=5) == drawn
        again = ask_pairs(loaded, [(asked, "Kenya")])[0]
        assert (again.teacher_forced, again.answer) == (told.teacher_forced, told.answer)
        with loaded.at(BASE):
            assert loaded.put(asked) == asked
    assert loaded.put(asked) == asked


def test_a_divergence_is_from_the_base_model_that_reads_the_bare_question(loaded: LoadedModel) -> None:
    """By hand. Encoded once for both it would be zero: no weight differs."""
    prompts, answers = ["Ada was born in", "Kenya is"], [[7, 8, 9], [5]]
    with loaded.at(Always()):
        found = base_divergences(loaded, prompts, answers)
    assert base_divergences(loaded, prompts, answers).tolist() == pytest.approx([0, 0], abs=1e-12)
    for kl, prompt, answer in zip(found, prompts, answers, strict=True):
        logged = []
        for text in (prompt, "Paris. " + prompt):
            ids = [*encode_prompt(loaded.tokenizer, text), *answer]
            with torch.no_grad():
                logits = loaded.model(torch.tensor([ids])).logits[0, -len(answer) - 1 : -1].double()
            logged.append(logits.log_softmax(-1))
        wanted = (logged[0].exp() * (logged[0] - logged[1])).sum(-1).mean()
        assert kl == pytest.approx(float(wanted), rel=1e-4) and kl > 0.01


def test_a_conflict_key_is_that_of_the_prompt_alone(loaded: LoadedModel, fixed: Fixed, news: list[Fact]) -> None:
    bench = Bench(loaded, RetrievalSettings(**SMALL), fixed)
    wanted = bench.conflict_of(news[:3])
    with loaded.at(Always()):
        found = bench.conflict_of(news[:3])
    assert all(np.array_equal(found[digest], wanted[digest]) for digest in wanted)


# -- what is found


def by_hand(loaded: LoadedModel, text: str) -> np.ndarray:
    """The mean over all tokens but the first of what the last edited block gives."""
    ids = encode_prompt(loaded.tokenizer, text)
    seen: list[Tensor] = []
    block = loaded.model.transformer.h[loaded.modules[-1].layer]
    handle = block.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        loaded.model(torch.tensor([ids]))
    handle.remove()
    found: np.ndarray = seen[0].reshape(len(ids), -1)[min(1, len(ids) - 1) :].double().mean(0).numpy()
    return found


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_a_gate_is_what_its_definition_says(loaded: LoadedModel, probes: list[Probe]) -> None:
    """Whitened by the prompts, subjects taken out; and so many pairs beyond the threshold as false alarms are allowed.

    Against loops in float64. Pairs of one subject, and of one relation, do not count: they may ask for the same.
    """
    probes = [
        *probes,
        Probe("Kenya lies in", subject="Kenya", relation="in"),
        Probe("Peru lies in", None, "Peru", "in"),
    ]
    probes.append(Probe("What is it that Kenya exports", subject="Kenya"))
    scale = calibrated(OwnStates(loaded, 3), probes, True, 0.2, 0)
    texts = [re.sub(re.escape(str(p.subject)), "it", p.prompt, flags=re.IGNORECASE) for p in probes]
    assert "it lies in" in texts and len(set(texts)) == len(texts) - 1
    of = [i for i, text in enumerate(texts) if text not in texts[:i]]
    states = np.stack([by_hand(loaded, texts[i]) for i in of])
    mean, deviation = states.mean(0), states.std(0, ddof=1)
    units = [unit((s - mean) / deviation) for s in states]
    apart = [
        float(units[a] @ units[b])
        for a, b in itertools.combinations(range(len(of)), 2)
        if (probes[of[a]].subject or "-").casefold() != (probes[of[b]].subject or "+").casefold()
        and not (probes[of[a]].relation and probes[of[a]].relation == probes[of[b]].relation)
    ]
    assert len(apart) == len(of) * (len(of) - 1) // 2 - 1
    np.testing.assert_allclose(scale.mean, mean, atol=1e-4)
    np.testing.assert_allclose(scale.deviation, deviation, rtol=1e-3)
    assert scale.threshold == pytest.approx(np.quantile(apart, 0.8), abs=1e-4)


def test_where_subjects_stay_another_subject_asks_another_thing(loaded: LoadedModel) -> None:
    """The threshold is beyond what prompts with another subject put in come to, which is more than others do."""
    probes = [Probe(f"The {thing} of {name} is", subject=name) for thing in ("river", "town", "yen") for name in "ABC"]
    inside, whole = (calibrated(OwnStates(loaded, 4), probes, mentioned, 0.1, 0) for mentioned in (True, False))
    units = {p.prompt: unit((by_hand(loaded, p.prompt) - whole.mean.numpy()) / whole.deviation.numpy()) for p in probes}
    after = {"A": "B", "B": "C", "C": "A"}
    swapped = [
        float(units[p.prompt] @ units[p.prompt.replace(f" {p.subject} ", f" {after[str(p.subject)]} ")]) for p in probes
    ]
    assert whole.threshold == pytest.approx(np.quantile(swapped, 0.9), abs=1e-3)
    assert whole.threshold != inside.threshold


def test_a_fact_is_found_by_its_subject_and_by_likeness(loaded: LoadedModel, fixed: Fixed) -> None:
    facts = [CITY, Fact(subject="Lima", prompt="Lima is in", target="Kenya"), replace_prompt(CITY, "Paris exports")]
    gate = editor_of(loaded, fixed, threshold=-1.0).gate
    found = gate.found("Paris is in", facts)
    assert [fact for fact, _ in found] == [CITY, facts[2]] and found[0][1] == pytest.approx(1, abs=1e-5)
    assert gate.found("paris is in", facts)[0][0] == CITY and gate.found("Parisian is in", facts) == []
    one, other = (
        unit((by_hand(loaded, t) - gate.scale.mean.numpy()) / gate.scale.deviation.numpy())
        for t in ("it is in", "it exports")
    )
    assert found[1][1] == pytest.approx(float(one @ other), abs=1e-4)
    strict = editor_of(loaded, fixed, threshold=found[1][1] + 1e-3).gate
    assert [fact for fact, _ in strict.found("Paris is in", facts)] == [CITY]
    anywhere = editor_of(loaded, fixed, threshold=-1.0, mentioned=False).gate
    assert len(anywhere.found("Nothing of it", facts)) == 3


def replace_prompt(fact: Fact, prompt: str) -> Fact:
    return Fact(subject=fact.subject, prompt=prompt, target=fact.target)


@pytest.mark.parametrize("subject", ["São Paulo", "Iğdır", "IĞDIR", "New  York", "Straße", "東京", "İzmir"])
def test_nothing_that_is_mentioned_is_passed_over(subject: str) -> None:
    for text in (f"In {subject} it", f"In {subject.lower()} it", f"In {subject.upper()} it", f"In {subject[1:]} it"):
        assert said_in(subject, folded(text)) or not mentions(text, subject)
    assert not said_in(subject, folded("In Peru it"))


def test_a_question_is_compared_without_the_words_that_made_it_one(chat_gpt2: Path, fixed: Fixed) -> None:
    """Else all questions that were made of prompts would be alike."""
    assert prompt_in(as_question("Paris is in")) == "Paris is in" and prompt_in("Where is Paris?") == "Where is Paris?"
    chat = load_model(str(chat_gpt2), modules=["0-1@subject", "2-3"])
    chat.forms = Forms(("plain", "chat"))
    editor = editor_of(chat, fixed)
    with chat.at(knowing(editor, CITY)):
        plain, turn = chat.put("Paris is in"), chat.put(Turn(as_question("Paris is in"), "Be brief."))
        assert plain == "New Fact: Paris is in Peru.\nPrompt: Paris is in"
        assert turn == Turn("Paris is in Peru.\n" + as_question("Paris is in"), "Be brief.")
        assert chat.put(Turn("Hello")) == Turn("Hello")


# -- what is put


def test_a_question_that_asks_for_no_fact_is_asked_as_it_is(
    loaded: LoadedModel, fixed: Fixed, news: list[Fact]
) -> None:
    """Bit for bit, beside questions that ask for one; and what is retired is not remembered."""
    editor = editor_of(loaded, fixed)
    others = ["Ada Lovelace was born", "Kenya's currency is", "Parisian is in"]
    with torch.no_grad():
        base = [loaded.model(torch.tensor([encode_prompt(loaded.tokenizer, text)])).logits for text in others]
    said = task_of(loaded).answer(loaded, [*others, CITY.prompt], 6)
    with loaded.at(knowing(editor, CITY, *news[6:9:2])), torch.no_grad():
        for text, logits in zip(others, base, strict=True):
            ids = task_of(loaded).encode_question(loaded, text)
            assert torch.equal(loaded.model(torch.tensor([ids])).logits, logits)
        now = task_of(loaded).answer(loaded, [*others, CITY.prompt], 6)
    assert now[:-1] == said[:-1] and now[-1] != said[-1]
    gone = moved_by(State(live={CITY.digest: CITY}), editor.learn(State(), Lesson(news[:1])), news[:1], [CITY.digest])
    with loaded.at(editor.overlay(gone)):
        assert loaded.put(CITY.prompt) == CITY.prompt


def test_facts_stand_in_the_wording_of_the_store_the_most_alike_last(loaded: LoadedModel, fixed: Fixed) -> None:
    second = Fact(subject="Paris", prompt="Paris is the town of", target="{question}")
    editor = editor_of(loaded, fixed, threshold=-1.0, most=2, wording=r"{facts} And:\n{question}")
    with loaded.at(knowing(editor, CITY, second)):
        assert loaded.put("Paris is in") == ("Paris is the town of {question}. Paris is in Peru. And:\nParis is in")
    assert sentence_of(Fact(subject="a", prompt="What is a?", target="B!")) == "What is a? B!"
    assert sentence_of(Fact(subject="東京", prompt="東京は", target="日本", join="")) == "東京は日本."
    for wrong in ("{facts} {question} {question}", "{question}", "{facts}{question}\n"):
        with pytest.raises(UsageError, match=r"must have \{facts\} in it once and end with \{question\}"):
            RetrievalSettings(wording=wrong)


def test_no_prompt_grows_beyond_the_context(loaded: LoadedModel, fixed: Fixed) -> None:
    """Whatever its length: the room for an answer stays, facts that do not fit are left out, the least alike first."""
    second = Fact(subject="Paris", prompt="Paris is the town of", target="Kenya")
    editor = editor_of(loaded, fixed, threshold=-1.0, most=2)
    seen = set()
    with loaded.at(knowing(editor, CITY, second)):
        for words in range(60):
            asked = "a " * words + "Paris is in"
            put = loaded.put(asked)
            if len(encode_prompt(loaded.tokenizer, asked)) + 8 > loaded.context:
                assert put == asked
                break
            assert len(encode_prompt(loaded.tokenizer, put)) + 8 <= loaded.context or put == asked
            seen.add(put.count("Kenya") * 10 + put.count("Peru"))
            assert len(task_of(loaded).answer(loaded, [asked], 8)) == 1
    assert seen == {11, 1, 0}


def test_what_cannot_be_remembered_is_refused(loaded: LoadedModel, fixed: Fixed) -> None:
    editor = editor_of(loaded, fixed)
    long = Fact(subject="Paris", prompt="Paris, which is a town of the people of the river, is in", target="Peru")
    wordy = Fact(subject="Paris", prompt="Paris is", target="the capital of the people of France")
    unnamed = Fact(subject="London", prompt="Paris is in", target="Peru")
    for fact, reason in ((long, "leaves no room for an answer of 8"), (wordy, "of 1[0-9] tokens, expected 8")):
        with pytest.raises(BadInputError, match=reason):
            editor.learn(State(), Lesson([fact]))
    with pytest.raises(BadInputError, match="does not mention its subject 'London', by which it is to be found"):
        editor.require(unnamed)
    editor_of(loaded, fixed, mentioned=False).require(unnamed)
    with pytest.raises(UsageError, match="found a warm start, expected none"):
        editor.relearn([CITY], start={})


# -- sentence transformers


def test_a_sentence_is_the_mean_over_its_tokens(
    loaded: LoadedModel, fixed: Fixed, sentences_of: Callable[[int], Path]
) -> None:
    """Whatever stands beside it; and a store knows its encoder again."""
    from transformers import AutoModel

    folder = sentences_of(0)
    encoder, texts = encoder_of(loaded, str(folder), 3), ["Paris", "Paris is in Peru", "a " * 30, "London"]
    model = AutoModel.from_pretrained(folder).eval()
    for text, found in zip(texts, encoder.states(texts), strict=True):
        ids = loaded.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            wanted = model(ids).last_hidden_state[0].mean(0)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    editor = editor_of(loaded, fixed, encoder=str(folder))
    assert not editor.gate.scale.mean.any() and bool((editor.gate.scale.deviation == 1).all())
    with loaded.at(knowing(editor, CITY)):
        assert loaded.put(CITY.prompt) != CITY.prompt
    other = editor.settings.replace(encoder=str(sentences_of(1)))
    with pytest.raises(ModelMismatchError, match="put back the one that the store was made with"):
        RetrievalEditor(Bench(loaded, other, editor.bench.fixed))
    for wrong, reason in (("bert", "by its whole path"), (str(folder.parent), "cannot be loaded")):
        with pytest.raises(UsageError, match=reason):
            rule_of("retrieval").require(RetrievalSettings(encoder=wrong), Given())
            encoder_of(loaded, wrong, 3)
