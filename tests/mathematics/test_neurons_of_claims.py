"""Neurons of a classifier: gates are for claims, where a text is read as a whole, and shut at all else."""

from __future__ import annotations

import pytest
import torch

from lifelong_edit.atlas import check_edits_path, check_preserved_path
from lifelong_edit.bench import Bench, Fixed, State, prepare
from lifelong_edit.editors.contract import Given, Lesson, moved_by
from lifelong_edit.editors.neurons.gates import Shut
from lifelong_edit.editors.neurons.reading import states_of
from lifelong_edit.editors.neurons.rule import GATE, KEPT, PART, NeuronsEditor
from lifelong_edit.editors.neurons.settings import NeuronsSettings
from lifelong_edit.editors.neurons.sites import FAR, FAR_WEIGHT, SITES
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.errors import UnknownModelError
from lifelong_edit.facts import Fact, Probe, read_facts, read_prompts
from lifelong_edit.judging.gate import answers_taken
from lifelong_edit.models import Encoded, load_model
from lifelong_edit.tasks import task_of
from lifelong_edit.timeline.defaults import default_text

SETTINGS = NeuronsSettings(text_tokens=6000, rounds=10, more_rounds=0, micro_batch=16, precision="float32")


@pytest.fixture(scope="module")
def flips() -> list[Fact]:
    """Claims with the label that the bundled fact checker does not give them; here without their subjects."""
    found = [record.fact for record in read_facts([str(check_edits_path())])][:12]
    return [Fact(prompt=f.prompt, target=f.target, rephrases=f.rephrases[:2]) for f in found]


@pytest.fixture(scope="module")
def unasked() -> list[str]:
    """The same in words that nobody teaches."""
    return [record.fact.rephrases[3] for record in read_facts([str(check_edits_path())])][:12]


@pytest.fixture(scope="module")
def checker(flips: list[Fact]) -> Bench:
    """The bundled fact checker on a bench of the rule, with 80 claims preserved, one of which is to be flipped."""
    loaded = load_model("atlas-check", places=rule_of("neurons").places)
    probes = [*list(read_prompts([str(check_preserved_path())]))[:80], Probe(flips[0].prompt)]
    kept = rule_of("neurons").fix(loaded, SETTINGS, Given({}, default_text(), probes))
    measured = prepare(loaded, SETTINGS, text=default_text(), preserve=probes, rule=kept, statistics=False)
    return Bench(loaded, SETTINGS, Fixed.of(measured.arrays()))


@pytest.fixture(scope="module")
def taught(checker: Bench, flips: list[Fact]) -> State:
    """Twelve claims in two steps."""
    editor, state = NeuronsEditor(checker), State()
    for batch in (flips[:8], flips[8:]):
        state = moved_by(state, editor.learn(state, Lesson(batch)), batch)
    return state


def read_at(bench: Bench, texts: list[str], where: str) -> torch.Tensor:
    """What the layer reads of texts at some of their tokens, (n, d)."""
    editor = NeuronsEditor(bench)
    asked = [Encoded.of(bench.task.encode_question(bench.loaded, text)) for text in texts]
    found = states_of(bench.loaded, editor.readers, asked, 16, where)[bench.names[0]]  # type: ignore[arg-type]
    return torch.cat(found)


def test_what_gates_are_shut_at(checker: Bench) -> None:
    """The mean over what is read of texts as a whole, and all other tokens far below it, for a small weight."""
    loaded, site = checker.loaded, SITES["answer"]
    texts = [[Encoded.of(checker.task.encode_question(loaded, t)) for t in of] for of in (["One.", "Two."], ["Three."])]
    (closed,) = site.closed(loaded, SETTINGS, *texts).values()
    all_of = ["One.", "Two.", "Three."]
    here, far = (read_at(checker, all_of, where).double() for where in ("answer", "elsewhere"))
    assert len(here) == 3 and len(far) == sum(len(e.ids) for of in texts for e in of) - 3
    expected = Shut(
        here.T @ here / 3 + FAR_WEIGHT * far.T @ far / len(far), here.mean(0) + FAR_WEIGHT * FAR * far.mean(0)
    )
    assert torch.allclose(closed.shut.gram, expected.gram, atol=1e-4)
    assert torch.allclose(closed.shut.total, expected.total, atol=1e-4)
    assert torch.allclose(closed.kept, here[2:].float(), atol=1e-4)


def test_claims_are_flipped_in_other_words_and_no_others(
    checker: Bench, taught: State, flips: list[Fact], unasked: list[str]
) -> None:
    """One of them is a preserved prompt as well, which does not hold it."""
    loaded, task, editor = checker.loaded, checker.task, NeuronsEditor(checker)
    others = [probe.prompt for probe in list(read_prompts([str(check_preserved_path())]))[80:200]]
    before = [found.ids for found in task.answer(loaded, others, 1)]
    with loaded.at(editor.overlay(taught)):
        assert answers_taken(loaded, flips) == [True] * 12
        worded = [task.text(loaded, t, a) for t, a in zip(unasked, task.answer(loaded, unasked, 1), strict=True)]
        after = [found.ids for found in task.answer(loaded, others, 1)]
    assert sum(said == fact.target for said, fact in zip(worded, flips, strict=True)) >= 9
    assert sum(a == b for a, b in zip(before, after, strict=True)) >= 114


def test_gates_open_at_their_own_claims_alone(checker: Bench, taught: State, flips: list[Fact]) -> None:
    """Also at next to no other token: with nothing said of these, some gate would open at most of them."""
    name = checker.names[0]
    gates = torch.stack([torch.from_numpy(taught.parts[PART][fact.digest].rows[GATE + name][0]) for fact in flips])
    opens = SETTINGS.gating("answer").opens
    own = read_at(checker, [fact.prompt for fact in flips], "answer") @ gates.T > opens
    assert own.diagonal().all() and own.sum() == 12
    assert (read_at(checker, [fact.prompt for fact in flips], "elsewhere") @ gates.T > opens).any(
        1
    ).float().mean() < 0.03
    kept = torch.from_numpy(checker.fixed.rule[KEPT + name]).float()
    assert len(kept) > 81 + 100  # sentences of ordinary text beside the preserved claims
    assert (kept @ gates.T > opens).nonzero().tolist() == [[80, 0]]  # the preserved claim that is flipped


def test_claims_about_one_subject_have_gates_of_their_own(checker: Bench, flips: list[Fact]) -> None:
    """Nobody of the earlier ones is searched for again, unless a claim is the same to the letter."""
    first = Fact(prompt=flips[0].prompt, target=flips[0].target, subject="Ivan Pavlov")
    other = Fact(prompt="Ivan Pavlov was born in Italy.", target="SUPPORTS", subject="Ivan Pavlov")
    editor = NeuronsEditor(checker)
    state = moved_by(State(), editor.learn(State(), Lesson([first])), [first])
    assert editor.learn(state, Lesson([other])).report["kin"] == 0
    same = Fact(prompt=first.prompt.upper(), target="SUPPORTS", subject="Ivan Pavlov")
    assert editor.learn(state, Lesson([same])).report["kin"] == 1


def test_a_classifier_is_edited_at_the_answer(checker: Bench) -> None:
    modules = checker.loaded.editing(["2@subject"]).modules
    with pytest.raises(UnknownModelError, match="edits a classifier at the answer"):
        rule_of("neurons").require_kind("classify", modules)
    rule_of("neurons").require_kind("classify", checker.loaded.modules)
    assert task_of(checker.loaded).kind == "classify"
