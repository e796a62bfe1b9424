"""MALMEN's hypernetwork: a key and a gradient in, a value difference out (arXiv 2311.04661, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from torch import Tensor, nn

from lifelong_edit.editors.malmen.blocks import Block, Form, Running
from lifelong_edit.editors.mend.network import MendNetwork
from lifelong_edit.editors.ridge.gradient import within
from lifelong_edit.editors.serac.network import SeracNetwork, SeracShape
from lifelong_edit.editors.ultraedit.moments import Normaliser
from lifelong_edit.errors import BadInputError, ModelMismatchError
from lifelong_edit.models import EditableModule
from lifelong_edit.models.families import Positions
from lifelong_edit.settings import SUBJECT

_UNKNOWN = (KeyError, TypeError, ValueError)
"""What safetensors raises for a dtype that NumPy has not."""


class NetworkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shape and origin of a trained hypernetwork; kept as readable JSON beside its tensors."""

    form: Form
    rank: int
    blocks: int
    trust: float = 1.5
    """Trust radius of a row in units of the learned step (see `within`)."""
    modules: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    """(d_in, d_out) of each module."""
    positions: tuple[Positions, ...] = ()
    """Where each module is edited; empty: at answer positions, all of them."""
    settings: dict[str, object] = msgspec.field(default_factory=dict)
    """The settings of the solve that it was trained in."""
    serac: SeracShape | msgspec.UnsetType = msgspec.UNSET
    """Sizes of the networks of the form `serac`, which have neither rank nor blocks of their own here."""
    provenance: dict[str, object] = msgspec.field(default_factory=dict)

    @property
    def rule(self) -> str:
        """The editing rule that asks with it."""
        return self.form if self.form in ("mend", "rledit", "serac") else "malmen"

    @property
    def entries(self) -> tuple[str, ...]:
        """The modules as `--modules` names them."""
        places = self.positions or ("answer",) * len(self.modules)
        return tuple(n + (SUBJECT if p == "subject" else "") for n, p in zip(self.modules, places, strict=True))


class HyperNetwork(nn.Module):
    """One network per weight shape, shared by the layers of that shape.

    joint: gradients come in the output metric and are not normalised; d = h(k, g) − h(k, 0) with
    h = −η_l (k·k̃)/(k·k̂) g̃, written 1 + k·(k̃ − k̂)/(k·k̂), so that at B = 0 it is the rule without a network.
    published: h = −η_l (k·k̃) g̃ on normalised [k; g] (MALMEN, equation 4).
    rledit: the same, with a normaliser that goes on moving (`running`) in the place of a fixed one.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, d_in: int, d_out: int, layers: int, rank: int, blocks: int, form: Form, trust: float) -> None:
        super().__init__()
        self.form, self.d_in, self.trust = form, d_in, trust
        self.blocks = nn.ModuleList(Block(d_in + d_out, rank, layers, form) for _ in range(blocks))
        self.log_step = nn.Parameter(torch.zeros(layers))
        self.log_ridge = nn.Parameter(torch.zeros(layers))
        if form == "rledit":
            self.running = Running(d_in + d_out)
            return
        self.register_buffer("mean", torch.zeros(d_in + d_out))
        self.register_buffer("deviation", torch.ones(d_in + d_out))

    def forward(self, keys: Tensor, gradients: Tensor, layer: int) -> Tensor:
        """Value differences (n, d_out) for keys (n, d_in) and gradients (n, d_out).

        joint: a row without gradient asks for exactly nothing. The normaliser is read, never moved.
        """
        if self.form == "published":
            return self._ask(keys, gradients, layer, self.mean, self.deviation)
        if self.form == "rledit":
            return self.by(keys, gradients, layer, self.running.normaliser)
        values = self._ask(keys, gradients, layer, self.mean, self.deviation)
        values = values - self._ask(keys, torch.zeros_like(gradients), layer, self.mean, self.deviation)
        return within(values, (self.trust * self.log_step[layer].exp()).to(values.device))

    def by(self, keys: Tensor, gradients: Tensor, layer: int, one: Normaliser, centre: bool = True) -> Tensor:
        """rledit: value differences (n, d_out) by a normaliser from elsewhere.

        Without `centre` h(k, g) − h(k, 0): a row without gradient asks for exactly nothing.
        """
        mean, deviation = one.mean.to(self.log_step), one.deviation.to(self.log_step)
        values = self._ask(keys, gradients, layer, mean, deviation)
        return values if centre else values - self._ask(keys, torch.zeros_like(gradients), layer, mean, deviation)

    def _ask(self, keys: Tensor, gradients: Tensor, layer: int, mean: Tensor, deviation: Tensor) -> Tensor:
        # Modules of one shape share a network, and may be on several devices.
        home, place = keys.device, self.log_step.device
        keys, gradients = keys.to(place), gradients.to(place)
        start = (torch.cat([keys, gradients], -1) - mean) / deviation
        y = start
        for block in self.blocks:
            y = block(y, layer)
        key, gradient = y[:, : self.d_in], y[:, self.d_in :]
        if self.form == "joint":
            # k·k̂ is positive for activations; a stray one that is not must neither blow up a row nor turn it round.
            usual = (keys * start[:, : self.d_in]).sum(-1, keepdim=True).clamp_min(1.0)
            factor = 1.0 + (keys * (key - start[:, : self.d_in])).sum(-1, keepdim=True) / usual
        else:
            factor = (keys * key).sum(-1, keepdim=True)
        return (-self.log_step[layer].exp() * factor * gradient).to(home)

    def observe(self, keys: Tensor, gradients: Tensor) -> None:
        """Take mean and deviation from a sample of training rows; never called at edit or validation time."""
        if self.form == "rledit":
            self.running.take(keys, gradients)
            return
        rows = keys if self.form == "joint" else torch.cat([keys, gradients], -1)
        self.mean[: rows.shape[1]] = rows.mean(0)
        self.deviation[: rows.shape[1]] = rows.std(0).clamp_min(1e-8)


class NetworkSet(nn.Module):
    """All networks of a model with the modules that they serve."""

    def __init__(self, config: NetworkConfig) -> None:
        """Raises ValueError for a config of the form `serac` without its sizes."""
        super().__init__()
        self.config = config
        if config.form == "serac":
            if config.serac is msgspec.UNSET:
                raise ValueError("the sizes of the two networks are missing")
            self.networks = nn.ModuleDict({config.form: SeracNetwork(config.serac)})
            return
        shapes = list(dict.fromkeys(config.shapes))
        self._place = {
            name: (
                _key(shape),
                [n for n, s in zip(config.modules, config.shapes, strict=True) if s == shape].index(name),
            )
            for name, shape in zip(config.modules, config.shapes, strict=True)
        }
        self.networks = nn.ModuleDict({_key(s): self._made(s, config.shapes.count(s)) for s in shapes})

    def _made(self, shape: tuple[int, int], layers: int) -> nn.Module:
        c = self.config
        if c.form == "mend":
            return MendNetwork(*shape, layers, c.rank, c.blocks)
        return HyperNetwork(*shape, layers, c.rank, c.blocks, c.form, c.trust)

    def of(self, module: str) -> tuple[HyperNetwork, int]:
        """The network of a module, of those that ask for value differences, and its index among its layers."""
        key, layer = self._place[module]
        network = self.networks[key]
        assert isinstance(network, HyperNetwork)
        return network, layer

    def mend(self, module: str) -> tuple[MendNetwork, int]:
        """The network of a module, of those of the form `mend`, and the module's index among its layers."""
        key, layer = self._place[module]
        network = self.networks[key]
        assert isinstance(network, MendNetwork)
        return network, layer

    def serac(self) -> SeracNetwork:
        """The two networks of the form `serac`, which serve the model as a whole."""
        network = self.networks["serac"]
        assert isinstance(network, SeracNetwork)
        return network

    def ask(self, module: str, keys: Tensor, gradients: Tensor) -> Tensor:
        """Value differences of one module's rows, (n, d_out)."""
        network, layer = self.of(module)
        answer: Tensor = network(keys, gradients, layer)
        return answer

    def ridge(self, module: str) -> float:
        """The learned λ_l = exp(ℓ_l), unscaled."""
        network, layer = self.of(module)
        return float(network.log_ridge[layer].detach().exp())

    def check(self, modules: Iterable[EditableModule]) -> None:
        """Raise ModelMismatchError unless the networks were trained for these modules."""
        found = {m.entry: (m.d_in, m.d_out) for m in modules}
        trained = dict(zip(self.config.entries, self.config.shapes, strict=True))
        if found != trained:
            raise ModelMismatchError(
                f"the hypernetwork was trained for modules {trained}, the store edits {found}; "
                "train one for these modules, choose those that it was trained for, or take the editor gradient"
            )

    def tensors(self) -> dict[str, np.ndarray]:
        """All parameters and moments as arrays, to be stored."""
        return {name: value.detach().cpu().numpy() for name, value in self.state_dict().items()}


