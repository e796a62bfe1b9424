"""Models over several devices: which maps are taken, what they come to, and that a model in parts is the model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from lifelong_edit.errors import UsageError
from lifelong_edit.models import LoadedModel, fingerprint_of, generate_greedy, load_model
from lifelong_edit.models.families import family_of, find_modules
from lifelong_edit.models.loading import auto_of
from lifelong_edit.models.placement import (
    Map,
    blocks_of,
    made_for,
    may_be_spread,
    read_map,
    room_for,
    settled,
    spread,
    state_of,
    where_tokens_go,
)

HALF: dict[str, Any] = {
    "": "cpu",
    "transformer.wte": "disk",
    "lm_head": "disk",
    "transformer.h.0": "disk",
    "transformer.h.1": "disk",
    "transformer.h.3": "disk",
    "transformer.h.3.mlp.c_proj": "cpu",
}
"""Of a GPT-2 of four layers: the embedding and three layers on the disk, but for a matrix in the last of them."""
EDITED = ["2-3"]
SHIFTS = {
    f"transformer.h.{i}.mlp.c_proj": torch.randn(128, 32, generator=torch.Generator().manual_seed(i)) for i in (2, 3)
}
PROMPTS = ["The capital of France is", "Ada Lovelace was born in"]


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a device map."""
    path = tmp_path_factory.mktemp("map") / "half.json"
    path.write_text(json.dumps(HALF))
    return str(path)


@pytest.fixture(scope="module")
def whole(tiny_gpt2: Path) -> LoadedModel:
    return load_model(str(tiny_gpt2), modules=EDITED)


@pytest.fixture(scope="module")
def parted(tiny_gpt2: Path, half: str) -> LoadedModel:
    """The same model over the CPU and the disk."""
    return load_model(str(tiny_gpt2), modules=EDITED, device=half)


def bare_and_edited(folder: Path, entries: list[str]) -> tuple[Any, Any]:
    config = AutoConfig.from_pretrained(folder)
    family = family_of(config, entries)
    with torch.device("meta"):
        bare = auto_of(family.kind, config).from_config(config)
    return bare, find_modules(bare, family, entries)


# -- a model in parts


def test_what_is_edited_is_there_and_the_rest_is_on_the_disk(parted: LoadedModel) -> None:
    on_disk = {name for name, tensor in parted.model.named_parameters() if tensor.device.type == "meta"}
    assert {name for name in on_disk if ".h.3." in name} and "transformer.h.3.mlp.c_proj.weight" not in on_disk
    assert {m.name: parted.device_of(m.name) for m in parted.modules} == {
        f"transformer.h.{i}.mlp.c_proj": torch.device("cpu") for i in (2, 3)
    }
    assert parted.device == torch.device("cpu")


def test_it_is_the_same_model_before_and_after_it_ran(whole: LoadedModel, parted: LoadedModel) -> None:
    assert parted.fingerprint == whole.fingerprint
    assert generate_greedy(parted, PROMPTS, 6) == generate_greedy(whole, PROMPTS, 6)
    # hooks have put other parameters in the place of each by now
    assert fingerprint_of(parted.model) == whole.fingerprint
    found, wanted = state_of(parted.model), whole.model.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert found["lm_head.weight"].data_ptr() == found["transformer.wte.weight"].data_ptr()


def test_it_stands_at_a_shift_and_goes_back(whole: LoadedModel, parted: LoadedModel) -> None:
    before = generate_greedy(parted, PROMPTS, 6)
    with whole.at(SHIFTS), parted.at(SHIFTS):
        moved = generate_greedy(parted, PROMPTS, 6)
        assert moved == generate_greedy(whole, PROMPTS, 6) != before
    assert generate_greedy(parted, PROMPTS, 6) == before


def test_a_copy_with_a_shift_leaves_it_alone(parted: LoadedModel, whole: LoadedModel) -> None:
    before, ids = generate_greedy(parted, PROMPTS, 6), torch.arange(7)[None]
    made, wanted = parted.edited_copy(SHIFTS), whole.edited_copy(SHIFTS)
    assert torch.equal(made(input_ids=ids).logits, wanted(input_ids=ids).logits)
    assert generate_greedy(parted, PROMPTS, 6) == before


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_it_is_exported_whole(
    dtype: torch.dtype | None, parted: LoadedModel, whole: LoadedModel, tmp_path: Path
) -> None:
    from lifelong_edit.export.whole import write_transformers

    for name, loaded in (("parted", parted), ("whole", whole)):
        write_transformers(loaded, SHIFTS, tmp_path / name, dtype)
    assert (tmp_path / "parted/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_other_dtypes_are_read_as_they_are_asked_for(tiny_gpt2: Path, half: str) -> None:
    found = [load_model(str(tiny_gpt2), modules=EDITED, device=d, dtype="bfloat16") for d in ("cpu", half)]
    assert found[0].fingerprint == found[1].fingerprint
    assert generate_greedy(found[0], PROMPTS, 6) == generate_greedy(found[1], PROMPTS, 6)


def test_layers_in_parts_fetch_their_inputs(parted: LoadedModel) -> None:
    """Their residual stream may come from another device than that on which their parts run."""
    places = spread(parted.model)
    assert "transformer.h.3" not in places and places["transformer.h.3.mlp.c_proj"] == "cpu"
    assert all(hasattr(block, "_hf_hook") for _, block in blocks_of(parted.model))


def test_an_encoder_decoder_in_parts_is_the_same(tiny_t5: Path, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"": "disk", "decoder.block.2": "cpu", "encoder.block.3": "cpu", "shared": "disk"}))
    options: dict[str, Any] = {"modules": ["encoder.block.3.layer.1.DenseReluDense.wo"]}
    whole, parted = (load_model(str(tiny_t5), **options, device=d) for d in ("cpu", str(path)))
    assert whole.fingerprint == parted.fingerprint
    ids, begin = torch.arange(3, 12)[None], torch.zeros(1, 1, dtype=torch.long)
    wanted, found = (m.model(input_ids=ids, decoder_input_ids=begin).logits for m in (whole, parted))
    assert torch.equal(wanted, found)


