"""What training a rule's network takes: a few steps of two sizes, a validation of each, and a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lifelong_edit.bench import Say
from lifelong_edit.facts import Fact
from lifelong_edit.models import LoadedModel
from lifelong_edit.planning.machine import Took, Watch
from lifelong_edit.planning.samples import sample_facts
from lifelong_edit.settings import StoreSettings
from lifelong_edit.training.episodes import TrainSettings
from lifelong_edit.training.run import CHECKPOINT, NETWORK, Held, Run, validate
from lifelong_edit.training.ways import settings_to_train_in, steps_in_all

SIZES = (4, 12)
"""Facts of a batch in the two sizes."""
FACTS = 240
"""Facts of the small data set: enough for as many locality prompts as a step of the larger size asks."""


@dataclass(frozen=True)
class Steps:
    """Batches of one size: facts of each, what a step took, seconds of a validation with one batch."""

    facts: int
    step: Took
    validation: float


@dataclass(frozen=True)
class Trained:
    """What the calibration found of training. checkpoint, network: bytes of the files."""

    sizes: tuple[Steps, Steps]
    checkpoint: int
    network: int


def measure_training(
    loaded: LoadedModel,
    settings: StoreSettings,
    train: TrainSettings,
    folder: Path,
    *,
    text: Sequence[str],
    watch: Watch,
    say: Say,
) -> Trained | None:
    """Train a network in `folder` for a few steps, and leave it there.

    None, and no network, for a rule that makes one step in all, of all its data. train: as the run will have them; of
    it are taken batches of fewer facts, and prompts as there are fewer facts.
    """
    if steps_in_all(settings_to_train_in(settings), None) is not None:
        return None
    say("training a little")
    few, many = (_of_size(train, size) for size in SIZES)
    run = Run(loaded, training_facts(FACTS), text, folder, settings, many, lambda _: None)
    run.trainer.train = few
    run.trainer.run_episode(run.facts)  # makes everything ready
    first, second = _steps(run, few, watch), _steps(run, many, watch)
    run.best = (0.0, run.averaged.tensors())
    run._save()
    run._finish()
    return Trained((first, second), *((folder / name).stat().st_size for name in (CHECKPOINT, NETWORK)))


def _of_size(train: TrainSettings, size: int) -> TrainSettings:
    """The settings for batches of `size` facts, two in an episode, and as many prompts for each fact."""
    probes = max(1, round(train.probes * size / train.batch_size))
    return msgspec.structs.replace(train, batch_size=size, batches=2, probes=probes, reconsolidate_every=0)


def _steps(run: Run, train: TrainSettings, watch: Watch) -> Steps:
    before, size = run.trainer.steps, train.batch_size
    run.trainer.train = train
    took = watch.over(lambda: run.trainer.run_episode(run.facts))
    step = Took(took.seconds / (run.trainer.steps - before), took.peak)
    # two batches: all but the first rehearse earlier facts
    count, own = 2 * size, run.held
    held = Held(own.taught[:count], own.asked[:count], own.neighbours[:count])
    validation = watch.over(lambda: validate(run.loaded, run._judged(), held, size))
    return Steps(size, step, validation.seconds / 2)


def training_facts(count: int) -> list[Fact]:
    """Facts that had another answer before, so that others like them judge locality."""
    found = sample_facts(count, 0)
    answers = sorted({fact.target for fact in found})
    before = [answers[(answers.index(fact.target) + 3) % len(answers)] for fact in found]
    return [msgspec.structs.replace(fact, target_true=true) for fact, true in zip(found, before, strict=True)]
