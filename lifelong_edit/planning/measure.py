"""The calibration: a store of the model's own is made in a temporary folder, taught a few facts, and solved again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lifelong_edit.bench import Say
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.facts import Probe
from lifelong_edit.models import load_model
from lifelong_edit.numerics.devices import resolve_device
from lifelong_edit.planning.machine import Clock, Took, Watch, give_back
from lifelong_edit.planning.samples import sample_facts
from lifelong_edit.planning.training import Trained, measure_training
from lifelong_edit.settings import StoreSettings
from lifelong_edit.stores import WEIGHTS, StepRecord
from lifelong_edit.stores.tensors import decode_tensors
from lifelong_edit.tasks import WIDTH
from lifelong_edit.timeline import Timeline
from lifelong_edit.tracing.text import prepare_text
from lifelong_edit.training.episodes import TrainSettings

TOKENS = 6000
"""Of text that is read for the calibration, at the most."""
PROBES = 48
"""Preserved prompts that are asked for it, unless more of them become rows."""
WARM, FEW, MANY = 2, 4, 16
"""Facts of its three batches: the first one makes everything ready, the others are compared."""
PASSES = 2
"""Rounds of a reconsolidation that are made, where the rule counts them."""


@dataclass(frozen=True)
class Batch:
    """One batch of it: facts, live facts before it, what it took, and bytes of its shift, its keys, ΔW whole."""

    facts: int
    live: int
    took: Took
    shift: int
    keys: int
    whole: int


@dataclass(frozen=True)
class Again:
    """One reconsolidation of it: facts, seconds of a pass (0 where the rule tells of none), what all of it took."""

    facts: int
    a_pass: float
    took: Took


@dataclass
class Measured:
    """What the calibration found.

    loading, preserving: seconds; what a process' first pass takes longer is a part of the first. texts: (tokens,
    seconds) of two sizes. probes: prompts that were asked. standing: the most memory until the store was made. fixed,
    prompts: bytes of what `init` fixes, without and of the preserved prompts. missing: tokens of the gate's sample that
    the short text had no room for.
    """

    loading: float
    preserving: float
    texts: tuple[tuple[int, float], tuple[int, float]]
    probes: int
    standing: int
    fixed: int
    prompts: int
    missing: int
    batches: list[Batch] = field(default_factory=list)
    again: list[Again] = field(default_factory=list)
    training: Trained | None = None
    """Where it was asked for, and there is something to train step by step."""


class _Phases:
    """When each phase began that `say` was told of."""

    def __init__(self, clock: Clock, say: Say) -> None:
        self._clock, self._say = clock, say
        self.began: list[tuple[str, float]] = []

    def __call__(self, phase: str) -> None:
        self.began.append((phase, self._clock()))

    def at(self, *beginnings: str) -> float:
        """When the first phase began that begins so."""
        return next(when for phase, when in self.began if phase.startswith(beginnings))


def for_calibration(settings: StoreSettings) -> StoreSettings:
    """The settings with nothing that depends on how a batch turns out: no gate, no further rounds."""
    changes: dict[str, object] = {"text_tokens": min(TOKENS, settings.text_tokens), "gate_perplexity": 1e30}
    changes |= {"gate_min_taken": 0.0, "gate_noise": 0.0}
    known = settings.__struct_fields__
    changes |= {"more_passes": 0} if "more_passes" in known else {}
    changes |= (
        {"reconsolidation_passes": PASSES, "reconsolidation_gain": 0.0} if "reconsolidation_passes" in known else {}
    )
    return settings.replace(**changes)


def calibrate(
    model: str,
    settings: StoreSettings,
    folder: Path,
    *,
    preserve: Sequence[Probe],
    text: Sequence[str],
    hypernetwork: Path | None = None,
    revision: str | None = None,
    train: TrainSettings | None = None,
    clock: Clock,
    say: Say,
) -> Measured:
    """Make a store for the model in `folder`, which must not be there yet, and measure what is done with it.

    train: train the rule's network a little too, so; where the rule has none, that of `malmen`. The store has that
    network where none is given and the rule cannot do without. Raises what making a store, editing and training raise.
    """
    small = for_calibration(settings)
    watch = Watch(resolve_device(settings.device), clock)
    phases, made = _Phases(clock, say), list[Timeline]()
    training: Trained | None = None
    as_given, trained = settings.replace(text_tokens=small.text_tokens), folder / "network"
    if train is not None and hypernetwork is None and rule_of(settings.editor).network:
        loaded = load_model(
            model, modules=settings.modules or None, device=settings.device, dtype=settings.dtype, revision=revision,
            places=rule_of(settings.editor).places,
        )  # fmt: skip
        training = measure_training(loaded, as_given, train, trained, text=text, watch=watch, say=say)
        hypernetwork = None if training is None else trained
        del loaded  # the store has its own
        give_back()
    probes = list(preserve)[: _probes(settings)]
    say("making a small store")
    took = watch.over(
        lambda: made.append(
            Timeline.create(
                folder / "store", model=model, settings=small, preserve=probes, text=text, revision=revision,
                hypernetwork=hypernetwork, say=phases,
            )
        )
    )  # fmt: skip
    ended = clock()
    begun = phases.at("loading"), phases.at("measuring the text"), phases.at("asking the preserved", "no preserved")
    with made[0] as timeline:
        fixed, prompts = _fixed(timeline)
        texts = _texts(timeline, text, clock)
        found = Measured(
            loading=begun[1] - begun[0] + max(0.0, begun[2] - begun[1] - texts[1][1]),
            preserving=ended - begun[2],
            texts=texts,
            probes=len(probes),
            standing=took.peak,
            fixed=fixed - prompts,
            prompts=prompts,
            missing=max(0, min(24, settings.text_tokens // WIDTH // 8) - len(timeline.bench().guard_windows)) * WIDTH,
        )
        _teach(timeline, watch, found, say)
        loaded = timeline.bench().loaded
    if train is not None and training is None:
        # `train` makes no store: what this one had at hand (its statistics, keys and grams) is let go of before.
        made.clear()
        del timeline
        give_back()
        training = measure_training(loaded, as_given, train, trained, text=text, watch=watch, say=say)
    found.training = training
    return found


def _teach(timeline: Timeline, watch: Watch, found: Measured, say: Say) -> None:
    """Teach the three batches, solve again after the last two where the rule does, and note what each took."""
    first = 0
    for number, count in enumerate((WARM, FEW, MANY)):
        say(f"teaching {count} facts")
        found.batches.append(_batch(timeline, watch, count, first))
        first += count
        if number and rule_of(timeline.settings.editor).relearns:
            say(f"solving again for {first} facts")
            found.again.append(_again(timeline, watch, first))


def _fixed(timeline: Timeline) -> tuple[int, int]:
    """Bytes of what `init` fixed, and of the preserved prompts among it."""
    data = timeline._log.blob(str(timeline.show(0).fixed))
    arrays = decode_tensors(data, "what init fixed", views=True)
    return len(data), sum(array.nbytes for name, array in arrays.items() if name.startswith("preserved/"))


def _probes(settings: StoreSettings) -> int:
    """How many preserved prompts are asked: those that become rows, and the tenth that stands guard."""
    rows = max(int(getattr(settings, name, 0)) for name in ("preserved", "reconsolidation_preserved"))
    return max(PROBES, rows + rows // 8)


def _texts(timeline: Timeline, text: Sequence[str], clock: Clock) -> tuple[tuple[int, float], tuple[int, float]]:
    """Tokens and seconds of reading the text, and a third of it: once more, when everything is warm."""
    bench, s = timeline.bench(), timeline.settings
    found = []
    for tokens in (max(2 * WIDTH, s.text_tokens // 3), s.text_tokens):
        began = clock()
        prepare_text(bench.loaded, text, tokens, s.micro_batch, s.gram_rank, whole=rule_of(s.editor).statistics)
        found.append((tokens, clock() - began))
    return found[0], found[1]


def _batch(timeline: Timeline, watch: Watch, count: int, first: int) -> Batch:
    live, records = first, list[StepRecord]()
    took = watch.over(lambda: records.append(timeline.apply(sample_facts(count, first))))
    part = records[0].parts[WEIGHTS]
    whole = 4 * sum(rows * columns for rows, columns in timeline.config.model.modules.values())
    keys = sum(_size(timeline, blob) for blob in records[0].key_blobs)
    return Batch(count, live, took, sum(_size(timeline, blob) for blob in part.change), keys, whole)


def _again(timeline: Timeline, watch: Watch, count: int) -> Again:
    passes: list[float] = []

    def say(phase: str) -> None:
        if phase.startswith("pass "):
            watch.settle()
            passes.append(watch.clock())

    took = watch.over(lambda: timeline.reconsolidate(guard=False, say=say))
    a_pass = (passes[-1] - passes[0]) / (len(passes) - 1) if len(passes) > 1 else 0.0
    return Again(count, a_pass, took)


def _size(timeline: Timeline, blob: str | None) -> int:
    return 0 if blob is None else timeline._log.blob_size(blob)
