"""Texts read in two parts, ends of words as a thing to teach, and subjects that are a text's first token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lifelong_edit.editors.search.material import anchored
from lifelong_edit.facts import Fact
from lifelong_edit.models import Encoded, LoadedModel, load_model
from lifelong_edit.tasks import task_of
from lifelong_edit.tasks.causal.begun import can_be_cut
from lifelong_edit.tasks.causal.breaks import word_breaks
from lifelong_edit.tracing.rows import Row, fact_rows

TEXTS = ["The capital of France is", "Ada", "In 1969 two people walked on the", "The river flows through the town and"]
CUTS = (3, 0, 5, 1)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    """Two kinds of positions: learned ones, and rotations."""
    return load_model(str(request.getfixturevalue(f"tiny_{request.param}")))


def test_the_end_of_a_text_behind_its_beginning_is_the_whole_text(model: LoadedModel) -> None:
    """Logits at the answers, whatever was kept of each text: beginnings of different lengths, and of one nothing."""
    task = task_of(model)
    rows = [Row(task.encode(model, text, "Vienna on the river"), "new") for text in TEXTS]
    whole = task.logits(model, task.collate(model, [row.encoded for row in rows]))
    cutter = task.cutter(model)
    assert cutter is not None
    begun = cutter.begin([row.encoded.ids[:cut] for row, cut in zip(rows, CUTS, strict=True)], 3)
    ends = cutter.ends_of([row.encoded for row in rows], begun)
    assert [len(end.ids) for end in ends] == [len(r.encoded.ids) - n for r, n in zip(rows, CUTS, strict=True)]
    found = cutter.logits(task.collate(model, ends), begun)
    assert torch.allclose(found, whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))
    assert not torch.allclose(found, task.logits(model, task.collate(model, ends)), atol=1e-3)  # without it: another


def test_whether_a_model_can_be_cut_is_measured(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_be_cut(model)
    head, forward = model.model.get_output_embeddings(), model.model.get_output_embeddings().forward
    calls = [0]

    def drifting(hidden: Tensor) -> Tensor:
        calls[0] += 1
        found: Tensor = forward(hidden)
        return found + calls[0]

    monkeypatch.setattr(head, "forward", drifting)
    assert not can_be_cut(model)


def test_tokens_that_end_a_word(model: LoadedModel) -> None:
    """Those that, behind a letter, begin with anything but a letter or a figure."""
    tokenizer, breaks = model.tokenizer, word_breaks(model)
    for text, expected in {
        " the": True,
        ".": True,
        "\n": True,
        " ": True,
        "s": False,
        "the": False,
        "3": False,
    }.items():
        first = tokenizer(text, add_special_tokens=False)["input_ids"][0]
        assert bool(breaks[first]) is expected, text
    assert bool(breaks[tokenizer.eos_token_id])


def test_an_answer_that_has_to_end(model: LoadedModel) -> None:
    """One position more: minus the logarithm of the probability of all tokens together that end a word."""
    task, breaks = task_of(model), word_breaks(model)
    plain = task.encode(model, TEXTS[0], "Vienna")
    more = task.ended(model, plain)
    assert (more.ids[:-1], more.ended, plain.ended) == (plain.ids, True, False)
    assert task.ended(model, task.encode(model, TEXTS[0], "Vienna!")).ended is False  # nothing goes on with this
    rows = [Row(more, "new"), Row(task.encode(model, TEXTS[2], "Vienna"), "new")]
    batch = task.collate(model, [row.encoded for row in rows])
    loss, owner = task.loss(task.logits(model, batch), batch, rows)
    with torch.no_grad():
        said = model.model(input_ids=torch.tensor([plain.ids])).logits[0].log_softmax(-1)
    steps = [-said[plain.answer_start - 1 + i, token] for i, token in enumerate(plain.answer)]
    expected = torch.stack([*steps, -said[-1, : len(breaks)][breaks].logsumexp(-1)]) / (len(plain.answer) + 1)
    assert loss[owner == 0].tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    alone = task.collate(model, [rows[1].encoded])
    assert alone.breaks is None
    assert float(loss[owner == 1].sum()) == pytest.approx(
        float(task.loss(task.logits(model, alone), alone, rows[1:])[0].sum()), rel=1e-4
    )


def test_a_subject_that_is_the_first_token_is_read_behind_it(model: LoadedModel) -> None:
    row = fact_rows(model, [Fact(subject="Ada", prompt="Ada is a city of", target="Vienna")], 0)[0]
    at = Encoded.of(row.encoded.prompt, row.encoded.answer, (0, 1))
    assert anchored(replace(row, encoded=at)).encoded.subject == (1, 2)
    assert anchored(replace(row, encoded=replace(at, subject=(0, 2)))).encoded.subject == (1, 2)
    assert anchored(replace(row, encoded=replace(at, subject=(2, 3)))).encoded.subject == (2, 3)
    only = Encoded.of(at.ids[:1], at.answer, (0, 1))  # nothing of the prompt stands behind it
    assert anchored(replace(row, encoded=only)).encoded.subject == (0, 1)
