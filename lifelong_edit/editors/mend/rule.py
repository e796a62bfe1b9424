"""MEND's rule (arXiv 2110.11309): S = η Σ k̃ᵀg̃ over all tokens, with the key and the gradient that a network gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lifelong_edit.bench import Bench, Say, State, silent
from lifelong_edit.editors.contract import Added, Change, Given, Keyless, Lesson, require_batch
from lifelong_edit.editors.malmen.network import NetworkSet
from lifelong_edit.editors.malmen.rule import unpack
from lifelong_edit.editors.mend.settings import MendSettings
from lifelong_edit.editors.ridge.again import batch_after_batch
from lifelong_edit.errors import StepRefusedError, UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.models import EditableModule, Shifts
from lifelong_edit.settings import StoreSettings
from lifelong_edit.stores import WEIGHTS, Dense, Factors, Shift
from lifelong_edit.tracing.rows import Row, fact_rows
from lifelong_edit.tracing.trace import trace

Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""By module keys (n, d_in) and gradients (n, d_out)."""


class MendEditor(Keyless):
    """The rule at work. It keeps no keys; what was taught before is held by nothing."""

    def __init__(self, bench: Bench, networks: NetworkSet) -> None:
        assert isinstance(bench.settings, MendSettings)  # the registry pairs rules with their settings
        self.bench, self.settings, self.networks = bench, bench.settings, networks

    @property
    def phrasings(self) -> int:
        """How many of a fact's rephrases are taught beside its prompt."""
        return self.settings.phrasings

    def overlay(self, state: State) -> Shifts:
        """W₀ + ΔW."""
        return Shifts(state.shifts)

    def pairs(self, shifts: Mapping[str, Tensor], rows: Sequence[Row]) -> tuple[Pairs, float]:
        """What all tokens of rows show at ΔW, those without a key or a gradient left out; and the rows' mean loss."""
        with self.bench.loaded.at(shifts):
            traced = trace(self.bench.loaded, rows, self.settings.micro_batch, everywhere=True)
        found = {}
        for name in self.bench.names:
            keys, gradients = traced.keys[name], traced.gradients[name]
            there = (keys != 0).any(-1) & (gradients != 0).any(-1)
            found[name] = keys[there], gradients[there]
        return found, float(traced.losses.mean())

    def factors(self, module: str, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """k̃ (n, d_in) and η g̃ (n, d_out), whose product k̃ᵀ(η g̃) is the shift; differentiable in training."""
        network, layer = self.networks.mend(module)
        with torch.set_grad_enabled(self.networks.training):
            found: tuple[Tensor, Tensor] = network(*pair, layer)
        return found

    def learn(self, state: State, lesson: Lesson) -> Change:
        """One shift from the gradients at the state as it is; see `Editor.learn`."""
        require_batch(lesson.facts)
        rows = fact_rows(self.bench.loaded, lesson.facts, self.settings.phrasings, replaced=lesson.replaced)
        pairs, loss = self.pairs(state.shifts, rows)
        shift = {name: _shift(*self.factors(name, pair)) for name, pair in pairs.items()}
        report: dict[str, object] = {
            "rows": len(rows),
            "positions": {name: len(keys) for name, (keys, _) in pairs.items()},
            "loss": [loss],
        }
        return Change({WEIGHTS: Added(shift)}, report)

    def relearn(
        self,
        facts: Sequence[Fact],
        *,
        start: Mapping[str, Tensor] | None = None,
        identity: str = "",
        say: Say = silent,
    ) -> Change:
        """All facts again from the base, batch after batch in the order of their digests."""
        reason = "each batch is asked for at what those before it left"
        return batch_after_batch(self, facts, start, "mend", reason, say)[0]


def _shift(key: Tensor, gradient: Tensor) -> Shift:
    """k̃ᵀg̃, as factors where these are smaller. Raises StepRefusedError where a number is not finite."""
    dense = key.T.double() @ gradient.double()
    if not bool(torch.isfinite(dense).all()):
        raise StepRefusedError("a weight shift is not finite; expected numbers; the step was refused")
    if len(key) * sum(dense.shape) >= dense.numel():
        return Dense(dense.float().cpu().numpy())
    return Factors(key.T.cpu().numpy(), gradient.cpu().numpy())


def make(bench: Bench) -> MendEditor:
    """The rule with the network that `init` fixed. Raises StoreDamagedError where there is none, or none readable."""
    networks = unpack(bench.fixed.rule)
    networks.check(bench.loaded.modules)
    return with_networks(bench, networks)


def with_networks(bench: Bench, networks: NetworkSet) -> MendEditor:
    """The rule with networks at hand. Raises UsageError where they are for another rule."""
    require_rule("mend", networks)
    return MendEditor(bench, networks.to(bench.loaded.device))


def require(settings: StoreSettings, given: Given, modules: Sequence[EditableModule] = ()) -> None:
    """Raise UsageError without a network, and for one of another rule; ModelMismatchError for other modules."""
    require_network("mend", given, modules)


def require_network(rule: str, given: Given, modules: Sequence[EditableModule]) -> None:
    """Raise UsageError where a rule is given no network of its own, ModelMismatchError for one of other modules."""
    if not given.network:
        raise UsageError(
            f"editor {rule} needs a trained hypernetwork and none was given; train one with `lifelong-edit train "
            f"--editor {rule}` and name its folder with --hypernetwork, or choose --editor gradient"
        )
    networks = unpack(given.network)
    require_rule(rule, networks)
    if modules:
        networks.check(modules)


def require_rule(rule: str, networks: NetworkSet) -> None:
    """Raise UsageError where networks were trained for another rule."""
    if networks.config.rule != rule:
        raise UsageError(
            f"found a network that was trained for the editing rule {networks.config.rule}, expected one for {rule}; "
            f"train it with `lifelong-edit train --editor {rule}`, or choose --editor {networks.config.rule}"
        )