def _key(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def restore_network(config: NetworkConfig, tensors: dict[str, np.ndarray]) -> NetworkSet:
    """A network set from its config and arrays. Raises BadInputError where they do not fit together."""
    expected = _expected(config, len(tensors))
    found = {n: tuple(t.shape) for n, t in tensors.items()}
    if expected != found:
        odd = sorted(set(expected.items()) ^ set(found.items()))[:3]
        raise BadInputError(
            f"the hypernetwork's tensors do not fit its config (first differences: {odd}); train it again"
        )
    networks = NetworkSet(config)
    networks.load_state_dict({n: torch.from_numpy(t.astype(np.float32)) for n, t in tensors.items()})
    return networks.eval().requires_grad_(False)


def _expected(config: NetworkConfig, count: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a config's tensors, which `count` bounds: no room is made for what is not there."""
    if not 0 <= config.blocks <= count:
        raise BadInputError(f"the hypernetwork's config has {config.blocks} blocks, its file {count} tensors")
    try:
        with torch.device("meta"):
            return {n: tuple(t.shape) for n, t in NetworkSet(config).state_dict().items()}
    except (ValueError, RuntimeError, ZeroDivisionError, OverflowError, TypeError) as error:
        raise BadInputError(f"the hypernetwork's config describes no network ({error}); train it again") from error


def read_config(folder: Path) -> NetworkConfig:
    """What a trained network is and comes from, without its tensors."""
    with _readable(folder):
        return msgspec.json.decode((folder / "config.json").read_bytes(), type=NetworkConfig)


def read_checkpoint(folder: Path) -> NetworkSet:
    """A trained network from its folder (config.json and network.safetensors)."""
    config = read_config(folder)
    with _readable(folder):
        tensors = load_safetensors((folder / "network.safetensors").read_bytes())
    return restore_network(config, tensors)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError, SafetensorError, *_UNKNOWN) as error:
        raise BadInputError(
            f"{folder} holds no readable hypernetwork ({error}); expected config.json and network.safetensors "
            "as `lifelong-edit train` writes them"
        ) from error
