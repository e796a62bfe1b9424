"""Encoder-decoders: each is loaded, edited on both sides by a rule, asked in batches, and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from lifelong_edit import Fact, Timeline
from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.errors import LifelongEditError, UnknownModelError, UsageError
from lifelong_edit.export.formats import export
from lifelong_edit.models import FAMILIES, Generation, LoadedModel, Turn, fingerprint_of, load_model
from lifelong_edit.tasks import task_of
from lifelong_edit.tasks.seq2seq.pairs import opening_of
from tests.zoo import ENCODER_DECODERS, Zoo, for_pairs

QUESTIONS = ["What is the capital of France?", "Ada", "Who walked on the Moon in 1969, two people?"]
SMALL = Settings(
    more_passes=0, passes=1, rehearse=2, preserved=2, c0=1.0, text_tokens=500, phrasings=0, gate_perplexity=1e9,
    micro_batch=8,
)  # fmt: skip


def alone(loaded: LoadedModel, model: Any, question: str, tokens: int) -> Generation:
    """What a model writes, by transformers' own generation, without batches or padding."""
    ids = torch.tensor([loaded.tokenizer(question)["input_ids"]])
    made = model.generate(input_ids=ids, max_new_tokens=tokens, do_sample=False, num_beams=1)[0, 1:].tolist()
    end = loaded.tokenizer.eos_token_id
    return Generation(tuple(made[: made.index(end)]), end) if end in made else Generation(tuple(made))


def test_every_family_of_the_kind_is_held_by_these_tests() -> None:
    assert set(ENCODER_DECODERS) == {name for name, family in FAMILIES.items() if family.kind == "seq2seq"}


@pytest.mark.parametrize("name", sorted(ENCODER_DECODERS))
def test_an_encoder_decoder_is_asked_edited_and_exported(
    zoo: Zoo, name: str, pair_tokenizer: Any, sentences: list[str], tmp_path: Path
) -> None:
    options = for_pairs(ENCODER_DECODERS[name], pair_tokenizer)
    folder = str(zoo.model(name, options, pair_tokenizer, seed=1, task="seq2seq"))
    fact = Fact(prompt=QUESTIONS[0], target="Vienna", subject="France")
    with Timeline.create(tmp_path / "store", model=folder, settings=SMALL, preserve=[], text=sentences * 4) as timeline:
        loaded = timeline.bench().loaded
        task = task_of(loaded)
        assert loaded.context == 64
        assert [m.positions for m in loaded.modules] == ["question"] * 2 + ["answer"] * 2
        assert ["encoder." in m.name for m in loaded.modules] == [True, True, False, False]
        assert task.answer(loaded, QUESTIONS, 5) == [alone(loaded, loaded.model, question, 5) for question in QUESTIONS]
        timeline.apply([fact])
        shift = timeline.overlay(1)
        assert all(float(torch.as_tensor(ΔW).abs().max()) > 0 for ΔW in shift.shifts.values())
        with loaded.at(shift):
            assert fingerprint_of(loaded.model) != loaded.fingerprint
            export("transformers", loaded, shift, tmp_path / "out")
            said = task.answer(loaded, QUESTIONS, 5)
            exported = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
            assert [alone(loaded, exported, question, 5) for question in QUESTIONS] == said
            assert load_model(str(tmp_path / "out")).fingerprint == fingerprint_of(loaded.model)
        assert fingerprint_of(loaded.model) == loaded.fingerprint


def test_layers_are_counted_through_both_sides(tiny_t5: Path) -> None:
    names = [m.name for m in load_model(str(tiny_t5), modules=["3-4"]).modules]
    assert names == ["encoder.block.3.layer.1.DenseReluDense.wo", "decoder.block.0.layer.2.DenseReluDense.wo"]
    with pytest.raises(UnknownModelError, match=r"'7' do not exist: this model has layers 0 to 6"):
        load_model(str(tiny_t5), modules=["7"])
    with pytest.raises(UnknownModelError, match=r"decoder\.block\.1.*reads no subject"):
        load_model(str(tiny_t5), modules=["5@subject"])


def test_bart_begins_with_what_its_tokenizer_puts_in_front(zoo: Zoo, pair_tokenizer: Any) -> None:
    """As BART was trained: `</s>`, `<s>`, the answer; only what follows them is asked for."""
    from tokenizers import processors

    options = for_pairs(ENCODER_DECODERS["bart"], pair_tokenizer)
    loaded = load_model(str(zoo.model("bart", options, pair_tokenizer, seed=1, task="seq2seq")))
    assert opening_of(loaded) == [0]
    loaded.tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<pad> $A </s>", special_tokens=[("<pad>", 0), ("</s>", 1)]
    )
    assert opening_of(loaded) == [0, 0]
    task = task_of(loaded)
    example = task.encode(loaded, "What is it?", "Paris")
    inputs = task.collate(loaded, [example])
    assert task.slots(inputs, "answer")[0].tolist() == [False, *([True] * len(example.answer))]
    assert task.ends(inputs).tolist() == [1]
    with torch.no_grad():
        begun = torch.tensor([[0, 0, *example.answer[:-1]]])
        whole = loaded.model(input_ids=torch.tensor([example.prompt]), decoder_input_ids=begun).logits[0, 1:]
        torch.testing.assert_close(task.logits(loaded, inputs), whole.float())


def test_the_closing_token_is_taught_unless_published(tiny_t5: Path) -> None:
    loaded = load_model(str(tiny_t5))
    task = task_of(loaded)
    example = task.encode(loaded, "What is it?", "Paris")
    assert example.answer[-1] == loaded.tokenizer.eos_token_id
    bare = task.bare(loaded, example)
    assert bare.answer == example.answer[:-1] and task.closed(loaded, bare) == example == task.closed(loaded, example)


def test_what_an_encoder_decoder_cannot_be_asked_is_refused(tiny_t5: Path) -> None:
    loaded = load_model(str(tiny_t5))
    with pytest.raises(UsageError, match="turn of a conversation for a model with an encoder"):
        task_of(loaded).encode_question(loaded, Turn("What is it?"))
    loaded.model.config.decoder_start_token_id = loaded.model.generation_config.decoder_start_token_id = None
    with pytest.raises(LifelongEditError, match="no decoder_start_token_id"):
        task_of(loaded).answer(loaded, ["What is it?"], 2)
