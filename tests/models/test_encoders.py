"""Encoders: each family is loaded with either head, edited by a rule, asked alone and in batches, and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong_edit import Fact, Timeline
from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.errors import BadInputError, UnknownModelError
from lifelong_edit.export.formats import export
from lifelong_edit.facts import verbalise_claim
from lifelong_edit.models import FAMILIES, LoadedModel, fingerprint_of, load_model
from lifelong_edit.tasks import task_of
from lifelong_edit.tasks.encoders import read_arguments
from lifelong_edit.tasks.masked.gaps import gap_in
from tests.zoo import ENCODERS, Zoo, for_encoder

CLAIMS = ["The capital of France is Paris.", "Ada was born in London.", "In 1969 two people walked on the Moon."]
GAPS = ["The capital of France is", "Ada was born in [MASK].", "In [MASK] two people walked on the Moon."]
SMALL = Settings(
    more_passes=0,
    passes=1,
    rehearse=2,
    preserved=2,
    c0=1.0,
    text_tokens=500,
    phrasings=0,
    gate_perplexity=1e9,
    micro_batch=8,
)
LABELS = {"id2label": {"0": "REFUTES", "1": "SUPPORTS", "2": "DISPUTED"}}


def made(zoo: Zoo, name: str, task: str, tokenizer: Any, **more: Any) -> str:
    options = for_encoder({**ENCODERS[name], **(LABELS if task == "classify" else {}), **more}, tokenizer)
    return str(zoo.model(name, options, tokenizer, seed=1, task=task))


def alone(loaded: LoadedModel, question: str) -> tuple[int, ...]:
    """The answer to a question by the model itself: of a classifier a label, else what stands at one mask."""
    tokenizer = loaded.tokenizer
    if loaded.labels:
        return (int(loaded.model(**tokenizer(question, return_tensors="pt")).logits[0].argmax()),)
    gap = gap_in(question, tokenizer.mask_token)
    given = tokenizer(gap.before + tokenizer.mask_token + gap.after, return_tensors="pt")
    at = given["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    return (int(loaded.model(**given).logits[0, at].argmax()),)


def test_every_encoder_of_the_registry_is_held_by_these_tests() -> None:
    assert set(ENCODERS) == {name for name, family in FAMILIES.items() if family.kind == "masked"}


@pytest.mark.parametrize("task", ["classify", "masked"])
@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_an_encoder_is_asked_edited_and_exported(
    zoo: Zoo, name: str, task: str, encoder_tokenizer: Any, sentences: list[str], tmp_path: Path
) -> None:
    folder = made(zoo, name, task, encoder_tokenizer)
    asked, target = (CLAIMS, "DISPUTED") if task == "classify" else (GAPS, "Vienna or Paris")
    fact = Fact(prompt=asked[0], target=target, subject="France")
    with Timeline.create(tmp_path / "store", model=folder, settings=SMALL, preserve=[], text=sentences * 8) as timeline:
        loaded = timeline.bench().loaded
        kind = task_of(loaded)
        assert (kind.kind, loaded.context, [m.layer for m in loaded.modules]) == (task, 64, [2, 3])
        expected = [alone(loaded, question) for question in asked]
        assert [said.ids for said in kind.answer(loaded, asked, 1)] == expected
        timeline.apply([fact])
        shift = timeline.overlay(1)
        assert all(float(torch.as_tensor(ΔW).abs().max()) > 0 for ΔW in shift.shifts.values())
        with loaded.at(shift):
            assert fingerprint_of(loaded.model) != loaded.fingerprint
            export("transformers", loaded, shift, tmp_path / "out")
            again = load_model(str(tmp_path / "out"))
            assert again.fingerprint == fingerprint_of(loaded.model)
            assert kind.answer(again, asked, 1) == kind.answer(loaded, asked, 1)
        assert fingerprint_of(loaded.model) == loaded.fingerprint


def test_one_logit_is_two_labels(zoo: Zoo, encoder_tokenizer: Any) -> None:
    """As published: more probable than not is SUPPORTS, the loss binary."""
    options = for_encoder({**ENCODERS["bert"], "id2label": {"0": "LABEL_0"}}, encoder_tokenizer)
    loaded = load_model(str(zoo.model("bert", options, encoder_tokenizer, seed=3, task="classify")))
    task = task_of(loaded)
    assert loaded.labels == ("REFUTES", "SUPPORTS")
    examples = [task.encode(loaded, CLAIMS[0], label) for label in ("SUPPORTS", "REFUTES")]
    with torch.no_grad():
        logits = task.logits(loaded, task.collate(loaded, examples))
        z = loaded.model(**loaded.tokenizer(CLAIMS[0], return_tensors="pt")).logits[0, 0]
    torch.testing.assert_close(logits, torch.stack([torch.zeros(2), z.expand(2)], 1))
    binary = [float(torch.nn.functional.binary_cross_entropy_with_logits(z, z.new_tensor(y))) for y in (1.0, 0.0)]
    found = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 0]), reduction="none").tolist()
    assert found == pytest.approx(binary, rel=1e-5)


def test_the_names_of_labels_are_in_the_fingerprint(zoo: Zoo, encoder_tokenizer: Any, tmp_path: Path) -> None:
    """They are what answers mean: a model with two of them exchanged is another one."""
    loaded = load_model(made(zoo, "bert", "classify", encoder_tokenizer))
    loaded.model.config.id2label = {0: "SUPPORTS", 1: "REFUTES", 2: "DISPUTED"}
    assert fingerprint_of(loaded.model) != loaded.fingerprint


def test_the_texts_of_a_pair_are_told_apart(zoo: Zoo, encoder_tokenizer: Any) -> None:
    """However the pair is written: as the tokenizer makes it of two texts, types included."""
    loaded = load_model(made(zoo, "bert", "classify", encoder_tokenizer))
    task, (claim, evidence) = task_of(loaded), CLAIMS[:2]
    given = loaded.tokenizer(claim, evidence, return_tensors="pt")
    ids = given["input_ids"]
    for question in (verbalise_claim(claim, evidence), f"{claim} [SEP] {evidence}"):
        assert list(task.encode_question(loaded, question)) == ids[0].tolist()
    types = read_arguments(loaded.model, ids, given["attention_mask"], loaded.tokenizer.sep_token_id)["token_type_ids"]
    behind = ids[0].tolist().index(loaded.tokenizer.sep_token_id) + 1
    assert types is not None and types[0].tolist() == [0] * behind + [1] * (ids.shape[1] - behind)
    span = task.encode(loaded, f"{claim} [SEP] {evidence}", "SUPPORTS", "Ada").subject
    assert loaded.tokenizer.decode(ids[0, span[0] : span[1]]).strip() == "Ada"
    assert list(task.encode_question(loaded, verbalise_claim(claim))) == loaded.tokenizer(claim)["input_ids"]


def test_an_encoder_without_a_head_is_refused(zoo: Zoo, encoder_tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = made(zoo, "bert", "masked", encoder_tokenizer)
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "bare")
    encoder_tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(UnknownModelError, match=r"architecture BertModel, which gives no answers; .*ForMaskedLM"):
        load_model(str(tmp_path / "bare"))


def test_a_classifier_of_several_labels_at_once_is_refused(zoo: Zoo, encoder_tokenizer: Any) -> None:
    folder = made(zoo, "bert", "classify", encoder_tokenizer, problem_type="multi_label_classification")
    with pytest.raises(UnknownModelError, match="expected one that chooses one label"):
        _ = load_model(folder).labels


@pytest.mark.parametrize(
    ("prompt", "before", "after", "marks"),
    [
        ("Ada was born in", "Ada was born in ", ".", 1),
        ("Ada was born in [MASK].", "Ada was born in ", ".", 1),
        ("[MASK] [MASK] is where <mask> Ada was born", "", " is where <mask> Ada was born", 2),
    ],
)
def test_where_a_gap_is(prompt: str, before: str, after: str, marks: int) -> None:
    gap = gap_in(prompt)
    assert (gap.before, gap.after, gap.marks) == (before, after, marks)
    with pytest.raises(BadInputError, match="masks in 2 places"):
        gap_in("[MASK] is the capital of [MASK]")
