"""Which modules of a model are edited, and where: tried on held-out facts, since it depends on the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lifelong_edit.bench import Say
from lifelong_edit.facts import Fact
from lifelong_edit.models import LoadedModel
from lifelong_edit.models.families import subject_layers
from lifelong_edit.settings import StoreSettings
from lifelong_edit.training.choosing import Choice, Choosing
from lifelong_edit.training.episodes import TrainSettings


def choose_modules(
    load: Callable[[Sequence[str]], LoadedModel],
    facts: Sequence[Fact],
    text: Sequence[str],
    out: Path,
    settings: StoreSettings,
    train: TrainSettings,
    choosing: Choosing,
    say: Say = print,
) -> tuple[LoadedModel, StoreSettings]:
    """The model with the modules that do better: the default ones, or beside them some edited at the subject.

    load: the model for entries of `--modules`, the default ones where there are none. Each is tried once in the solve
    of `settings`, which come back with the modules taken; the trials are kept in folders of their own in `out`.
    """
    plain = load(())
    beside = subject_layers(plain.layers)
    found: list[tuple[float, LoadedModel, StoreSettings]] = []
    for name, loaded in (("answer", plain), ("subject", load([*beside, *(m.entry for m in plain.modules)]))):
        own = settings.replace(modules=tuple(m.entry for m in loaded.modules))
        score = Choice(loaded, facts, text, out / f"modules-{name}", own, train, choosing, say).begin()
        say(f"modules {', '.join(own.modules)}: {score:.3f}")
        found.append((score, loaded, own))
    best = max(found, key=lambda one: one[0])
    return best[1], best[2]
