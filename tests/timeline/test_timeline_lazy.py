"""What looks at the log alone does without torch; what needs the model insists on the right one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from lifelong_edit.errors import ModelMismatchError, StoreError, UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.models import load_model
from lifelong_edit.timeline import Timeline

Gate = Callable[..., dict[str, Any]]

LOOK = """
import sys
from lifelong_edit.timeline import Timeline
with Timeline.open(sys.argv[1]) as timeline:
    timeline.log(), timeline.status(), timeline.facts(), timeline.show(1), timeline.at(1).shifts()
    timeline.rollback(1), timeline.tag("mark", 1), timeline.branch("trial", 0), timeline.switch("main")
    timeline.diff("mark", "trial"), timeline.delete_branch("trial"), timeline.delete_tag("mark")
    print(timeline.head, sorted({"torch", "transformers", "faiss", "datasets"} & set(sys.modules)))
"""


def test_looking_and_going_back_do_without_torch(
    start_store: Callable[..., Timeline], tmp_path: Path, batch: Callable[..., list[Fact]], lenient: Gate
) -> None:
    with start_store(tmp_path / "store") as timeline:
        timeline.apply(batch(0), gate=lenient)
        timeline.apply(batch(1), gate=lenient)
    command = [sys.executable, "-c", LOOK, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "8 []"


def test_status_says_where_the_timeline_stands(
    timeline: Timeline, batch: Callable[..., list[Fact]], tiny_gpt2: Path, lenient: Gate
) -> None:
    timeline.apply(batch(0), gate=lenient)
    timeline.apply(batch(1), gate=lenient)
    step = timeline.rollback(1)
    status = timeline.status()
    assert status["bytes"] > 10_000
    expected = {
        "head": 3, "state": 1, "steps": 4, "live_facts": 3, "superseded": 0, "weights_digest": step.weights_digest,
        "base_fingerprint": load_model(str(tiny_gpt2)).fingerprint, "model": str(tiny_gpt2), "editor": "gradient",
        "modules": [f"transformer.h.{layer}.mlp.c_proj{'@subject' if layer < 2 else ''}" for layer in range(4)],
        "preserved": 8,
    }  # fmt: skip
    assert status.items() >= expected.items()


def test_another_model_is_refused_with_both_fingerprints(
    start_store: Callable[..., Timeline], tmp_path: Path, tiny_gpt2: Path, batch: Any
) -> None:
    loaded = load_model(str(tiny_gpt2))
    expected = loaded.fingerprint
    loaded.model.transformer.wte.weight[0, 0] += 1
    loaded.model.save_pretrained(tmp_path / "other")
    loaded.tokenizer.save_pretrained(tmp_path / "other")
    start_store(tmp_path / "store").close()
    with Timeline.open(tmp_path / "store", model=str(tmp_path / "other")) as timeline:
        assert timeline.status()["base_fingerprint"] == expected
        with pytest.raises(ModelMismatchError, match=expected) as error:
            timeline.apply(batch(0))
        assert load_model(str(tmp_path / "other")).fingerprint in str(error.value)
        assert timeline.head == 0


def test_a_model_that_has_moved_can_be_pointed_to(
    start_store: Callable[..., Timeline], tmp_path: Path, tiny_gpt2: Path, batch: Any, lenient: Gate
) -> None:
    load_model(str(tiny_gpt2)).model.save_pretrained(tmp_path / "moved")
    load_model(str(tiny_gpt2)).tokenizer.save_pretrained(tmp_path / "moved")
    start_store(tmp_path / "store").close()
    with Timeline.open(tmp_path / "store", model=str(tmp_path / "moved")) as timeline:
        assert timeline.apply(batch(0), gate=lenient).step == 1


def test_a_taken_path_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="already there"):
        Timeline.create(tmp_path, model="no such model")


def test_settings_of_another_release_are_refused(
    start_store: Callable[..., Timeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start_store(tmp_path / "store") as timeline:
        record = timeline.show(0)
    config = record.provenance["config"]
    changed = msgspec.structs.replace(
        record, provenance={**record.provenance, "config": {**config, "settings": {"no_such_option": 1}}}
    )
    with pytest.raises(StoreError, match="no_such_option"):
        type(timeline.config).of(changed)
    assert type(timeline.config).of(record) == timeline.config


def test_the_store_holds_its_own_hypernetwork(
    start_store: Callable[..., Timeline], tmp_path: Path, make_network: Callable[..., Path], batch: Any, lenient: Gate
) -> None:
    folder = make_network(tmp_path / "network")
    tensors = load_file(folder / "network.safetensors")
    with start_store(tmp_path / "store", folder, editor="malmen") as timeline:
        first = timeline.apply(batch(0), gate=lenient).weights_digest
        fixed = timeline.fixed()
        timeline.rollback(0)
    for path in folder.iterdir():
        path.unlink()
    for name, array in tensors.items():
        np.testing.assert_array_equal(fixed[f"network/{name}"], array)
    with Timeline.open(tmp_path / "store") as timeline:
        assert timeline.apply(batch(0), again=True, gate=lenient).weights_digest == first
