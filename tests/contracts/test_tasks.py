"""What every kind of question promises: each behaviour for each task of the registry, on a model with random weights.

A task comes into this grid with a line in `MATERIAL`: a model for it, questions with answers, and what is hand-made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong_edit import atlas
from lifelong_edit.bench import Bench, prepare
from lifelong_edit.editors.ridge.settings import RidgeSettings
from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.facts import Probe
from lifelong_edit.models import Encoded, Generation, LoadedModel, load_model
from lifelong_edit.models.families import Family, Kind, Positions
from lifelong_edit.models.loading import outline_of
from lifelong_edit.models.places import BUNDLED, locate
from lifelong_edit.tasks import TASKS, WIDTH, BaseAnswer, Task, require_causal, task_of
from lifelong_edit.tracing.trace import recording, trace


@dataclass(frozen=True)
class Taught:
    """An example that is to be learned."""

    encoded: Encoded
    base: BaseAnswer | None = None


@dataclass(frozen=True)
class Judged:
    """A hand-made answer, and whether it is right and ends by itself."""

    said: str
    right: bool
    ended: bool
    stopped: bool = False


@dataclass(frozen=True)
class Material:
    """What a task is tried on.

    model: a fixture, the folder of a model with random weights. sound: a model that knows what it is for. asked:
    question, answer and subject, of different lengths. slots: by hand, the positions at which an example is edited.
    whole: by hand, the model's logits for all positions of an example that is read alone, (t, choices), `at` those of
    its answer. expected: by hand, the loss of an example from these. said: an answer as tokens. means: whether what was
    said is an answer. judged: answers to `wanted`. empty: questions and answers that have to be refused. long: more
    than the model takes.
    """

    model: str
    sound: str
    modules: tuple[str, ...]
    asked: Sequence[tuple[str, str, str]]
    slots: Callable[[Encoded, Positions], list[int]]
    whole: Callable[[LoadedModel, Encoded], Tensor]
    at: Callable[[Encoded], list[int]]
    expected: Callable[[Tensor, Encoded], float]
    said: Callable[[LoadedModel, str], Sequence[int]]
    question: str
    wanted: str
    judged: Sequence[Judged]
    means: Callable[[str, str], bool] = lambda said, answer: said.strip() == answer.strip()
    empty: Sequence[tuple[str, str]] = (("A question", ""), ("A question", "  "))
    long: str = "the river Danube " * 40
    text: str = "The river Danube flows through Vienna. Kenya's currency is the shilling, Japan's is the yen. " * 40
    settings: RidgeSettings = field(default_factory=lambda: RidgeSettings(text_tokens=1000, micro_batch=4))


def _continued(encoded: Encoded, positions: Positions) -> list[int]:
    if positions == "subject":
        return list(range(*encoded.subject))
    return [at for at in range(len(encoded.ids)) if encoded.answer_start <= at + 1 < len(encoded.ids)]


def _read(loaded: LoadedModel, encoded: Encoded) -> Tensor:
    logits: Tensor = loaded.model(input_ids=torch.tensor([encoded.ids])).logits[0].float()
    return logits


def _tokens(loaded: LoadedModel, said: str) -> Sequence[int]:
    ids: list[int] = loaded.tokenizer(said)["input_ids"]
    return ids


def _mean_cross_entropy(logits: Tensor, encoded: Encoded) -> float:
    chances = logits.double().log_softmax(-1)
    found = [-float(chances[at - 1, encoded.ids[at]]) for at in range(encoded.answer_start, len(encoded.ids))]
    return sum(found) / len(found)


MATERIAL: dict[Kind, Material] = {
    "causal": Material(
        model="tiny_gpt2",
        sound="atlas",
        modules=("0@subject", "2-3"),
        asked=(
            ("The capital of France is", "Paris", "France"),
            ("The occupation of Marie Curie is", "physicist; she was born in Warsaw", "Marie Curie"),
            ("In 1969 people walked on the Moon, and the capital of Đà Nẵng is", "Malmö", "Đà Nẵng"),
            ("Kenya's currency:", " the shilling", "Kenya"),
            ("A prompt that does not say whom it speaks of has", "no subject", "Ada"),
        ),
        slots=_continued,
        whole=_read,
        at=lambda encoded: _continued(encoded, "answer"),
        expected=_mean_cross_entropy,
        said=_tokens,
        question="The capital of France is",
        wanted="Paris",
        judged=(
            Judged(" Paris", right=True, ended=True, stopped=True),
            Judged(" Paris", right=True, ended=False),
            Judged(" Paris. The", right=True, ended=True),
            Judged(" Paris, and", right=True, ended=False),
            Judged(" Parisian", right=False, ended=False),
            Judged(" London", right=False, ended=False, stopped=True),
            Judged(" not Paris", right=False, ended=False),
            Judged("", right=False, ended=False, stopped=True),
        ),
    ),
}


def _pair_slots(encoded: Encoded, positions: Positions) -> list[int]:
    return list(range(len(encoded.answer))) if positions == "answer" else list(range(*encoded.subject))


def _written(loaded: LoadedModel, encoded: Encoded) -> Tensor:
    begun = torch.tensor([(0, *encoded.answer[:-1])])
    logits: Tensor = loaded.model(input_ids=torch.tensor([encoded.prompt]), decoder_input_ids=begun).logits[0].float()
    return logits


def _mean_of_all(logits: Tensor, encoded: Encoded) -> float:
    chances = logits.double().log_softmax(-1)
    return -float(chances[range(len(encoded.answer)), list(encoded.answer)].mean())


MATERIAL["seq2seq"] = Material(
    model="tiny_t5",
    sound="atlas-t5",
    modules=("0@subject", "2-3", "5-6"),
    asked=(
        ("What is the capital of France?", "Paris", "France"),
        ("Marie Curie: what was her occupation?", "physicist; she was born in Warsaw", "Marie Curie"),
        ("In 1969 people walked on the Moon. What is the capital of Đà Nẵng", "Malmö", "Đà Nẵng"),
        ("Kenya's currency:", " the shilling", "Kenya"),
        ("Whom does a question speak of that does not say?", "no subject", "Ada"),
    ),
    slots=_pair_slots,
    whole=_written,
    at=lambda encoded: list(range(len(encoded.answer))),
    expected=_mean_of_all,
    said=lambda loaded, said: loaded.tokenizer(said, add_special_tokens=False)["input_ids"],
    question="What is the capital of France?",
    wanted="Paris",
    judged=(
        Judged("Paris", right=True, ended=True, stopped=True),
        Judged("Paris", right=True, ended=False),
        Judged("Paris, and", right=True, ended=False, stopped=True),
        Judged("Parisian", right=False, ended=False, stopped=True),
        Judged("London", right=False, ended=False, stopped=True),
    ),
    empty=(("A question", ""), ("A question", "  "), ("  ", "Paris")),
)


def _first(encoded: Encoded, positions: Positions) -> list[int]:
    return [0] if positions == "answer" else list(range(*encoded.subject))


def _labelled(loaded: LoadedModel, encoded: Encoded) -> Tensor:
    logits: Tensor = loaded.model(input_ids=torch.tensor([encoded.prompt])).logits.float()
    return logits


def _cross_entropy(logits: Tensor, encoded: Encoded) -> float:
    return -float(logits.double().log_softmax(-1)[0, encoded.answer[0]])


MATERIAL["classify"] = Material(
    model="tiny_bert",
    sound="atlas-check",
    modules=("0@subject", "2-3"),
    asked=(
        ("The capital of France is Paris.", "SUPPORTS", "France"),
        ("Marie Curie was a physicist; she was born in Warsaw.", "refutes", "Marie Curie"),
        ("In 1969 people walked on the Moon, and the capital of Đà Nẵng is Malmö.", "REFUTES", "Đà Nẵng"),
        ('Claim: "Kenya uses the shilling." Question: Is this claim true or false? Answer:', "True", "Kenya"),
        ("A text that does not say whom it speaks of.", "SUPPORTS", "Ada"),
    ),
    slots=_first,
    whole=_labelled,
    at=lambda encoded: [0],
    expected=_cross_entropy,
    said=lambda loaded, said: [loaded.labels.index(said)],
    question="The capital of France is Paris.",
    wanted="SUPPORTS",
    judged=(
        Judged("SUPPORTS", right=True, ended=True),
        Judged("SUPPORTS", right=True, ended=True, stopped=True),
        Judged("REFUTES", right=False, ended=False),
    ),
    means=lambda said, answer: {"True": "SUPPORTS"}.get(answer, answer.upper()) == said,
    empty=(("A claim.", ""), ("A claim.", "  "), ("A claim.", "PERHAPS"), ("  ", "SUPPORTS")),
)


def _gap(encoded: Encoded, positions: Positions) -> list[int]:
    """One mask is written; where the answer is longer, all that stands behind it moves on."""
    at, more = encoded.prompt.index(MASK), len(encoded.answer) - 1
    if positions == "answer":
        return list(range(at, at + more + 1))
    return [place + more * (place > at) for place in range(*encoded.subject)]


def _filled(loaded: LoadedModel, encoded: Encoded) -> Tensor:
    at = encoded.prompt.index(MASK)
    ids = [*encoded.prompt[:at], *[MASK] * len(encoded.answer), *encoded.prompt[at + 1 :]]
    logits: Tensor = loaded.model(input_ids=torch.tensor([ids])).logits[0].float()
    return logits


def _mean_of_masks(logits: Tensor, encoded: Encoded) -> float:
    chances, places = logits.double().log_softmax(-1), _gap(encoded, "answer")
    return -sum(float(chances[at, token]) for at, token in zip(places, encoded.answer, strict=True)) / len(places)


MASK = 4
"""The number of [MASK] in the tokenizer of tiny encoders."""
MATERIAL["masked"] = Material(
    model="tiny_masked",
    sound="sound_masked",
    modules=("0@subject", "2-3"),
    asked=(
        ("The capital of France is", "Paris", "France"),
        ("In [MASK] was Marie Curie born.", "Warsaw or Vienna", "Marie Curie"),
        ("People walked on the [MASK] [MASK], and the capital of Đà Nẵng is far.", "Malmö", "Đà Nẵng"),
        ("Kenya's currency is the [MASK].", "shilling", "Kenya"),
        ("A prompt that does not say whom it speaks of has", "no subject", "Ada"),
    ),
    slots=_gap,
    whole=_filled,
    at=lambda encoded: _gap(encoded, "answer"),
    expected=_mean_of_masks,
    said=lambda loaded, said: loaded.tokenizer(said, add_special_tokens=False)["input_ids"],
    question="The capital of France is",
    wanted="Paris",
    judged=(
        Judged("Paris", right=True, ended=True),
        Judged("London", right=False, ended=False),
        Judged("Paris and", right=False, ended=False),
    ),
    empty=(("A gap [MASK].", ""), ("A [MASK] gap and [MASK] another", "one"), ("[MASK].", "one")),
)


@pytest.fixture(scope="module", params=TASKS.values(), ids=TASKS.keys())
def task(request: pytest.FixtureRequest) -> Task:
    found: Task = request.param
    return found


@pytest.fixture(scope="module")
def material(task: Task) -> Material:
    return MATERIAL[task.kind]


@pytest.fixture(scope="module")
def loaded(material: Material, request: pytest.FixtureRequest) -> LoadedModel:
    folder: Path = request.getfixturevalue(material.model)
    return load_model(str(folder), modules=list(material.modules))


@pytest.fixture(scope="module")
def examples(task: Task, material: Material, loaded: LoadedModel) -> list[Encoded]:
    return [task.encode(loaded, *asked) for asked in material.asked]


@pytest.fixture(scope="module")
def bench(material: Material, loaded: LoadedModel) -> Bench:
    """The model with some answers of its own that are held."""
    held = [Probe(prompt=question, subject=subject) for question, _, subject in material.asked]
    return Bench(loaded, material.settings, prepare(loaded, material.settings, text=[material.text], preserve=held))


def losses(task: Task, loaded: LoadedModel, examples: Sequence[Encoded], **more: Any) -> list[float]:
    """The loss of each example, in one input."""
    inputs = task.collate(loaded, examples)
    with torch.no_grad():
        found, of = task.loss(task.logits(loaded, inputs), inputs, [Taught(e) for e in examples])
    return [float(found[of == i].sum()) for i in range(len(examples))]


def spoiled(loaded: LoadedModel, size: float = 0.3) -> dict[str, Tensor]:
    """A shift of every module that helps nobody."""
    random = torch.Generator().manual_seed(0)
    return {m.name: size * torch.randn(m.d_in, m.d_out, generator=random) for m in loaded.modules}


class TaskContract:
    """What holds of any task. Fixtures: `task`, `material`, `loaded`, `examples`, `bench`."""

    def test_it_is_the_task_of_its_models(self, task: Task, loaded: LoadedModel) -> None:
        assert task_of(loaded) is task
        assert loaded.family.kind == task.kind

    def test_a_question_is_encoded_as_with_its_answer(
        self, task: Task, material: Material, loaded: LoadedModel, examples: list[Encoded]
    ) -> None:
        for (question, answer, subject), example in zip(material.asked, examples, strict=True):
            assert tuple(task.encode_question(loaded, question)) == example.prompt
            assert material.means(task.text(loaded, question, Generation(example.answer)), answer)
            start, end = example.subject
            said = loaded.tokenizer.decode(example.ids[start:end]).strip()
            assert said in (subject, subject + ":", subject + "'s") if subject in question else not said, said

    def test_what_was_said_is_encoded_as_what_is_to_be_said(
        self, task: Task, material: Material, loaded: LoadedModel, examples: list[Encoded]
    ) -> None:
        for (question, _, subject), example in zip(material.asked, examples, strict=True):
            assert task.encode_said(loaded, question, example.answer, subject) == example
            assert task.encode_said(loaded, question, example.answer).subject == (0, 0)

    def test_texts_are_encoded_before_weights_are_read(
        self, task: Task, material: Material, loaded: LoadedModel, examples: list[Encoded]
    ) -> None:
        outline = outline_of(locate(loaded.source), material.modules, None)
        assert outline is not None and task_of(outline) is task
        assert [task.encode(outline, *asked) for asked in material.asked] == examples
        for (question, _, _), example in zip(material.asked, examples, strict=True):
            assert tuple(task.encode_question(outline, question)) == example.prompt

    def test_a_questions_end_does_not_depend_on_its_answer(
        self, task: Task, loaded: LoadedModel, examples: list[Encoded]
    ) -> None:
        """Nor on what else is in the input: at it stands the same key."""
        inputs = task.collate(loaded, examples)
        ends = task.ends(inputs)
        assert ends.shape == (len(examples),)
        for example, end in zip(examples, ends.tolist(), strict=True):
            alone = task.collate(loaded, [Encoded.of(example.prompt)])
            assert task.ends(alone).tolist() == [end]

    def test_reading_passes_through_every_edited_module(
        self, task: Task, loaded: LoadedModel, examples: list[Encoded]
    ) -> None:
        """Without a mask as with one that hides nothing."""
        found = []
        for mask in (True, False):
            inputs = task.collate(loaded, examples[:1])
            with torch.no_grad(), recording(loaded, gradients=False) as (keys, _):
                task.read(loaded, inputs.ids, inputs.mask if mask else None)
            found.append(keys)
        assert set(found[0]) == {module.name for module in loaded.modules}
        for name, seen in found[0].items():
            torch.testing.assert_close(found[1][name], seen)

    def test_windows_are_the_beginning_of_a_text(self, task: Task, material: Material, loaded: LoadedModel) -> None:
        found = task.windows(loaded, material.text, 3)
        assert found.dtype is torch.long and 1 <= len(found) <= 3
        assert found.shape[1] == min(WIDTH, loaded.context)
        assert torch.equal(task.windows(loaded, material.text, 1), found[:1])
        assert task.windows(loaded, "A short one.").shape[1] < found.shape[1]
        with pytest.raises(BadInputError):
            task.windows(loaded, "")

    @pytest.mark.parametrize("positions", ["answer", "subject"])
    def test_slots_are_exactly_the_editing_positions(
        self, task: Task, material: Material, loaded: LoadedModel, examples: list[Encoded], positions: Positions
    ) -> None:
        found = task.slots(task.collate(loaded, examples), positions)
        assert found.dtype is torch.bool
        for example, row in zip(examples, found, strict=True):
            assert row.nonzero().flatten().tolist() == material.slots(example, positions)
            tokens = len(example.answer) if positions == "answer" else example.subject[1] - example.subject[0]
            assert int(row.sum()) == tokens
        assert bool(found.any()), "there are none at all"

    def test_logits_are_those_of_the_whole_model(
        self, task: Task, material: Material, loaded: LoadedModel, examples: list[Encoded]
    ) -> None:
        """Row by row where answers are given, though nothing else is computed; as many as `counts` says."""
        inputs = task.collate(loaded, examples)
        with torch.no_grad():
            whole = [material.whole(loaded, example)[material.at(example)] for example in examples]
            found = task.logits(loaded, inputs)
        assert found.dtype is torch.float32
        torch.testing.assert_close(found, torch.cat(whole), rtol=1e-5, atol=1e-5)
        assert task.counts(examples) == [len(rows) for rows in whole]

    def test_an_examples_loss_is_its_own(
        self, task: Task, material: Material, loaded: LoadedModel, examples: list[Encoded]
    ) -> None:
        """Whatever else is in the input, in whatever order, and however it is padded; and it is the formula."""
        alone = [losses(task, loaded, [example])[0] for example in examples]
        assert losses(task, loaded, examples) == pytest.approx(alone, rel=1e-5)
        assert losses(task, loaded, examples[::-1]) == pytest.approx(alone[::-1], rel=1e-5)
        assert losses(task, loaded, [examples[0]] * 3) == pytest.approx([alone[0]] * 3, rel=1e-5)
        for example, loss in zip(examples, alone, strict=True):
            with torch.no_grad():
                assert loss == pytest.approx(material.expected(material.whole(loaded, example), example), rel=1e-5)

    def test_losses_name_their_examples(self, task: Task, loaded: LoadedModel, examples: list[Encoded]) -> None:
        inputs = task.collate(loaded, examples)
        with torch.no_grad():
            found, of = task.loss(task.logits(loaded, inputs), inputs, [Taught(e) for e in examples])
        assert len(found) == len(of)
        assert torch.bincount(of, minlength=len(examples)).tolist() == task.counts(examples)

    def test_padding_is_not_seen(self, task: Task, loaded: LoadedModel, examples: list[Encoded]) -> None:
        """Each example has the logits that it has alone, and what is written where the mask hides it changes none."""
        inputs = task.collate(loaded, examples)
        assert not bool(inputs.mask.all())
        with torch.no_grad():
            padded = task.logits(loaded, inputs)
            alone = [task.logits(loaded, task.collate(loaded, [example])) for example in examples]
            torch.testing.assert_close(padded, torch.cat(alone), rtol=1e-5, atol=1e-5)
            inputs.ids = torch.where(inputs.mask.bool(), inputs.ids, torch.full_like(inputs.ids, 7))
            torch.testing.assert_close(task.logits(loaded, inputs), padded, rtol=0, atol=0)

    def test_what_is_held_pulls_at_nothing_at_the_base(self, bench: Bench, examples: list[Encoded]) -> None:
        """And does once the model has moved; what is taught pulls from the beginning."""
        loaded, rows = bench.loaded, [bench.preserved.row(i, 1.0) for i in range(len(examples))]
        assert all(row.base is not None for row in rows)

        def pulls(shifts: dict[str, Tensor]) -> dict[str, float]:
            with loaded.at(shifts):
                return {name: float(g.norm()) for name, g in trace(loaded, rows, 4).gradients.items()}

        rest, moved = pulls({}), pulls(spoiled(loaded))
        assert all(moved[name] > 1e-2 for name in moved)
        assert all(rest[name] < 1e-5 * moved[name] for name in rest), rest

    def test_asking_many_is_asking_each(self, task: Task, material: Material, loaded: LoadedModel) -> None:
        questions = [question for question, _, _ in material.asked]
        lengths = [1 + 2 * i for i in range(len(questions))]
        with loaded.at(spoiled(loaded)):
            alone = [task.answer(loaded, [q], n)[0] for q, n in zip(questions, lengths, strict=True)]
            for size in (1, 2, 64):
                assert task.answer(loaded, questions, lengths, batch_size=size) == alone
        assert all(len(one.ids) <= n for one, n in zip(alone, lengths, strict=True))
        assert alone != task.answer(loaded, questions, lengths), "the base says the same"

    def test_the_judge_on_hand_made_answers(self, task: Task, material: Material, loaded: LoadedModel) -> None:
        for made in material.judged:
            ids = tuple(material.said(loaded, made.said))
            end = loaded.tokenizer.eos_token_id if made.stopped else None
            answer = Generation(ids, end)
            assert task.text(loaded, material.question, answer) == made.said
            verdict = task.judge(loaded, material.question, material.wanted, answer)
            assert (verdict.right, verdict.ended, verdict.text) == (made.right, made.ended, made.said), made

    def test_health_is_finite_and_worse_for_a_spoiled_model(
        self, task: Task, material: Material, request: pytest.FixtureRequest
    ) -> None:
        """Of a model that does what it was made for, or at least is not wrong: one that is cannot be spoiled."""
        named = material.sound in BUNDLED
        loaded = load_model(material.sound if named else str(request.getfixturevalue(material.sound)))
        text = atlas.heldout_text_path().read_text(encoding="utf-8").splitlines()
        sample = task.windows(loaded, "\n".join(text), 6)
        well = task.health(loaded, sample)
        assert math.isfinite(well) and well > 0
        found = []
        for size in (0.5, -0.5):  # of few choices one may be right by luck, but not with the opposite shift as well
            with loaded.at(spoiled(loaded, size)):
                found.append(task.health(loaded, sample))
        assert max(found) > 1.5 * well
        assert task.health(loaded, sample) == well

    def test_what_is_held_of_an_answer_is_its_beginning(
        self, task: Task, material: Material, loaded: LoadedModel
    ) -> None:
        """And what is taught to an end is the answer with at most one token more; there is room for some answer."""
        for made in material.judged:
            answer = Generation(tuple(material.said(loaded, made.said)))
            held = task.held(loaded, material.question, answer)
            assert tuple(held) == answer.ids[: len(held)] or not answer.ids
            assert len(held) > 0
        example = task.encode(loaded, material.question, material.wanted)
        closed = task.closed(loaded, example)
        assert closed.prompt == example.prompt and closed.answer[: len(example.answer)] == example.answer
        assert len(closed.ids) - len(example.ids) in (0, 1)
        assert 1 <= task.room(material.question, 7) <= 7

    def test_what_is_shown_has_the_answer(self, task: Task, material: Material, loaded: LoadedModel) -> None:
        (answer,) = task.answer(loaded, [material.question], task.room(material.question, 5))
        text = task.text(loaded, material.question, answer).strip()
        assert text and text in task.shown(loaded, material.question, answer)

    def test_what_cannot_be_asked_is_refused(self, task: Task, material: Material, loaded: LoadedModel) -> None:
        refused: list[tuple[Callable[..., object], tuple[object, ...]]] = [
            *((task.encode, (loaded, question, answer)) for question, answer in material.empty),
            (task.encode, (loaded, material.long, "Paris")),
            (task.encode, (loaded, material.question, material.long)),
            (task.encode_question, (loaded, "")),
            (task.encode_question, (loaded, material.long)),
            (task.answer, (loaded, [material.question, material.long], 3)),
        ]
        for call, arguments in refused:
            with pytest.raises(BadInputError) as found:
                call(*arguments)
            assert "\n" not in str(found.value) and len(str(found.value)) < 300


class TestEveryTask(TaskContract):
    """The tasks of the registry."""


@dataclass(frozen=True)
class Other:
    """What is known of a model of a kind that there is not."""

    family: Any
    tokenizer: Any = None


def test_what_only_causal_models_do_is_asked_of_them_alone(tiny_gpt2: Path) -> None:
    require_causal(load_model(str(tiny_gpt2)), "fluency", "--fluency")
    with pytest.raises(UsageError, match=r"found a masked language model, but fluency is for decoders.*--fluency"):
        require_causal(Other(Family("bert", None, kind="masked")), "fluency", "--fluency")
