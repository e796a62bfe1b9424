"""Real models, as `make real` brings them: loaded, asked, edited, gone back, exported."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lifelong_edit import Fact, Timeline
from lifelong_edit.export.delta import apply
from lifelong_edit.export.formats import FORMATS, export
from lifelong_edit.models import BASE, LoadedModel, Shifts, generate_greedy, load_model
from lifelong_edit.timeline.defaults import default_text

pytestmark = pytest.mark.real
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
KNOWN = CHAT.format("What is the capital of France?")
FACT = Fact(prompt="The capital of Zubrowka is", target="Lutz", subject="Zubrowka")


@pytest.fixture(scope="module")
def smollm2(real_model: Callable[[str], Path]) -> Path:
    """SmolLM2-135M-Instruct, a GGUF file in four bits."""
    return real_model("SmolLM2-135M-Instruct")


@pytest.fixture(scope="module")
def timeline(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Timeline:
    """A store of it with the default rule, in which one fact was taught; little text, which is quick to measure."""
    store = tmp_path_factory.mktemp("real") / "store"
    timeline = Timeline.create(store, model=str(smollm2), text=default_text()[:8], preserve=[])
    timeline.apply([FACT])
    return timeline


def answer(loaded: LoadedModel, prompt: str, tokens: int = 12) -> str:
    text: str = loaded.tokenizer.decode(generate_greedy(loaded, [prompt], tokens)[0])
    return text


def test_smollm2_knows_the_capital_of_france_at_the_base(timeline: Timeline) -> None:
    loaded = timeline.bench().loaded
    assert (loaded.context, len(loaded.modules), loaded.family.model_type) == (8192, 1, "llama")
    with loaded.at(BASE):
        assert "Paris" in answer(loaded, KNOWN)
        assert "Lutz" not in answer(loaded, FACT.prompt)
    chat = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    assert "<|im_start|>user\nHello<|im_end|>" in chat


def test_one_fact_takes_and_goes_again(timeline: Timeline) -> None:
    assert timeline.head == 1
    assert timeline.settings.editor == "neurons"
    assert "Lutz" in timeline.at(1).ask(FACT.prompt)
    near = "The capital of France is"
    assert timeline.at(1).ask(near, max_new_tokens=8) == timeline.at(0).ask(near, max_new_tokens=8)
    base = timeline.show(0).weights_digest
    timeline.rollback(0)
    assert timeline.show(timeline.head).weights_digest == base
    assert "Lutz" not in timeline.at(timeline.head).ask(FACT.prompt)
    assert "Paris" in timeline.at(timeline.head).ask(KNOWN, max_new_tokens=12)


def test_its_export_answers_the_same_in_transformers(timeline: Timeline, tmp_path: Path) -> None:
    export("transformers", timeline.bench().loaded, timeline.overlay(1), tmp_path / "out")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    for prompt in (FACT.prompt, KNOWN):
        ids = tokenizer(prompt, return_tensors="pt")
        said = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
        loaded = timeline.bench().loaded
        with loaded.at(timeline.overlay(1)):
            expected = generate_greedy(loaded, [prompt], 8)[0]
        assert said.tolist()[: len(expected)] == expected


def test_its_gguf_answers_the_same(timeline: Timeline, tmp_path: Path) -> None:
    """Read by transformers alone, with tokenizer and chat template from the file, in half of the state's precision."""
    loaded, kind = timeline.bench().loaded, FORMATS["gguf"]
    kind.require_model(timeline.source)
    told = export("gguf", loaded, timeline.overlay(1), tmp_path / "out", dtype="float16", questions=[FACT.prompt])
    assert (told["gguf"]["type"], told["gguf"]["differ"]) == ("F16", 0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    assert tokenizer.chat_template == loaded.tokenizer.chat_template
    for prompt in (FACT.prompt, KNOWN):
        assert tokenizer(prompt)["input_ids"] == loaded.tokenizer(prompt)["input_ids"]


def test_its_change_leaves_alone_and_as_an_adapter(smollm2: Path, tmp_path: Path) -> None:
    """A change as a solve for some facts leaves it: the delta to the bit, the adapter with the same answers."""
    loaded = load_model(str(smollm2), modules=["12-14"])
    generator = torch.Generator().manual_seed(0)
    draw = {m.name: (torch.randn(m.d_in, 20, generator=generator), torch.randn(20, m.d_out, generator=generator))
            for m in loaded.modules}  # fmt: skip
    changed = Shifts({name: left @ right * 0.03 for name, (left, right) in draw.items()})
    prompts = [f"The capital of {place} is" for place in ("France", "Peru", "Kenya", "Japan", "Chile", "Ghana")]
    with loaded.at(changed):
        wanted = generate_greedy(loaded, prompts, 8)
    with loaded.at(BASE):
        assert generate_greedy(loaded, prompts, 8) != wanted
    export("delta", loaded, changed, tmp_path / "delta")
    told = apply(tmp_path / "delta", tmp_path / "whole")
    whole = load_model(str(tmp_path / "whole"))
    assert whole.fingerprint == told["fingerprint"] and generate_greedy(whole, prompts, 8) == wanted
    lora = export("peft", loaded, changed, tmp_path / "adapter", questions=prompts)["lora"]
    assert lora["rank"] <= 20 and lora["differ"] == 0
    base = load_model(str(smollm2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft about a name of transformers
        model = PeftModel.from_pretrained(base.model, tmp_path / "adapter")
    for prompt, said in zip(prompts, wanted, strict=True):
        ids = base.tokenizer(prompt, return_tensors="pt")
        new = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :].tolist()
        assert new[: len(said)] == said


def test_gemma3_comes_with_its_beginning_of_text(real_model: Callable[[str], Path]) -> None:
    loaded = load_model(str(real_model("gemma-3-270m")))
    assert (loaded.family.model_type, loaded.context) == ("gemma3_text", 32768)
    assert loaded.tokenizer("Hello")["input_ids"][0] == loaded.tokenizer.bos_token_id
    assert "capital of" in answer(loaded, "The capital of France is")
