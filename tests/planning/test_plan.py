"""`plan`: what is measured in small, what is told of it, and what is advised."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lifelong_edit import cache
from lifelong_edit.bench import Bench
from lifelong_edit.cli import cli
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Probe
from lifelong_edit.models import load_model
from lifelong_edit.planning import measure
from lifelong_edit.planning import plan as planning
from lifelong_edit.planning.machine import Machine, Took, Watch, free_memory
from lifelong_edit.planning.measure import Again, Batch, Measured, for_calibration
from lifelong_edit.planning.plan import Cost, costs, line, make_plan
from lifelong_edit.planning.samples import sample_facts
from lifelong_edit.planning.small import LAYERS, build_small, size_of
from lifelong_edit.planning.training import Steps, Trained
from lifelong_edit.training.episodes import TrainSettings

TINY = Settings(
    modules=("2-3",), passes=1, preserved=4, rehearse=2, phrasings=1, c0=50.0, text_tokens=3000, micro_batch=8,
    reconsolidation_preserved=4,
)  # fmt: skip


def measured(a_fact: float = 0.1, fixed: float = 2.0) -> Measured:
    """A calibration in which everything is a straight line."""

    def batch(count: int, live: int) -> Batch:
        rows = count + min(2, live)
        return Batch(count, live, Took(fixed + a_fact * rows, 1000 + 10 * rows), 100 * rows, 50 * rows, 10_000)

    return Measured(
        loading=1.0,
        preserving=4.0,
        texts=((1000, 3.0), (3000, 7.0)),
        probes=4,
        standing=900,
        fixed=400,
        prompts=40,
        missing=0,
        batches=[batch(2, 0), batch(4, 2), batch(16, 6)],
        again=[Again(6, 0.56, Took(2 * 0.56 + 3, 1100)), Again(22, 0.72, Took(2 * 0.72 + 3, 1200))],
    )


def test_what_is_a_straight_line_is_told_exactly() -> None:
    settings = TINY.replace(text_tokens=60_000, reconsolidation_passes=24, snapshot_every=10)
    found = costs(measured(), settings, 100, 50, 8)
    assert found["init"].disk == 400 + 2 * 40
    assert found["init"].seconds == pytest.approx(1 + (1 + 2 * 60) + 2 * 4)
    assert found["batch"].seconds == pytest.approx(2 + 0.1 * 52)
    assert found["batches"].seconds == pytest.approx(2 * (2 + 0.1 * 51))  # nothing is rehearsed by the first one
    assert found["batch"].disk == 100 * 52 + 50 * 52
    assert found["batches"].disk == 2 * 150 * 51 + 10_000
    assert found["reconsolidation"].seconds == pytest.approx(24 * (0.5 + 0.01 * 100) + 3)
    assert found["batch"].memory == 1000 + 10 * 52 + 50 * 100
    twice = costs(measured(), settings, 100, 50, 8, layers=2, extra=7000)
    assert twice["batch"].seconds == pytest.approx(2 * found["batch"].seconds)
    assert twice["init"].memory == found["init"].memory + 7000


def test_training_is_told_of_the_batches_that_it_will_have() -> None:
    """Seconds 1 + .1 a fact for a step, .2 a fact for a validation; twice as many layers."""
    sizes = tuple(Steps(n, Took(1 + 0.1 * n, 1000 + 10 * n), 0.2 * n) for n in (4, 12))
    work: dict[str, Cost] = {}
    learn = TrainSettings(batch_size=50, validation_facts=100, validate_every=10)
    found = Trained((sizes[0], sizes[1]), 500, 100)
    (note,) = planning._with_training(work, found, learn, 10, 2, 7)
    step, whole = work["training step"], work["training"]
    assert step.seconds == pytest.approx(2 * 6) and step.memory == whole.memory == 1500 + 7
    assert whole.seconds == pytest.approx(600 + 40) and whole.disk == 600
    assert f"about {round((600 - 40) / (12 + 4))} steps" in note and "takes 40 s" in note
    assert "one step" in planning._with_training(work, None, learn, 10, 2, 7)[0]


def test_noise_makes_nothing_negative() -> None:
    assert line(1, 5.0, 2, 4.0, 100) == 4.0
    assert line(1, 1.0, 2, 10.0, 3) == pytest.approx(19.0)
    assert line(10, 1.0, 20, 10.0, 2) == 0.0
    assert line(3, 7.0, 3, 9.0, 50) == 7.0


@pytest.mark.parametrize("machine", [Machine("cpu", 10**9, None, 10**9, 1), Machine("cuda", 10**12, 10**9, 10**9, 1)])
def test_what_does_not_fit_is_told_what_to_set(machine: Machine) -> None:
    size = planning.Size(10**9, 32, ((14_336, 4096), (8000, 4096), (8000, 4096)))
    work = {"init": Cost(seconds=1, memory=2 * 10**9, disk=1), "batches": Cost(seconds=1, memory=1, disk=2 * 10**9)}
    fits, advice = planning._advice(work, machine, Settings(), size, 4 * 10**9, 1000)
    assert not fits
    told = " ".join(advice)
    known = Settings.__struct_fields__
    for setting in ("micro_batch", "gram_rank", "shift_dtype", "key_dtype", "snapshot_every"):
        assert f"--set {setting}=" in told and setting in known
    assert told.count("key_dtype") == 1 and "27 MiB less for the keys" in told
    assert "--dtype bfloat16" in told and "compact" in told
    assert advice[0].startswith("--device auto: ")
    _, others = planning._advice(work, machine, Settings(device="auto"), size, 4 * 10**9, 1000)
    assert others == advice[1:]
    small = {"init": Cost(seconds=1, memory=1, disk=1), "batches": Cost(seconds=1, memory=1, disk=1)}
    assert planning._advice(small, machine, Settings(), size, 1, 1000) == (True, [])
    set_already = Settings(micro_batch=4, dtype="bfloat16", gram_rank=64, modules=("3",), key_dtype="float16")
    assert "every setting" in planning._less_memory(set_already, planning.Size(1, 2, ((64, 8),)), 1, 9)[0]


def test_nothing_of_a_calibration_depends_on_how_a_batch_turns_out() -> None:
    found = for_calibration(Settings())
    assert found.more_passes == 0 and found.gate_perplexity > 1e9 and found.text_tokens < Settings().text_tokens
    assert len({fact.digest for fact in sample_facts(200, 0)}) == 200


def test_a_watch_sees_the_peak_of_its_own_stretch() -> None:
    watch = Watch(torch.device("cpu"))
    large = watch.over(lambda: torch.zeros(40_000_000).add_(1))
    small = watch.over(lambda: torch.zeros(1000).add_(1))
    assert large.peak - small.peak > 100_000_000
    assert free_memory() > 0


def test_a_calibration_neither_reads_nor_leaves_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[int] = []

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return {"a": np.arange(3)}

    with cache.bypassed():
        cache.arrays("text", "key", make)
    assert not list(tmp_path.rglob("*.safetensors"))
    cache.arrays("text", "key", make)
    with cache.bypassed():
        cache.arrays("text", "key", make)
    cache.arrays("text", "key", make)
    assert len(made) == 3


def test_a_machine_of_several_cards_is_told_of_shards() -> None:
    size = planning.Size(10**9, 32, ((1000, 1000),) * 2)
    work = {"init": Cost(seconds=1, memory=2 * 10**9, disk=1), "batches": Cost(seconds=1, memory=1, disk=1)}
    cards = Machine("cuda", 10**12, 10**9, 10**9, 1, cards=4)
    _, advice = planning._advice(work, cards, Settings(), size, 4 * 10**9, 1000)
    assert advice[0].startswith("--device sharded, with --processes 4 ")
    _, others = planning._advice(work, cards, Settings(), size, 4 * 10**9, 1000, in_shards=True)
    assert not any("sharded" in line for line in others)
    edited = 4 * 2 * 10**6  # bytes of the two matrices, which every process holds whole
    assert planning.said_bytes(edited + (4 * 10**9 - edited) / 4) in planning._in_shards(size, 4 * 10**9, 4)


def test_a_plan_for_shards_says_what_a_process_holds(tiny_gpt2: Path, sentences: list[str]) -> None:
    found = make_plan(
        str(tiny_gpt2), TINY.replace(device="sharded"), 50, 20, preserve=[], text=[" ".join(sentences * 20)],
        processes=3,
    )  # fmt: skip
    assert any("each of 3 processes holds" in note for note in found.notes) and found.machine["device"] == "cpu"


def test_a_device_map_is_refused(tiny_gpt2: Path) -> None:
    with pytest.raises(UsageError, match="`plan` measures one device; found the device map"):
        make_plan(str(tiny_gpt2), TINY.replace(device="m.json"), 50, 20, preserve=[], text=["a"])


def test_a_plan_of_a_tiny_model(tiny_gpt2: Path, sentences: list[str], tmp_path: Path) -> None:
    probes = [Probe(prompt=s.rsplit(" ", 1)[0], subject=f"none {i}") for i, s in enumerate(sentences)]
    found = make_plan(
        str(tiny_gpt2), TINY, 500, 20, preserve=probes, text=[" ".join(sentences * 20)], folder=tmp_path / "none"
    )
    assert found.fits and found.advice == [] and found.measured_on == "the model"
    assert set(found.work) == {"init", "batch", "batches", "reconsolidation"}
    assert all(cost.seconds > 0 and cost.memory > 10**7 for cost in found.work.values())
    assert found.work["batches"].seconds == pytest.approx(25 * found.work["batch"].seconds, rel=0.2)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("editor", ["gradient", "mend"])
def test_a_plan_with_training(
    tiny_gpt2: Path, sentences: list[str], monkeypatch: pytest.MonkeyPatch, editor: str
) -> None:
    """Of a rule that cannot do without a network the calibration makes one first. No store is at hand as it trains."""
    held, train_a_little = list[int](), measure.measure_training

    def benches() -> int:
        gc.collect()
        return sum(type(one) is Bench for one in gc.get_objects())

    def watched(*given: Any, **named: Any) -> Trained | None:
        held.append(benches())
        return train_a_little(*given, **named)

    monkeypatch.setattr(measure, "measure_training", watched)
    before = benches()
    kind = rule_of(editor).settings
    known = msgspec.structs.asdict(TINY) | {"editor": editor}
    settings = kind(**{name: known[name] for name in kind.__struct_fields__ if name in known})
    train = TrainSettings(rank=4, batch_size=8, probes=8, validation_facts=8)
    found = make_plan(
        str(tiny_gpt2), settings, 50, 20, preserve=[], text=[" ".join(sentences * 20)], minutes=5, train=train
    )
    assert {"init", "batch", "batches", "training", "training step"} <= set(found.work)
    whole, step = found.work["training"], found.work["training step"]
    assert 300 < whole.seconds < 400 and 0 < step.seconds < 60 and whole.disk > 1000 and step.memory > 10**7
    assert any("5 minutes of training" in note for note in found.notes)
    assert held == [before]


def test_training_is_told_of_rules_that_have_it(tiny_gpt2: Path) -> None:
    settings = rule_of("ft").settings(editor="ft")
    with pytest.raises(UsageError, match="found minutes of training for the editing rule ft"):
        make_plan(str(tiny_gpt2), settings, 50, 20, preserve=[], text=["text"], minutes=5)


def test_a_model_that_is_too_large_is_built_of_two_layers(
    tiny_gpt2: Path, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = size_of(str(tiny_gpt2), ("2-3",), None, "answer")
    assert size is not None and size.layers == 4 and size.matrices == ((128, 32), (128, 32))
    small = load_model(str(build_small(str(tiny_gpt2), tmp_path / "small", None, torch.float32)))
    assert small.layers == LAYERS
    monkeypatch.setattr(planning, "machine_at", lambda *_: Machine("cpu", 2 * size.parameters, None, 10**12, 1))
    found = make_plan(str(tiny_gpt2), TINY, 50, 20, preserve=[], text=[" ".join(sentences * 20)])
    assert found.measured_on == "2 of 4 layers" and not found.fits and found.advice


def test_the_command(tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def known(model: str, settings: Any, facts: int, batch_size: int, **_: Any) -> Any:
        seen.append((model, settings.micro_batch, facts, batch_size))
        cost = {"init": Cost(seconds=61, memory=3 << 30, disk=5 << 20)}
        return planning.Plan(
            model=model, editor="gradient", facts=facts, batch_size=batch_size, parameters=10**6,
            machine={"memory": 1 << 30, "disk": 1 << 30, "device_memory": None}, measured_on="the model", work=cost,
            fits=False, advice=["--set micro_batch=4: less"], notes=["a note"],
        )  # fmt: skip

    monkeypatch.setattr("lifelong_edit.planning.plan.make_plan", known)
    run: Callable[..., Any] = CliRunner().invoke
    words = ["plan", "--model", str(tiny_gpt2), "--facts", "70", "--set", "micro_batch=16"]
    told = run(cli, words)
    assert told.exit_code == 0, told.output
    assert seen == [(str(tiny_gpt2), 16, 70, 50)]
    assert "3.0 GiB" in told.stdout and "set: --set micro_batch=4" in told.stdout and "no" in told.stdout
    found = json.loads(run(cli, [*words, "--json"]).stdout)
    assert found["work"]["init"]["disk"] == 5 << 20
    assert run(cli, ["plan"]).exit_code == 2
    told = run(cli, [*words, "--train", "rank=4"])
    assert told.exit_code == 2 and "--minutes" in told.output
