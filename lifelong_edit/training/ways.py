"""How the network of each rule that has one is begun, trained and judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lifelong_edit.bench import Bench
from lifelong_edit.editors.contract import Editor
from lifelong_edit.editors.malmen.blocks import Form
from lifelong_edit.editors.malmen.network import NetworkSet
from lifelong_edit.editors.malmen.rule import with_networks as malmen_with
from lifelong_edit.editors.mend.rule import with_networks as mend_with
from lifelong_edit.editors.registry import TRAINED, rule_of
from lifelong_edit.editors.ridge.settings import RidgeSettings
from lifelong_edit.editors.rledit.rule import with_networks as rledit_with
from lifelong_edit.editors.rledit.settings import RLSettings
from lifelong_edit.editors.serac.rule import with_networks as serac_with
from lifelong_edit.editors.serac.settings import SeracSettings
from lifelong_edit.facts import Fact
from lifelong_edit.settings import StoreSettings
from lifelong_edit.training.episodes import Trainer, calibrate
from lifelong_edit.training.further import MendTrainer, RLTrainer, calibrate_mend, calibrate_rledit
from lifelong_edit.training.scope import SeracTrainer, calibrate_serac


@dataclass(frozen=True)
class Way:
    """calibrate: set what an untrained network begins with. trainer: makes its steps. judged: the rule with it."""

    calibrate: Callable[[Bench, NetworkSet, Sequence[Fact]], None]
    trainer: type[Trainer]
    judged: Callable[[Bench, NetworkSet], Editor]


WAYS = {
    "malmen": Way(calibrate, Trainer, malmen_with),
    "mend": Way(calibrate_mend, MendTrainer, mend_with),
    "rledit": Way(calibrate_rledit, RLTrainer, rledit_with),
    "serac": Way(calibrate_serac, SeracTrainer, serac_with),
}


def settings_to_train_in(settings: StoreSettings) -> StoreSettings:
    """The settings with a rule that has a network: their own where it has one, else `malmen`."""
    return settings if rule_of(settings.editor).network else settings.replace(editor=TRAINED)


def form_of(settings: StoreSettings) -> Form:
    """The form of a rule's network: for `malmen` that of the solve it is trained in."""
    if settings.editor == "mend":
        return "mend"
    if isinstance(settings, SeracSettings):
        return "serac"
    if isinstance(settings, RLSettings):
        return "rledit"
    assert isinstance(settings, RidgeSettings)  # no other rule has a network
    return settings.ask


def steps_in_all(settings: StoreSettings, steps: int | None) -> int | None:
    """How many steps there are at most: one, where that is how it was published."""
    return 1 if isinstance(settings, RLSettings) and settings.training == "published" else steps
