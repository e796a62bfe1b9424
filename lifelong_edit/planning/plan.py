"""From a calibration to what a store will take, and what to set where that is more than there is."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from lifelong_edit.bench import Say, silent
from lifelong_edit.cache import bypassed
from lifelong_edit.editors.registry import TRAINED, rule_of
from lifelong_edit.editors.ridge.settings import RidgeSettings
from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Probe
from lifelong_edit.numerics.devices import DTYPES, resolve_device
from lifelong_edit.numerics.textgram import RANK, rank_for
from lifelong_edit.planning.machine import Clock, Machine, free_memory, machine_at
from lifelong_edit.planning.measure import Measured, calibrate
from lifelong_edit.planning.small import LAYERS, Size, build_small, size_of
from lifelong_edit.planning.training import Trained
from lifelong_edit.settings import SHARDED, StoreSettings, is_map
from lifelong_edit.training.episodes import TrainSettings

FITS = 0.85
"""The share of free memory, or disk, that is made use of."""
PASSES = 24
"""Rounds of a reconsolidation of a rule that counts them and says nothing of how many."""


class Cost(msgspec.Struct, kw_only=True):
    """What a stretch of work takes: seconds, bytes of memory at its peak, bytes that it leaves on the disk."""

    seconds: float
    memory: int
    disk: int


class Plan(msgspec.Struct, kw_only=True):
    """What a store for a model takes on a machine.

    work: `init`, `batch` (one), `batches` (all), `reconsolidation` where the rule has one; where training was asked for
    `training`, and `training step`, one of the optimiser's. fits: whether the machine has it. advice: what to set, the
    first thing first. notes: how the figures came about. measured_on: `model`, or `layers` of it where it is too large
    to be loaded here.
    """

    model: str
    editor: str
    facts: int
    batch_size: int
    parameters: int | None
    machine: dict[str, Any]
    measured_on: str
    work: dict[str, Cost]
    fits: bool
    advice: list[str]
    notes: list[str]


def make_plan(
    model: str,
    settings: StoreSettings,
    facts: int,
    batch_size: int,
    *,
    preserve: Sequence[Probe],
    text: Sequence[str],
    hypernetwork: Path | None = None,
    revision: str | None = None,
    folder: Path | None = None,
    minutes: float | None = None,
    train: TrainSettings | None = None,
    processes: int = 1,
    clock: Clock = time.perf_counter,
    say: Say = silent,
) -> Plan:
    """Measure a model in small and say what `facts` facts in batches of `batch_size` will take.

    folder: where the store would be; the calibration's lies in a temporary folder and goes. minutes: for which the
    rule's network is to be trained, so as `train` says; where it has none, that of `malmen`. processes: among which a
    model is sharded whose device is `sharded`; measured is one process, with the whole. Raises what making a
    store, editing and training raise, UsageError for minutes of a rule that has no network.
    """
    rule, in_shards = rule_of(settings.editor), settings.device == SHARDED
    settings = _on_one_device(settings)
    device = resolve_device(settings.device)
    if minutes is not None and not (rule.network or isinstance(settings, RidgeSettings)):
        raise UsageError(
            f"found minutes of training for the editing rule {rule.name}, expected a rule with a network, or one of "
            f"whose solve {TRAINED} can have one; leave them out"
        )
    machine = machine_at(folder or Path.cwd(), device)
    learn = None if minutes is None else train or TrainSettings()
    size = size_of(model, settings.modules, revision, rule.places)
    room = machine.memory if machine.device_memory is None else machine.device_memory
    weights = 0 if size is None else size.parameters * DTYPES[settings.dtype].itemsize
    small = 3 * weights > room and size is not None and size.layers > LAYERS
    with tempfile.TemporaryDirectory(prefix="lifelong-edit-plan-") as place, bypassed():
        source = model
        if small:
            say(f"{model} is too large to be measured whole here: building {LAYERS} of its layers")
            source = str(build_small(model, Path(place) / "model", revision, DTYPES[settings.dtype]))
        measured = calibrate(
            source, settings.replace(modules=()) if small else settings, Path(place), preserve=preserve, text=text,
            hypernetwork=hypernetwork, revision=None if small else revision, train=learn, clock=clock, say=say,
        )  # fmt: skip
    layers = size.layers / LAYERS if small and size is not None else 1.0
    extra = _beside(size, layers, settings) if small and size is not None else 0
    work = costs(measured, settings, facts, batch_size, len(preserve), layers=layers, extra=extra)
    told = _notes(settings, small)
    if in_shards and size is not None:
        told.append(_in_shards(size, weights, max(2, processes)))
    if minutes is not None and learn is not None:
        told += _with_training(work, measured.training, learn, minutes, layers, extra)
    fits, advice = _advice(work, machine, settings, size, weights, facts, in_shards=in_shards)
    return Plan(
        model=model,
        editor=settings.editor,
        facts=facts,
        batch_size=batch_size,
        parameters=None if size is None else size.parameters,
        machine=msgspec.to_builtins(machine),
        measured_on=f"{LAYERS} of {size.layers} layers" if small and size is not None else "the model",
        work=work,
        fits=fits,
        advice=advice,
        notes=told,
    )


def _beside(size: Size, layers: float, settings: StoreSettings) -> int:
    """Bytes by which a model is larger than the small one that was measured: the layers that were left out."""
    return int(size.parameters * DTYPES[settings.dtype].itemsize * (1 - 1 / layers))


def _on_one_device(settings: StoreSettings) -> StoreSettings:
    """The settings as they are measured: of shards on the device where one would be. Raises UsageError for a map."""
    if is_map(settings.device):
        raise UsageError(
            f"`plan` measures one device; found the device map {settings.device}, expected cpu, cuda, cuda:N, mps, "
            "auto or sharded; name one"
        )
    if settings.device != SHARDED:
        return settings
    return settings.replace(device="cuda" if torch.cuda.is_available() else "cpu")


def _in_shards(size: Size, weights: int, processes: int) -> str:
    """What a process holds of a model in shards: edited matrices whole, an Nth of all else."""
    edited = weights * sum(d_in * d_out for d_in, d_out in size.matrices) / max(1, size.parameters)
    share = edited + (weights - edited) / processes
    return (
        f"measured in one process, with the whole model; in shards each of {processes} processes holds "
        f"{said_bytes(share)} of its {said_bytes(weights)}, and beside it what a pass has gathered"
    )


def line(x1: float, y1: float, x2: float, y2: float, x: float) -> float:
    """The value at x of the line through two measurements, which does not fall and is never below zero."""
    slope = max(0.0, (y2 - y1) / (x2 - x1)) if x2 != x1 else 0.0
    start = min(y1 - slope * x1, y2 - slope * x2)
    return max(0.0, start + slope * x)


def costs(
    m: Measured,
    settings: StoreSettings,
    facts: int,
    batch_size: int,
    preserved: int,
    *,
    layers: float = 1.0,
    extra: int = 0,
) -> dict[str, Cost]:
    """What the calibration comes to. layers: how many times as many the model has; extra: bytes of those left out."""
    size, few, many = min(batch_size, facts), m.batches[-2], m.batches[-1]
    rehearse = int(getattr(settings, "rehearse", 0))

    def rows(count: int, live: int) -> int:
        return count + min(rehearse, live)

    (t1, s1), (t2, s2) = m.texts
    text = line(t1, s1, t2, s2, settings.text_tokens)
    a_token = max(0.0, (s2 - s1) / (t2 - t1)) if t2 != t1 else 0.0
    prompts = m.preserving * (max(1, preserved) / max(1, m.probes))
    fixed = int(m.fixed + m.prompts * preserved / max(1, m.probes))
    at, steps = rows(size, max(0, facts - size)), -(-facts // size)
    mean = sum(rows(min(size, facts - first), first) for first in range(0, facts, size)) / steps
    ends = rows(few.facts, few.live), rows(many.facts, many.live)
    asking = m.missing * a_token

    def seconds(count: float) -> float:
        return (line(ends[0], few.took.seconds, ends[1], many.took.seconds, count) + asking) * layers

    def disk(count: float) -> float:
        return min(many.whole, line(ends[0], few.shift, ends[1], many.shift, count)) + keys * count

    memory = line(ends[0], few.took.peak, ends[1], many.took.peak, at)
    keys = many.keys / rows(many.facts, many.live)
    held = int(keys * facts)  # of the live facts, while the store is open for editing
    work = {
        "init": Cost(seconds=m.loading + layers * text + prompts * layers, memory=m.standing + extra, disk=fixed),
        "batch": Cost(seconds=seconds(at), memory=int(memory) + held + extra, disk=int(disk(at))),
        "batches": Cost(
            seconds=seconds(mean) * steps,
            memory=int(memory) + held + extra,
            disk=int(disk(mean) * steps) + many.whole * (1 + steps // settings.snapshot_every),
        ),
    }
    if len(m.again) == 2:
        work["reconsolidation"] = _again(m, settings, facts, held + extra, layers, int(keys))
    return work


def _again(m: Measured, settings: StoreSettings, facts: int, held: int, layers: float, keys: int) -> Cost:
    one, two = m.again
    passes = int(getattr(settings, "reconsolidation_passes", PASSES))
    a_pass = line(one.facts, one.a_pass, two.facts, two.a_pass, facts)
    rest = [max(0.0, again.took.seconds - 2 * again.a_pass) for again in (one, two)]
    seconds = passes * a_pass + line(one.facts, rest[0], two.facts, rest[1], facts)
    whole = m.batches[-1].whole
    return Cost(seconds=seconds * layers, memory=two.took.peak + held, disk=whole + keys * facts)


def _with_training(
    work: dict[str, Cost], m: Trained | None, train: TrainSettings, minutes: float, layers: float, extra: int
) -> list[str]:
    """Add what training takes to the work, and say how far it comes in these minutes."""
    if m is None:
        return ["the rule makes one step of training in all, of all its data: nothing is told of it"]
    few, many = m.sizes
    facts = train.batch_size
    step = layers * line(few.facts, few.step.seconds, many.facts, many.step.seconds, facts)
    batch = layers * line(few.facts, few.validation, many.facts, many.validation, facts)
    validation = batch * train.validation_facts / facts
    memory = int(line(few.facts, few.step.peak, many.facts, many.step.peak, facts)) + extra
    # one is made before the first step and one after the last, beside the minutes that are given
    steps = (60 * minutes - validation) / (step + validation / train.validate_every)
    work["training step"] = Cost(seconds=step, memory=memory, disk=0)
    work["training"] = Cost(seconds=60 * minutes + validation, memory=memory, disk=m.checkpoint + m.network)
    told = f"{minutes:g} minutes of training make about {max(0, round(steps)):,} steps"
    return [f"{told}; a validation, every {train.validate_every} of them, takes {validation:.0f} s"]


def _advice(
    work: dict[str, Cost],
    machine: Machine,
    settings: StoreSettings,
    size: Size | None,
    weights: int,
    facts: int,
    *,
    in_shards: bool = False,
) -> tuple[bool, list[str]]:
    """Whether it fits, and what to set where it does not."""
    room = machine.memory if machine.device_memory is None else machine.device_memory
    memory = max(cost.memory for cost in work.values())
    disk = sum(work[name].disk for name in ("init", "batches", "reconsolidation", "training") if name in work)
    found: list[str] = []
    if memory > FITS * room:
        if machine.cards > 1 and not in_shards:
            found.append(
                f"--device sharded, with --processes {machine.cards} of every command: the weights in shards, one on "
                "each card"
            )
        if weights > FITS * room and settings.device != "auto":
            found.append("--device auto: a device map over all accelerators, memory and the disk; the disk is slow")
        found += _less_memory(settings, size, weights, facts)
    if disk > FITS * machine.disk:
        if settings.shift_dtype == "float32":
            found.append("--set shift_dtype=float16: half the disk of what steps change; `show` has the error")
        if memory <= FITS * room:  # else it was told above
            found += _smaller_keys(settings, size, facts)
        found.append(f"--set snapshot_every={4 * settings.snapshot_every}: fewer states stored whole, slower rollbacks")
        found.append("`lifelong-edit compact` from time to time: it drops states that nothing names")
    return not found, found


def _smaller_keys(settings: StoreSettings, size: Size | None, facts: int) -> list[str]:
    if settings.key_dtype != "float32" or size is None or not size.matrices:
        return []
    spared = 2 * size.matrices[0][0] * facts
    return [f"--set key_dtype=float16: {said_bytes(spared)} less for the keys by which contradictions are found"]


def _less_memory(settings: StoreSettings, size: Size | None, weights: int, facts: int) -> list[str]:
    found: list[str] = []
    if settings.micro_batch > 4:
        found.append(
            f"--set micro_batch={max(4, settings.micro_batch // 4)}: fewer sequences in memory at a time; the weights "
            "do not depend on it beyond rounding"
        )
    if settings.dtype == "float32":
        found.append(f"--dtype bfloat16: {said_bytes(weights // 2)} less for the weights; statistics stay as they are")
    shapes = () if size is None else size.matrices
    wide = [d_in for d_in, _ in shapes if rank_for(d_in, settings.gram_rank) == 0 and d_in > 4 * RANK]
    if wide:
        spared = sum(5 * 8 * d_in**2 - 3 * 8 * d_in * 2 * RANK for d_in in wide)
        found.append(
            f"--set gram_rank={RANK}: C₀ as a factor that is never multiplied out, about {said_bytes(spared)} less"
        )
    found += _smaller_keys(settings, size, facts)
    if len(shapes) > 2:
        found.append("--modules with fewer matrices: each has its statistics, its keys and its ΔW")
    return found or ["a machine with more memory, or a smaller model: every setting that spares some is set"]


def _notes(settings: StoreSettings, small: bool) -> list[str]:
    found = [
        "memory is that of the whole process at its peak; nothing is differentiated below the lowest edited matrix"
    ]
    if "more_passes" in settings.__struct_fields__:
        found.append("a batch of which too few facts take has up to `more_passes` further rounds")
    if "reconsolidation_passes" in settings.__struct_fields__:
        found.append(
            "a reconsolidation ends earlier once its loss has settled; its time is reckoned from two of a few facts: "
            "rough, where other work runs beside"
        )
    if small:
        found.append("measured on few layers with random weights: a rough figure")
    return found


def said_bytes(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


__all__ = ["Cost", "Plan", "costs", "free_memory", "line", "make_plan", "said_bytes"]
