"""A model in shards: each process holds a part of it, and all come to the digests of one process."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.cli.conftest import KILLED, SECONDS, Start, digests, ended, last_line
from tests.sharded import BEGUN, look, walk
from tests.zoo import DECODERS, EXPERTS, Zoo, with_vocabulary

Run = Callable[..., Result]
ROOT = str(Path(__file__).parents[2])
RULES = ("memit", "neurons", "ft", "grace")
"""A rule of each kind beside `gradient`: states at the subject, searches, training, and hooks."""


@pytest.fixture
def models(zoo: Zoo, tiny_tokenizer: Any) -> dict[str, str]:
    """Decoders by family: of one the head is the embedding, and of one it is not; one has experts."""
    options = {**DECODERS, **EXPERTS}
    return {
        name: str(zoo.model(name, with_vocabulary(options[name], tiny_tokenizer), tiny_tokenizer, seed=0))
        for name in ("olmo2", "cohere", "qwen3_moe")
    }


def test_shards_come_to_the_digests_of_one_process(
    together: Start, tmp_path: Path, tiny_gpt2: Path, tiny_bert: Path, models: dict[str, str], sentences: list[str]
) -> None:
    """Steps, answers, figures; keys and gradients of other families; and half of what is not edited in each process."""
    text = " ".join(sentences * 20)
    walks = [{"model": str(tiny_gpt2), "rule": rule, "changes": {}, "text": text} for rule in RULES]
    walks.append({"model": models["olmo2"], "rule": "gradient", "changes": {"modules": ["2-3"]}, "text": text})
    looks = [
        (models["cohere"], None),
        (models["qwen3_moe"], ["model.layers.3.self_attn.o_proj"]),
        (str(tiny_bert), None),
    ]
    told = {
        "walks": [{**one, "store": str(tmp_path / f"shards-{i}")} for i, one in enumerate(walks)],
        "looks": looks, "to": str(tmp_path),
    }  # fmt: skip
    code = BEGUN.format(root=ROOT, told=json.dumps(told))
    processes = together(befores={0: code, 1: code})
    alone: list[dict[str, Any]] = [walk(tmp_path / f"alone-{i}", **one, device="cpu") for i, one in enumerate(walks)]
    alone += [look(*one, "cpu") for one in looks]
    (first, _, err), (second, *_) = ended(processes)
    assert (first, second) == (0, 0), err
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for expected, *shards in zip(json.loads(json.dumps(alone)), *found, strict=True):
        assert sum(shard.pop("whole") for shard in shards) == 2 * expected.pop("whole")
        whole, held = expected.pop("here"), [shard.pop("here") for shard in shards]
        assert shards == [expected, expected]
        assert max(held) < 0.7 * whole
        assert sum(held) < 1.4 * whole


OPTION = ["--device", "sharded"]


def test_commands_of_two_processes(run: Run, together: Start, tmp_path: Path, making: list[str], news: Path) -> None:
    """The store is made in shards, and asked so; what number 0 does alone it does on the CPU."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    arguments = ["stream", news, *making, "--batch-size", 3, "--store"]
    assert run(*arguments, alone).exit_code == 0
    assert run("init", *making, *OPTION, "--store", shared).exit_code == 0
    (code, _, err), (other, *silent) = ended(together("stream", news, "--batch-size", 3, "--store", shared))
    assert (code, other, silent) == (0, 0, ["", ""]), err
    assert digests(shared) == digests(alone)
    (code, answer, err), (other, *_) = ended(together("ask", "The capital of Vienna 1 is", "--store", shared))
    assert (code, other) == (0, 0), err
    assert answer == run("ask", "The capital of Vienna 1 is", "--store", alone).stdout
    for store in (alone, shared):
        result = run("export", "--format", "delta", "--out", store.with_suffix(".out"), "--store", store)
        assert result.exit_code == 0, result.output
    one, two = ((store.with_suffix(".out") / "delta.safetensors").read_bytes() for store in (alone, shared))
    assert one == two


@pytest.mark.parametrize("killed", [0, 1])
def test_one_is_killed(
    run: Run, together: Start, tmp_path: Path, making: list[str], empty_store: Path, news: Path, killed: int
) -> None:
    """In a pass, in which the other waits for its shards: it ends with the sentence, and the same command goes on."""
    before = KILLED.format(module="lifelong_edit.tracing", owner="trace", name="_traced", call=2)
    arguments = ["stream", news, "--batch-size", 3, *OPTION, "--store", empty_store]
    processes = together(*arguments, befores={killed: before})
    assert processes[killed].wait(SECONDS) == -signal.SIGKILL
    code, _, err = ended(processes)[1 - killed]
    assert code == 1
    assert f"error: process {killed} of 2 ended before the others" in last_line(err)
    assert [kind for kind, *_ in digests(empty_store)] == ["init"]
    assert run(*arguments).exit_code == 0  # in one process it is the CPU
    assert [kind for kind, *_ in digests(empty_store)] == ["init", "edit", "edit"]


def test_encoder_decoders_are_refused(together: Start, tmp_path: Path, making: list[str], tiny_t5: Path) -> None:
    options = ["--model", tiny_t5, *making[2:6], "--set", "editor=gradient", *OPTION]
    (code, _, err), _ = ended(together("init", *options, "--store", tmp_path / "store"))
    assert code == 2
    assert "is an encoder-decoder" in last_line(err)
    assert not (tmp_path / "store").exists()
