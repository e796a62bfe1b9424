"""An export answers as the edited model does, appears whole or not at all, and replaces only what it may."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lifelong_edit.atomic import remove_leftovers
from lifelong_edit.errors import LifelongEditError, UsageError
from lifelong_edit.export.formats import export
from lifelong_edit.models import LoadedModel, Shifts, fingerprint_of, generate_greedy, load_model

PROMPTS = ["The capital of France is", "Ada Lovelace was born", "Kenya's currency is"]

# Exports with a shift of 1e-2 to PLACE/N/out for each N, in a child that SIGKILL ends at the N-th thing it does with
# files there: opening, renaming, beginning to remove. Prints the child's exit status.
EXPORT_AND_DIE = """
import os, signal, sys
from pathlib import Path
import torch
from lifelong_edit.export.formats import export
from lifelong_edit.models import Shifts, load_model
source, place, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
loaded = load_model(source)
shifts = {m.name: torch.full((m.d_in, m.d_out), 1e-2) for m in loaded.modules}
def run(last):
    out, seen = place / str(last) / "out", 0
    def hook(event, arguments):
        nonlocal seen
        if event in ("open", "os.rename", "shutil.rmtree") and str(out.parent) in str(arguments):
            seen += 1
            if seen == last:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    export("transformers", loaded, Shifts(shifts), out, force=True)
