"""UltraEdit with gradients whitened by their running covariance (StableEdit, arXiv 2605.11836)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.editors.contract import Arrays, Given
from lifelong_edit.editors.ridge.targets import Asker, Moments, Seen
from lifelong_edit.editors.ridge.together import CHUNK, slices
from lifelong_edit.editors.stableedit.settings import StableSettings
from lifelong_edit.editors.ultraedit.moments import Group, Normaliser, gathered, grouped, kept
from lifelong_edit.editors.ultraedit.rule import NormalisedTargets, Step, UltraEditor, standardised, step_of
from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact, read_facts
from lifelong_edit.models import BASE, EditableModule, LoadedModel
from lifelong_edit.settings import StoreSettings
from lifelong_edit.tracing.rows import fact_rows
from lifelong_edit.tracing.trace import trace

WARM = "warm/"
"""Before the names of the moments that `init` fixed."""


class WhitenedTargets(NormalisedTargets):
    """d = −η ‖k̂‖² ĝ with ĝ = g Σ^(−1/2), Σ the running covariance of gradients; keys are only standardised.

    begun: the moments of an empty state. Until there are more than d_out + 1 rows, Σ says nothing in some directions,
    and gradients are standardised as UltraEdit's.
    """

    def __init__(self, step: float | Step, centre: bool, group: Group, s: StableSettings, begun: Moments) -> None:
        super().__init__(step, centre, group)
        self.settings, self.begun = s, begun

    def ready(self, seen: Seen, moments: Moments) -> Asker:
        """The rule with the moments of warm-up facts, earlier edits and the rows seen."""
        found = gathered({**self.begun, **moments}, seen, self.group, scatter=True)
        whitenings = {name: whitening(one, self.settings.floor) for name, one in found.items()}

        def ask(module: str, keys: Tensor, gradients: Tensor) -> Tensor:
            one, white = found[self.group(module)], whitenings[self.group(module)]
            if one.count < 2:
                return torch.zeros_like(gradients)
            key, gradient = standardised(one, keys, gradients, self.centre)
            if white is not None:
                own = gradients - one.mean[keys.shape[1] :].to(gradients) if self.centre else gradients
                gradient = own @ white.to(gradients)
            return self.asked(module, key, gradient)

        return Asker(ask, kept(found))

    def ridge(self, module: str) -> float | None:
        """λ = 10, as published, unless the settings say otherwise."""
        return self.settings.ridge


def whitening(one: Normaliser, floor: float) -> Tensor | None:
    """Σ^(−1/2), (d_out, d_out) float64 and symmetric; None where there are not more than d_out + 1 rows.

    Σ is the scatter divided by n − d_out − 1: the inverse of a sample's covariance is too large by that much.
    """
    assert one.scatter is not None  # the rule keeps it from the first row on
    freedom = float(one.count) - len(one.scatter) - 1
    if freedom <= 0:
        return None
    values, vectors = torch.linalg.eigh(one.scatter / freedom)
    found: Tensor = (vectors * values.clamp_min(floor).rsqrt()) @ vectors.T
    return found


def make(bench: Bench) -> UltraEditor:
    """The rule with the store's step and what its warm-up facts left."""
    s = _settings(bench.settings)
    group = grouped(bench.loaded.modules, s.moments)
    begun = {name.removeprefix(WARM): array for name, array in bench.fixed.rule.items() if name.startswith(WARM)}
    return UltraEditor(bench, WhitenedTargets(step_of(bench, s), s.ask == "published", group, s, begun))


def require(settings: StoreSettings, given: Given, modules: Sequence[EditableModule] = ()) -> None:
    """Raise UsageError for a file of warm-up facts without any, BadInputError for one that cannot be read."""
    _warm_up(_settings(settings))


def fix(loaded: LoadedModel, settings: StoreSettings, given: Given) -> Arrays:
    """The moments of the warm-up facts at the base weights; none without them.

    Published is to edit these facts in. Here only their moments stay: in the weights is nothing of which the log does
    not tell.
    """
    s, found = _settings(settings), dict[str, Normaliser]()
    group = grouped(loaded.modules, s.moments)
    with loaded.at(BASE):
        for part in slices(_warm_up(s), CHUNK):
            traced = trace(loaded, fact_rows(loaded, part, s.phrasings), s.micro_batch)
            found = gathered(kept(found), Seen(traced.keys, traced.gradients), group, scatter=True)
    arrays: Mapping[str, np.ndarray] = kept(found)
    return {WARM + name: array for name, array in arrays.items()}


def _warm_up(s: StableSettings) -> list[Fact]:
    """The warm-up facts, in the order of their file."""
    if s.warm_up is None:
        return []
    found = [record.fact for record in read_facts([s.warm_up])]
    if not found:
        raise UsageError(f"found no fact in {s.warm_up}, expected some to warm up with; leave warm_up out for none")
    return found


def _settings(settings: StoreSettings) -> StableSettings:
    assert isinstance(settings, StableSettings)  # the registry pairs rules with their settings
    return settings
