"""How a state of each kind of model leaves its store: written down in every format, and on a model in memory.

`test_exports` and `test_attaching` ask the same of every format and rule, of a decoder.
"""

from __future__ import annotations

import re
import runpy
import threading
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import lifelong_edit
from lifelong_edit.cli import PROGRAM, cli
from lifelong_edit.errors import UsageError
from lifelong_edit.export.placing import loader_of
from lifelong_edit.models.families import CALLED
from lifelong_edit.models.loading import AUTO
from lifelong_edit.timeline import Timeline

QUESTION = "The capital of Vienna 1 is [MASK]."
CLASSES = {
    "causal": "PeftModelForCausalLM",
    "classify": "PeftModelForSequenceClassification",
    "masked": "PeftModel",
    "seq2seq": "PeftModelForSeq2SeqLM",
}


def held(timeline: Timeline, kind: str) -> Any:
    """The store's model as a program holds it."""
    return AUTO[kind].from_pretrained(timeline.source, dtype=torch.float32)  # type: ignore[index]


@torch.no_grad()
def logits(model: Any, tokenizer: Any) -> Tensor:
    """What a model says of a question, of an encoder-decoder where its answer begins."""
    given = dict(tokenizer(QUESTION.replace("[MASK]", tokenizer.mask_token or "it"), return_tensors="pt"))
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id]])
    found: Tensor = model(**given).logits
    return found


@pytest.fixture(scope="module")
def wanted(kind_store: Path, kind: str) -> Tensor:
    """What the state says; the base says something else."""
    with Timeline.open(kind_store, read_only=True) as timeline:
        tokenizer = timeline.at(1).tokenizer
        found = logits(timeline.at(1).model(), tokenizer)
        assert not torch.allclose(found, logits(held(timeline, kind), tokenizer), atol=1e-3)
    return found


def written(form: str, store: Path, out: Path, *more: str) -> None:
    command = ["export", "--format", form, "--out", str(out), "--store", str(store), *more]
    result = CliRunner().invoke(cli, command, prog_name=PROGRAM)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(("form", "more"), [("transformers", ()), ("peft", ("--error", "0.000001"))])
def test_what_the_card_says_of_loading_is_so(
    form: str, more: tuple[str, ...], kind_store: Path, kind: str, wanted: Tensor, tmp_path: Path
) -> None:
    """Its program is run as it stands there, with the paths put in."""
    written(form, kind_store, tmp_path / "out", *more)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    with Timeline.open(kind_store, read_only=True) as timeline:
        source, tokenizer = timeline.source, timeline.at(1).tokenizer
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    program = program.replace("path/to/this/folder", str(tmp_path / "out")).replace("path/to/the/base", source)
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft about a name of transformers
        exec(program, names)
    model = names["model"].eval()
    if form == "peft":
        assert type(model).__name__ == CLASSES[kind]
        torch.testing.assert_close(logits(model, tokenizer), wanted, atol=1e-4, rtol=1e-4)
        model = model.merge_and_unload()
        torch.testing.assert_close(logits(model, tokenizer), wanted, atol=1e-4, rtol=1e-4)
    else:
        assert torch.equal(logits(model, names["tokenizer"]), wanted)


def test_an_adapter_is_found_by_what_peft_calls_its_kind(
    kind_store: Path, kind: str, wanted: Tensor, tmp_path: Path
) -> None:
    """By its own auto classes, which read the base's place and the kind from the adapter."""
    if kind == "masked":
        pytest.skip("peft has no class for models that fill masks")
    written("peft", kind_store, tmp_path / "out", "--error", "0.000001")
    auto = getattr(peft, f"Auto{CLASSES[kind]}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = auto.from_pretrained(tmp_path / "out").eval()
    with Timeline.open(kind_store, read_only=True) as timeline:
        torch.testing.assert_close(logits(model, timeline.at(1).tokenizer), wanted, atol=1e-4, rtol=1e-4)


def test_a_change_is_put_on_its_base_by_either_way(kind_store: Path, kind: str, wanted: Tensor, tmp_path: Path) -> None:
    written("delta", kind_store, tmp_path / "out")
    with Timeline.open(kind_store, read_only=True) as timeline:
        source, tokenizer = timeline.source, timeline.at(1).tokenizer
    runpy.run_path(str(tmp_path / "out" / "apply.py"))["main"](source, str(tmp_path / "by script"), tmp_path / "out")
    command = ["apply", str(tmp_path / "out"), "--out", str(tmp_path / "by command")]
    assert CliRunner().invoke(cli, command, prog_name=PROGRAM).exit_code == 0
    for name in ("by script", "by command"):
        model = AUTO[kind].from_pretrained(tmp_path / name)  # type: ignore[index]
        assert torch.equal(logits(model.eval(), tokenizer), wanted)


def test_a_state_is_put_on_a_model_and_comes_off(kind_store: Path, kind: str, wanted: Tensor) -> None:
    with Timeline.open(kind_store, read_only=True) as timeline:
        model, tokenizer = held(timeline, kind), timeline.at(1).tokenizer
        assert loader_of(timeline.bench().loaded) == AUTO[kind].__name__  # type: ignore[index]
    model.eval()
    before, held_as = logits(model, tokenizer), type(model)
    with lifelong_edit.attach(model, kind_store) as attached:
        assert torch.equal(logits(model, tokenizer), wanted)
        with pytest.raises(UsageError, match="detach the other"):
            lifelong_edit.attach(model, kind_store)
        attached.refresh(0)
        assert torch.equal(logits(model, tokenizer), before)
    assert torch.equal(logits(model, tokenizer), before) and type(model) is held_as
    assert "generate" not in model.__dict__ and not model._forward_pre_hooks


@pytest.mark.parametrize("kind", ["classify", "masked"], scope="module", indirect=True)
def test_a_pass_of_an_encoder_is_a_request(kind_store: Path, kind: str) -> None:
    """What would move the state waits until the pass is through."""
    with Timeline.open(kind_store, read_only=True) as timeline:
        model, tokenizer = held(timeline, kind), timeline.at(1).tokenizer
    with lifelong_edit.attach(model, kind_store) as attached:
        seen: list[int] = []
        mover = threading.Thread(target=attached.refresh, args=(0,))

        def within(*_: Any) -> None:
            mover.start()
            mover.join(0.2)
            seen.append(attached.step)

        handle = model.register_forward_hook(within)
        logits(model, tokenizer)
        handle.remove()
        mover.join()
        assert seen == [1] and attached.step == 0


def test_other_kinds_than_decoders_are_not_served(kind: str, kind_store: Path) -> None:
    """They have no text that goes on, which is what the endpoint answers with; said in a sentence."""
    if kind == "causal":
        pytest.skip("decoders are served")
    pytest.importorskip("fastapi")
    result = CliRunner().invoke(cli, ["serve", "--port", "0", "--store", str(kind_store)], prog_name=PROGRAM)
    assert result.exit_code == 2 and f"found {CALLED[kind][0]}, but serving is for decoders" in result.output