for last in range(1, count + 1):
    child = os.fork()
    if child == 0:
        run(last)
        os._exit(0)
    print(last, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def loaded(tiny_gpt2: Path) -> LoadedModel:
    return load_model(str(tiny_gpt2))


def random_shifts(loaded: LoadedModel, size: float = 0.05) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {m.name: torch.randn(m.d_in, m.d_out, generator=generator) * size for m in loaded.modules}


def export_transformers(loaded: LoadedModel, shifts: Mapping[str, torch.Tensor], out: Path, **options: Any) -> None:
    export("transformers", loaded, Shifts(shifts), out, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_from_pretrained_loads_it_and_answers_the_same(loaded: LoadedModel, tmp_path: Path) -> None:
    shifts = random_shifts(loaded)
    export_transformers(loaded, shifts, tmp_path / "out", provenance={"step": 7})
    assert fingerprint_of(loaded.model) == loaded.fingerprint
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    with loaded.at(shifts):
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, loaded.model.get_parameter(name)), name
        answers = generate_greedy(loaded, PROMPTS, 6)
    for prompt, expected in zip(PROMPTS, answers, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        new = model.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :].tolist()
        assert [t for t in new if t != tokenizer.eos_token_id] == expected
    stated = json.loads((tmp_path / "out" / "lifelong_edit.json").read_text(encoding="utf-8"))
    assert stated["step"] == 7
    assert stated["base"]["fingerprint"] == loaded.fingerprint
    assert stated["fingerprint"] == load_model(str(tmp_path / "out")).fingerprint != loaded.fingerprint
    assert not list((tmp_path / "out").glob("*.bin"))


def test_no_shifts_is_the_base_model_whatever_stands_at_the_moment(loaded: LoadedModel, tmp_path: Path) -> None:
    with loaded.at(random_shifts(loaded)):
        export_transformers(loaded, {}, tmp_path / "out")
    assert load_model(str(tmp_path / "out")).fingerprint == loaded.fingerprint


def test_keeps_the_dtype_that_the_model_was_loaded_in(tiny_gpt2: Path, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_gpt2), dtype="bfloat16")
    export_transformers(loaded, random_shifts(loaded), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert fingerprint_of(model) == fingerprint_of(loaded.edited_copy(random_shifts(loaded)))


def test_same_export_twice_gives_the_same_bytes(loaded: LoadedModel, tmp_path: Path) -> None:
    export_transformers(loaded, random_shifts(loaded), tmp_path / "a")
    export_transformers(loaded, random_shifts(loaded), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_replaces_an_earlier_export_only_by_force_and_nothing_else_ever(loaded: LoadedModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_transformers(loaded, {}, out)
    before = contents(out)
    with pytest.raises(UsageError, match="--force"):
        export_transformers(loaded, random_shifts(loaded), out)
    assert contents(out) == before
    export_transformers(loaded, random_shifts(loaded), out, force=True)
    assert contents(out) != before
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter").write_text("one")
    with pytest.raises(UsageError, match="never replaced"):
        export_transformers(loaded, {}, foreign, force=True)
    with pytest.raises(UsageError, match="is a file"):
        export_transformers(loaded, {}, foreign / "chapter", force=True)
    assert (foreign / "chapter").read_text() == "one"
    (tmp_path / "empty").mkdir()
    export_transformers(loaded, {}, tmp_path / "empty" / ".." / "empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "out", "thesis"]


def test_failure_half_way_leaves_the_old_target_and_nothing_beside_it(loaded: LoadedModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_transformers(loaded, {}, out)
    before = contents(out)
    with pytest.raises(TypeError):  # no JSON: found only after the weights are written
        export_transformers(loaded, {}, out, force=True, provenance={"step": object()})
    assert contents(out) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_folder_that_cannot_be_written_gives_one_sentence(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((LifelongEditError), match="cannot export to"):
        export_transformers(loaded, {}, tmp_path / "file" / "out")


def test_export_killed_anywhere_leaves_the_old_target_or_the_new_one(
    loaded: LoadedModel, tiny_gpt2: Path, tmp_path: Path
) -> None:
    count = 18
    shifts = {m.name: torch.full((m.d_in, m.d_out), 1e-2) for m in loaded.modules}
    old, new = loaded.fingerprint, fingerprint_of(loaded.edited_copy(shifts))
    export_transformers(loaded, {}, tmp_path / "old")
    for last in range(1, count + 1):
        shutil.copytree(tmp_path / "old", tmp_path / str(last) / "out")
    command = [sys.executable, "-c", EXPORT_AND_DIE, str(tiny_gpt2), str(tmp_path), str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True)
    status = dict(map(int, line.split()) for line in run.stdout.splitlines())
    assert set(status.values()) == {0, -signal.SIGKILL}, run.stderr
    assert status[1] == -signal.SIGKILL and status[count] == 0
    seen = set()
    for last, code in status.items():
        place = tmp_path / str(last)
        found = load_model(str(place / "out")).fingerprint
        seen.add((code, found))
        if code == 0:
            assert [p.name for p in place.iterdir()] == ["out"]
        remove_leftovers(place / "out")
        assert [p.name for p in place.iterdir()] == ["out"]
    # Killed before the exchange, killed after it, and run to its end.
    assert seen == {(-signal.SIGKILL, old), (-signal.SIGKILL, new), (0, new)}


@pytest.mark.parametrize(("held", "dtype"), [("float32", "float16"), ("float32", "bfloat16"), ("bfloat16", "float32")])
def test_another_dtype_is_written_and_stated(tiny_gpt2: Path, tmp_path: Path, held: str, dtype: str) -> None:
    loaded = load_model(str(tiny_gpt2), dtype=held)
    export_transformers(loaded, shifts := random_shifts(loaded), tmp_path / "out", dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")  # in the dtype that its configuration names
    meant = loaded.edited_copy(shifts).to(getattr(torch, dtype))
    assert {str(p.dtype) for p in model.parameters()} == {f"torch.{dtype}"}
    assert fingerprint_of(model) == fingerprint_of(meant)
    assert model.lm_head.weight is model.transformer.wte.weight
    stated = json.loads((tmp_path / "out" / "lifelong_edit.json").read_text(encoding="utf-8"))
    assert (stated["fingerprint"], stated["dtype"]) == (fingerprint_of(model), dtype)
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert size < sum(p.numel() * p.element_size() for p in meant.parameters()) + 20_000


def test_numbers_too_large_for_a_dtype_are_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    module = loaded.modules[0]
    with pytest.raises(LifelongEditError, match=rf"{module.name}\.weight has numbers that float16 cannot hold"):
        export_transformers(
            loaded, {module.name: torch.full((module.d_in, module.d_out), 1e5)}, tmp_path / "out", dtype="float16"
        )
    assert list(tmp_path.iterdir()) == []


def test_what_reads_back_as_another_model_is_not_kept(loaded: LoadedModel, tmp_path: Path) -> None:
    """A model of which transformers would not save all: here a layer norm that it takes for tied."""
    model = loaded.model.transformer
    model.h[0].ln_1.weight.data[0] = 7.0

    class Forgetful(type(loaded.model)):  # type: ignore[misc]
        def save_pretrained(self, folder: Path, state_dict: dict[str, torch.Tensor], **options: Any) -> None:
            ones = {"transformer.h.0.ln_1.weight": torch.ones_like(model.h[0].ln_1.weight)}
            super().save_pretrained(folder, state_dict=state_dict | ones, **options)

    loaded.model.__class__ = Forgetful
    with pytest.raises(LifelongEditError, match=r"reads back with fingerprint [0-9a-f]{32}, expected [0-9a-f]{32}"):
        export_transformers(loaded, {}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_small_files_of_the_base_come_along(tiny_gpt2: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_gpt2, base)
    (base / "preprocessor_config.json").write_text('{"image_processor_type": "X"}')
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (base / "notes.txt").write_text("mine")
    settings = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(settings | {"temperature": 0.5, "repetition_penalty": 1.3}))
    loaded = load_model(str(base))
    export_transformers(loaded, {}, tmp_path / "out")
    found = contents(tmp_path / "out")
    assert found["preprocessor_config.json"] == b'{"image_processor_type": "X"}'
    assert found["chat_template.jinja"] == b"{{ messages }}"
    said = json.loads(found["generation_config.json"])
    assert (said["temperature"], said["repetition_penalty"]) == (0.5, 1.3)
    assert "notes.txt" not in found
    shutil.rmtree(base)
    export_transformers(loaded, {}, tmp_path / "later")
    assert contents(tmp_path / "later")["model.safetensors"] == found["model.safetensors"]


def test_a_base_in_several_files_is_exported_as_one_model(tiny_gpt2: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_gpt2, base)
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(base, max_shard_size="50KB")
    (base / "model.safetensors").unlink(missing_ok=True)
    loaded = load_model(str(base))
    export_transformers(loaded, {}, tmp_path / "out")
    assert load_model(str(tmp_path / "out")).fingerprint == loaded.fingerprint == load_model(str(tiny_gpt2)).fingerprint
