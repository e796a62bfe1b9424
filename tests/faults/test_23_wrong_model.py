"""23. A wrong base model, dtype, shape or tokenizer: refused with both fingerprints before anything is done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from lifelong_edit.stores import EditLog

Run = Callable[..., Result]


@pytest.fixture
def other_model(tmp_path: Path, tiny_gpt2: Path) -> Path:
    return Path(shutil.copytree(tiny_gpt2, tmp_path / "model"))


def change_weight(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    tensors["transformer.wte.weight"][0, 0] += 1e-3
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def change_dtype(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor.half() for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def change_shape(model: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = json.loads((model / "config.json").read_bytes())
    with torch.random.fork_rng():
        GPT2LMHeadModel(GPT2Config(**{**config, "n_embd": 48})).save_pretrained(model)


def change_tokenizer(model: Path) -> None:
    """Two tokens change places."""
    path = model / "tokenizer.json"
    told = json.loads(path.read_bytes())
    words = told["model"]["vocab"]
    one, other = sorted(words, key=words.__getitem__)[100:102]
    words[one], words[other] = words[other], words[one]
    path.write_text(json.dumps(told))


@pytest.mark.parametrize("change", [change_tokenizer, change_weight, change_dtype, change_shape])
def test_is_refused_with_both_fingerprints(
    run: Run, store: Path, other_model: Path, change: Callable[[Path], None], tmp_path: Path, news: Path
) -> None:
    from lifelong_edit.errors import ModelMismatchError
    from lifelong_edit.timeline import Timeline

    change(other_model)
    with Timeline.open(store, model=str(other_model)) as timeline:
        known = timeline.config.model
        wanted = str(known.tokenizer if change is change_tokenizer else known.fingerprint)
        with pytest.raises(ModelMismatchError, match=wanted) as caught:
            timeline.bench()
        assert caught.value.exit_code == 5
        digests = [word.strip(".,;:()") for word in str(caught.value).split()]
        assert len([word for word in digests if len(word) == len(wanted) and set(word) <= set("0123456789abcdef")]) >= 2
        assert timeline.head == 3


@pytest.mark.parametrize("change", [change_tokenizer, change_weight])
def test_every_command_that_loads_it_ends_with_5(
    run: Run,
    making: list[str],
    tiny_gpt2: Path,
    other_model: Path,
    change: Callable[[Path], None],
    tmp_path: Path,
    news: Path,
) -> None:
    store = tmp_path / "s"
    options = [str(other_model) if option == str(tiny_gpt2) else option for option in making]
    assert run("init", "--store", store, *options).exit_code == 0
    change(other_model)
    for command in (
        ["stream", news],
        ["ask", "Who?"],
        ["eval"],
        ["export", "--out", tmp_path / "out"],
    ):
        result = run(*command, "--store", store)
        assert result.exit_code == 5 and "fingerprint" in result.stderr, result.output
    assert run("log", "--store", store).exit_code == 0
    with EditLog.open(store, read_only=True) as log:
        assert log.head().step == 0
    assert not (tmp_path / "out").exists()
