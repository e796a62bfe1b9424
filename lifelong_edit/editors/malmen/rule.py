"""MALMEN's rule with a trained hypernetwork (arXiv 2311.04661), in this project's solve or in the published one."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.editors.contract import Arrays, Given
from lifelong_edit.editors.malmen.network import NetworkConfig, NetworkSet, restore_network
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.editors.ridge.gradient import output_metrics
from lifelong_edit.editors.ridge.settings import RidgeSettings
from lifelong_edit.editors.ridge.targets import Asker, Moments, Seen
from lifelong_edit.errors import StoreDamagedError, UsageError
from lifelong_edit.models import EditableModule
from lifelong_edit.settings import StoreSettings

NETWORK, NETWORK_CONFIG = "network/", "network.config"


class NetworkTargets:
    """d = h(k, ĝ) − h(k, 0) in this project's solve, h(k, g) in the published one."""

    recalls = True

    def __init__(self, networks: NetworkSet, kappa: float) -> None:
        self.networks, self.kappa = networks, kappa

    def ready(self, seen: Seen, moments: Moments) -> Asker:
        """The network behind the output metric of these gradients (joint), or on raw gradients (published)."""
        if self.networks.config.form == "published":
            return Asker(self._ask)
        metric = output_metrics(seen.gradients, self.kappa)

        def ask(module: str, keys: Tensor, gradients: Tensor) -> Tensor:
            return self._ask(module, keys, gradients @ metric[module])

        return Asker(ask)

    def _ask(self, module: str, keys: Tensor, gradients: Tensor) -> Tensor:
        # In training the networks require gradients and the caller differentiates; elsewhere they do not.
        with torch.set_grad_enabled(self.networks.training):
            return self.networks.ask(module, keys, gradients)

    def ridge(self, module: str) -> float | None:
        """The learned ridge."""
        return self.networks.ridge(module)


def make(bench: Bench) -> RidgeEditor:
    """The rule with the network that `init` fixed. Raises StoreDamagedError where there is none, or none readable."""
    networks = unpack(bench.fixed.rule)
    networks.check(bench.loaded.modules)
    return with_networks(bench, networks)


def with_networks(bench: Bench, networks: NetworkSet) -> RidgeEditor:
    """The rule with networks at hand. Raises UsageError where they were trained for another solve."""
    options = RidgeEditor.options_of(bench)
    require_form(options, networks)
    return RidgeEditor(bench, NetworkTargets(networks.to(bench.loaded.device), options.kappa))


def require(settings: StoreSettings, given: Given, modules: Sequence[EditableModule] = ()) -> None:
    """Raise UsageError without a network, and for one of another solve; ModelMismatchError for other modules."""
    if not given.network:
        raise UsageError(
            "editor malmen needs a trained hypernetwork and none was given; train one with `lifelong-edit train` and "
            "name its folder with --hypernetwork, or choose --editor gradient"
        )
    networks = unpack(given.network)
    require_form(settings, networks)
    if modules:
        networks.check(modules)


def require_form(settings: StoreSettings, networks: NetworkSet) -> None:
    """Raise UsageError where a network was trained for another solve than the one that it is to live in."""
    assert isinstance(settings, RidgeSettings)
    if networks.config.form != settings.ask:
        raise UsageError(
            f"the hypernetwork was trained for the {networks.config.form} solve, the setting ask is {settings.ask!r}; "
            "set them alike"
        )


def pack(networks: NetworkSet | None) -> Arrays:
    """A network as arrays, so that the store holds all it needs; none of them without one."""
    if networks is None:
        return {}
    config = np.frombuffer(msgspec.json.encode(networks.config), np.uint8)
    return {NETWORK_CONFIG: config, **{NETWORK + name: array for name, array in networks.tensors().items()}}


def unpack(fixed: Arrays) -> NetworkSet:
    """The inverse of `pack`. Raises StoreDamagedError where the arrays hold no network."""
    try:
        config = msgspec.json.decode(fixed[NETWORK_CONFIG].tobytes(), type=NetworkConfig)
    except (KeyError, msgspec.MsgspecError) as error:
        raise StoreDamagedError(f"the store's hypernetwork has no readable config ({error})") from error
    tensors = {n.removeprefix(NETWORK): np.array(a) for n, a in fixed.items() if n.startswith(NETWORK)}
    return restore_network(config, tensors)
