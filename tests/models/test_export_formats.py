"""The change alone: as a delta, exact to the bit, and as a LoRA adapter, as near as its rank allows. Cards, shards."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lifelong_edit.errors import LifelongEditError, ModelMismatchError, UsageError
from lifelong_edit.export.delta import apply
from lifelong_edit.export.formats import export
from lifelong_edit.export.pushing import push, require_repository, sending
from lifelong_edit.models import LoadedModel, Shifts, fingerprint_of, load_model
from tests.zoo import DECODERS, Zoo

PROMPTS = ["The capital of France is", "Ada Lovelace was born"]


@pytest.fixture(params=["gpt2", "olmo", "bloom"])
def loaded(request: pytest.FixtureRequest, zoo: Zoo, tiny_tokenizer: Any, tiny_gpt2: Path) -> LoadedModel:
    """Matrices as Conv1D has them, as Linear has them, and fused ones beside them."""
    if request.param == "gpt2":
        return load_model(str(tiny_gpt2))
    options = {"vocab_size": len(tiny_tokenizer), **DECODERS[request.param]}
    return load_model(str(zoo.model(request.param, options, tiny_tokenizer, seed=3)))


def of_rank(loaded: LoadedModel, rank: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {m.name: draw(m.d_in, rank) @ draw(rank, m.d_out) * 0.05 for m in loaded.modules}


def adapted(base: str, adapter: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft about a name of transformers
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)


def test_an_adapter_of_the_whole_rank_is_the_state(loaded: LoadedModel, tmp_path: Path) -> None:
    """Beside the base and merged into it, whichever way matrices are stored."""
    shifts = of_rank(loaded, 3)
    told = export("peft", loaded, Shifts(shifts), tmp_path / "out", questions=PROMPTS)["lora"]
    assert told["rank"] == 3 and told["error"] < 1e-6 and (told["asked"], told["differ"]) == (2, 0)
    model, edited = adapted(loaded.source, tmp_path / "out"), loaded.edited_copy(shifts)
    ids = loaded.tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        wanted = edited(ids).logits
        assert not torch.allclose(wanted, loaded.model(ids).logits, atol=1e-2)
        torch.testing.assert_close(model(ids).logits, wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model.merge_and_unload()(ids).logits, wanted, atol=1e-4, rtol=1e-4)


def test_what_an_adapter_leaves_out_is_told(tiny_gpt2: Path, tmp_path: Path) -> None:
    """Held against singular values by NumPy, and against the answers that come out."""
    loaded = load_model(str(tiny_gpt2))
    shifts = of_rank(loaded, 12)
    values = {name: np.linalg.svd(shift.double().numpy(), compute_uv=False) for name, shift in shifts.items()}

    def lost(rank: int) -> dict[str, float]:
        return {name: float(np.sqrt((v[rank:] ** 2).sum() / (v**2).sum())) for name, v in values.items()}

    told = export("peft", loaded, Shifts(shifts), tmp_path / "two", rank=2, questions=PROMPTS)["lora"]
    assert told["rank"] == 2 and told["errors"] == pytest.approx(lost(2), rel=1e-6)
    assert told["error"] == max(told["errors"].values()) and told["ranks_needed"] == dict.fromkeys(shifts, 12)
    assert 0 <= told["differ"] <= 2 and len(told["differing"]) == told["differ"]
    bound = export("peft", loaded, Shifts(shifts), tmp_path / "bound", error=0.3)["lora"]
    assert bound["error"] <= 0.3 < max(lost(bound["rank"] - 1).values()) and bound["asked"] == 0
    stated = json.loads((tmp_path / "two" / "lifelong_edit.json").read_text())
    assert stated["lora"] == told and stated["kind"] == "peft"
    for options in ({"rank": 2, "error": 0.1}, {"rank": 0}, {"error": 1.0}):
        with pytest.raises(UsageError, match="adapter"):
            export("peft", loaded, Shifts(shifts), tmp_path / "no", **options)


def test_an_adapter_that_answers_otherwise_says_so(tiny_gpt2: Path, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_gpt2))
    shifts = {name: shift * 8 for name, shift in of_rank(loaded, 12).items()}
    told = export("peft", loaded, Shifts(shifts), tmp_path / "out", rank=1, questions=PROMPTS)["lora"]
    assert told["differ"] > 0 and told["differing"][0]["state"] != told["differing"][0]["adapter"]


def test_a_delta_is_put_on_its_base_and_no_other(tiny_gpt2: Path, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_gpt2), dtype="bfloat16")
    shifts = of_rank(loaded, 3)
    export("delta", loaded, Shifts(shifts), tmp_path / "delta", provenance={"step": 4})
    with safe_open(tmp_path / "delta" / "delta.safetensors", framework="pt") as file:
        assert file.metadata()["base_fingerprint"] == loaded.fingerprint
    told = apply(tmp_path / "delta", tmp_path / "whole")
    assert told["step"] == 4
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert fingerprint_of(whole) == told["fingerprint"] == fingerprint_of(loaded.edited_copy(shifts))
    other = tmp_path / "other"
    whole.save_pretrained(other)
    loaded.tokenizer.save_pretrained(other)
    with pytest.raises(ModelMismatchError):
        apply(tmp_path / "delta", tmp_path / "no", model=str(other))
    with pytest.raises(UsageError, match="found no delta"):
        apply(other, tmp_path / "no")
    (tmp_path / "delta" / "delta.safetensors").write_bytes(b"torn")
    with pytest.raises(LifelongEditError, match="is damaged"):
        apply(tmp_path / "delta", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_delta_of_few_modules_holds_those_alone(tiny_gpt2: Path, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_gpt2))
    name = loaded.modules[-1].name
    shifts = {m.name: torch.zeros(m.d_in, m.d_out) for m in loaded.modules} | {name: of_rank(loaded, 1)[name]}
    export("delta", loaded, Shifts(shifts), tmp_path / "out")
    assert list(load_file(tmp_path / "out" / "delta.safetensors")) == [f"{name}.weight"]


def test_large_weights_are_cut_into_files(tiny_gpt2: Path, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_gpt2))
    shifts = of_rank(loaded, 3)
    export("transformers", loaded, Shifts(shifts), tmp_path / "out", max_shard_size="50KB", card="# a card")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert load_model(str(tmp_path / "out")).fingerprint == fingerprint_of(loaded.edited_copy(shifts))
    assert (tmp_path / "out" / "README.md").read_text() == "# a card"


def test_where_the_base_lies_is_not_pushed(tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in what says where an export comes from, nor in an adapter's configuration; a hub id is."""
    loaded = load_model(str(tiny_gpt2))
    export("peft", loaded, Shifts(of_rank(loaded, 2)), tmp_path / "out", provenance={"source": "me/model"})
    assert str(tiny_gpt2) in (tmp_path / "out" / "adapter_config.json").read_text()
    sent: dict[str, bytes] = {}

    def create_commit(self: object, repository: str, files: list[Any], **_: Any) -> None:
        for file in files:
            with file.as_file() as data:
                sent[file.path_in_repo] = data.read()

    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: SimpleNamespace(repo_id="me/model"))
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    push("me/model", tmp_path / "out")
    assert sent.keys() == {path.name for path in (tmp_path / "out").iterdir()}
    assert not any(str(tiny_gpt2.parent).encode() in data for data in sent.values())
    told = json.loads(sent["lifelong_edit.json"])
    assert (told["base"]["source"], told["source"]) == (tiny_gpt2.name, "me/model")
    assert {name: len(data) for name, data in sent.items()} == sending("me/model", tmp_path / "out").files
    for place, last in (("C:\\models\\ours\\", "ours"), ("~/m/ours", "ours"), ("a/b", "a/b"), (None, None)):
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "one" / "lifelong_edit.json").write_text(json.dumps([{"source": place}]))
        said = sending("me/model", tmp_path / "one").instead.get("lifelong_edit.json", json.dumps([{"source": place}]))
        assert json.loads(said) == [{"source": last}]


def test_what_would_be_pushed_is_told_and_a_hub_out_of_reach_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "b.txt").write_text("b")
    assert sending("me/model", tmp_path).files == {
        "inner/b.txt": 1,
        "model.safetensors": (tmp_path / "model.safetensors").stat().st_size,
    }
    with pytest.raises(UsageError, match="OWNER/NAME"):
        require_repository("a b/c/d")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LifelongEditError, match="the export stays in") as refused:
        push("me/model", tmp_path)
    assert "\n" not in str(refused.value)
