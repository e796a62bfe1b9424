"""RLEdit (arXiv 2502.05759): D = −η (k·k̃) g̃ with a network's k̃, g̃ and a normaliser that each batch moves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.editors.contract import Given
from lifelong_edit.editors.malmen.network import NetworkSet
from lifelong_edit.editors.malmen.rule import unpack
from lifelong_edit.editors.mend.rule import require_network, require_rule
from lifelong_edit.editors.ridge.targets import Asker, Moments, Seen
from lifelong_edit.editors.rledit.settings import RLSettings
from lifelong_edit.editors.ultraedit.moments import gathered, grouped, kept
from lifelong_edit.editors.ultraedit.rule import UltraEditor
from lifelong_edit.models import EditableModule
from lifelong_edit.settings import StoreSettings


class MovingTargets:
    """The network's asks by the moments of its training, of earlier edits and of the rows seen, one for each shape.

    With the network at the identity and one vector for both keys, k̂ in the place of k, it is UltraEdit.
    """

    # Moments are taken over each edit once.
    recalls = False

    def __init__(self, networks: NetworkSet, modules: Sequence[EditableModule], centre: bool) -> None:
        self.networks, self.centre = networks, centre
        self.group = grouped(modules, "shape")

    @property
    def begun(self) -> dict[str, np.ndarray]:
        """The moments of an empty state: those of the training."""
        found: dict[str, np.ndarray] = {}
        for name, shape in zip(self.networks.config.modules, self.networks.config.shapes, strict=True):
            running = self.networks.of(name)[0].running
            if running.count >= 1:
                found |= running.kept(f"{shape[0]}x{shape[1]}")
        return found

    def ready(self, seen: Seen, moments: Moments) -> Asker:
        """The rule with all rows so far; all are taken before any is asked for."""
        found = gathered({**self.begun, **moments}, seen, self.group)

        def ask(module: str, keys: Tensor, gradients: Tensor) -> Tensor:
            network, layer = self.networks.of(module)
            one = found[self.group(module)]
            if one.count < 2:  # no deviation to measure by
                return torch.zeros_like(gradients)
            # In training the networks require gradients and the caller differentiates; elsewhere they do not.
            with torch.set_grad_enabled(self.networks.training):
                return network.by(keys, gradients, layer, one, self.centre)

        return Asker(ask, kept(found))

    def ridge(self, module: str) -> float | None:
        """The learned ridge."""
        return self.networks.ridge(module)


def make(bench: Bench) -> UltraEditor:
    """The rule with the network that `init` fixed. Raises StoreDamagedError where there is none, or none readable."""
    networks = unpack(bench.fixed.rule)
    networks.check(bench.loaded.modules)
    return with_networks(bench, networks)


def with_networks(bench: Bench, networks: NetworkSet) -> UltraEditor:
    """The rule with networks at hand. Raises UsageError where they are for another rule."""
    require_rule("rledit", networks)
    assert isinstance(bench.settings, RLSettings)  # the registry pairs rules with their settings
    centre = bench.settings.ask == "published"
    return UltraEditor(bench, MovingTargets(networks.to(bench.loaded.device), bench.loaded.modules, centre))


def require(settings: StoreSettings, given: Given, modules: Sequence[EditableModule] = ()) -> None:
    """Raise UsageError without a network, and for one of another rule; ModelMismatchError for other modules."""
    require_network("rledit", given, modules)