# -- maps that are refused


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({**HALF, "transformer.h.9": "cpu"}, "names 'transformer.h.9', which the model does not have; it has"),
        ({**HALF, "transformer.h.2": "disk"}, "transformer.h.2.mlp.c_proj, which is edited, on the disk, where"),
        ({"transformer.h": "cpu"}, "has no place for transformer.wte.weight; name it, or"),
        ({**HALF, "lm_head": "cpu"}, "puts lm_head.weight at cpu and transformer.wte.weight, with which it is one, at"),
        ({**HALF, "lm_head": "gpu"}, "unknown device 'gpu': expected"),
        ({**HALF, "lm_head": 1.5}, "puts 'lm_head' at 1.5; expected a device as cuda:1 or cpu, or disk"),
        ({}, "is no device map; expected a JSON object"),
        (["cpu"], "is no device map; expected a JSON object"),
    ],
)
def test_a_map_that_leads_nowhere_is_refused(given: Any, said: str, tiny_gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps(given))
    with pytest.raises(UsageError, match=re.escape(said)):
        load_model(str(tiny_gpt2), modules=EDITED, device=str(path))


def test_nothing_of_a_gguf_file_stays_on_the_disk(whole: LoadedModel, half: str, tmp_path: Path) -> None:
    from lifelong_edit.export.gguf import write_gguf

    write_gguf(whole, {}, tmp_path)
    (file,) = tmp_path.glob("*.gguf")
    with pytest.raises(UsageError, match="is a GGUF file, which is unpacked in memory"):
        load_model(str(file), modules=EDITED, device=half)


def test_a_map_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    for name in ("none.json", "broken.json"):
        with pytest.raises(UsageError, match="found no device map at"):
            read_map(str(tmp_path / name))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"": 0, "transformer.h.2": "cpu"},
            "c_proj, which is edited, on the CPU beside cuda:0, which would get a copy",
        ),
        ({"": 0, "transformer.h.2.mlp": 1}, "lets transformer.h.2 run on cuda:0 and cuda:1; a layer runs on one"),
    ],
)
def test_what_only_cards_can_have_wrong_is_refused(given: Map, said: str, tiny_gpt2: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        settled(given, *bare_and_edited(tiny_gpt2, EDITED), "map.json")


def test_a_map_is_told_as_coarsely_as_it_can_be(tiny_gpt2: Path) -> None:
    given: Map = {"": 1, "transformer.h": 0, "transformer.h.1": "disk", "transformer.h.1.mlp.c_proj": 0}
    found = settled(given, *bare_and_edited(tiny_gpt2, ["1"]), "map.json")
    inside = {"ln_1": "disk", "attn": "disk", "ln_2": "disk", "mlp.c_fc": "disk", "mlp.c_proj": 0}
    assert found == {
        "transformer.wte": 1,
        "transformer.wpe": 1,
        **{f"transformer.h.{i}": 0 for i in (0, 2, 3)},
        **{f"transformer.h.1.{name}": place for name, place in inside.items()},
        "transformer.ln_f": 1,
        "lm_head": 1,
    }


def test_an_edited_matrix_that_is_nowhere_is_refused_whoever_loaded_the_model(parted: LoadedModel) -> None:
    """As one that somebody else spread, and a state is to be attached to."""
    with pytest.raises(UsageError, match=r"transformer.h.1.mlp.c_proj, which is edited, is kept off the device"):
        parted.editing(["1"])


def test_only_maps_need_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        assert not may_be_spread("auto") and not may_be_spread("cuda:1")
        with pytest.raises(UsageError, match=r"which is not installed; pip install 'lifelong-edit\[devices\]'"):
            may_be_spread("map.json")


# -- a map for the machine at hand


def test_a_model_that_fits_is_not_spread(tiny_gpt2: Path) -> None:
    bare, edited = bare_and_edited(tiny_gpt2, EDITED)
    assert made_for(bare, edited, torch.float32, {"cpu": 10**9}) is None
    assert made_for(bare, edited, torch.float32, {0: 10**9, 1: 10**9, "cpu": 10**9}) is None
    assert load_model(str(tiny_gpt2), modules=EDITED, device="auto").fingerprint
    assert where_tokens_go("auto").type in ("cpu", "cuda")


def test_what_is_edited_is_in_memory_when_the_rest_is_not(tiny_gpt2: Path) -> None:
    bare, edited = bare_and_edited(tiny_gpt2, EDITED)
    room = room_for(edited, torch.float32)
    found = made_for(bare, edited, torch.float32, {"cpu": int((room + 120_000) / 0.9)})
    assert found is not None and "disk" in found.values()
    assert settled(found, bare, edited, "auto") == found  # where edited matrices may be


def test_cards_come_first_and_hold_what_is_edited(tiny_gpt2: Path) -> None:
    bare, edited = bare_and_edited(tiny_gpt2, EDITED)
    room = room_for(edited, torch.float32)
    some = int((room + 120_000) / 0.9)
    found = made_for(bare, edited, torch.float32, {0: some, 1: some, "cpu": 10**6})
    assert (found is not None and set(found.values()) == {0, 1, "cpu"}) or set(found.values()) == {0, 1}
    tight = made_for(bare, edited, torch.float32, {0: some, "cpu": 10**6})
    assert tight is not None and set(tight.values()) == {0, "cpu"}
    assert settled(tight, bare, edited, "auto") == tight
