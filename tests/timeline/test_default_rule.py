"""The rule of a new store of which none is named: by the network, the modules that are named, and the model's kind and
width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lifelong_edit import Timeline
from lifelong_edit.cli import cli
from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.models import load_model
from lifelong_edit.timeline.defaults import LARGE_FROM, default_editor
from lifelong_edit.timeline.model import NOISE, noise_settled
from tests.zoo import LLAMA, Zoo, with_vocabulary


@pytest.fixture
def wide(zoo: Zoo, tiny_tokenizer: Any) -> str:
    """A decoder of random weights as wide as those of which rules for large models are the default."""
    options = {**LLAMA, "hidden_size": LARGE_FROM, "num_attention_heads": 8, "num_key_value_heads": 8}
    return str(zoo.model("llama", with_vocabulary(options, tiny_tokenizer), tiny_tokenizer, seed=0))


def test_by_network_modules_kind_and_width(wide: str, tiny_gpt2: Path, tiny_bert: Path, tmp_path: Path) -> None:
    assert default_editor("network", wide) == "malmen"
    assert default_editor(None, wide) == "neurons"
    assert default_editor(None, wide, ["3"]) == "gradient"
    assert default_editor(None, str(tiny_gpt2)) == "gradient"
    assert default_editor(None, str(tiny_bert)) == "neurons"
    assert default_editor(None, "atlas-check") == "neurons"
    assert default_editor(None, "atlas-t5") == "gradient"
    assert default_editor(None, str(tmp_path / "nothing here")) == "gradient"


def test_a_large_model_has_it_from_either_side(wide: str, sentences: list[str], tmp_path: Path) -> None:
    """Made in Python, or by `init`, which heeds modules that are named in whatever way."""
    with Timeline.create(tmp_path / "a", model=wide, text=sentences * 4, preserve=[]) as timeline:
        assert timeline.settings.editor == "neurons"
    text = tmp_path / "text.txt"
    text.write_text("\n".join(sentences * 4))
    for number, (more, rule) in enumerate(
        [([], "neurons"), (["--modules", "3"], "gradient"), (["--set", "modules=3"], "gradient")]
    ):
        store = str(tmp_path / f"b{number}")
        found = CliRunner().invoke(
            cli, ["init", "--model", wide, "--store", store, "--text", str(text), "--set", "text_tokens=500", *more]
        )
        assert found.exit_code == 0, found.output
        with Timeline.open(store, read_only=True) as timeline:
            assert timeline.settings.editor == rule


def test_the_gate_of_a_large_model_goes_by_noise_unless_told_otherwise(wide: str, tiny_gpt2: Path) -> None:
    large, small = load_model(wide), load_model(str(tiny_gpt2))
    assert noise_settled(Settings(), large).gate_noise == NOISE
    assert noise_settled(Settings(gate_noise=0), large).gate_noise == 0
    assert noise_settled(Settings(), small).gate_noise is None
