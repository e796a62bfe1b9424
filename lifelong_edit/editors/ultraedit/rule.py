"""UltraEdit: the identity hypernetwork with a running normaliser (arXiv 2505.14679)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from lifelong_edit.bench import Bench, Say, silent
from lifelong_edit.editors.contract import Brought, Change, Entries
from lifelong_edit.editors.ridge.again import batch_after_batch
from lifelong_edit.editors.ridge.editor import RidgeEditor, log_ridge_of
from lifelong_edit.editors.ridge.targets import Asker, Moments, Seen
from lifelong_edit.editors.ridge.together import traced_keys
from lifelong_edit.editors.ultraedit.moments import Group, Normaliser, gathered, grouped, kept
from lifelong_edit.editors.ultraedit.settings import UltraSettings
from lifelong_edit.facts import Fact
from lifelong_edit.stores import KEYS

STEP = 1e-6
"""η as published."""
Step = Callable[[str], float]
"""η of a module."""


class NormalisedTargets:
    """d = −η ‖k̂‖² ĝ with k̂, ĝ normalised by mean and deviation over all edits so far.

    In this project's joint solve ĝ is not centred, so that a row without gradient asks for nothing.
    The moments (count, mean, sum of squared distances) are a part of the store's state.
    """

    # Moments are taken over each edit once.
    recalls = False

    def __init__(self, step: float | Step, centre: bool, group: Group = str) -> None:
        self.step: Step = step if callable(step) else lambda _: step
        self.centre, self.group = centre, group

    def ready(self, seen: Seen, moments: Moments) -> Asker:
        """The rule with the moments of earlier edits and of the rows seen: all are taken before any is asked for."""
        found = gathered(moments, seen, self.group)

        def ask(module: str, keys: Tensor, gradients: Tensor) -> Tensor:
            one = found[self.group(module)]
            if one.count < 2:  # no deviation to measure by: facts that say nothing at these modules' positions
                return torch.zeros_like(gradients)
            key, gradient = standardised(one, keys, gradients, self.centre)
            return self.asked(module, key, gradient)

        return Asker(ask, kept(found))

    def asked(self, module: str, key: Tensor, gradient: Tensor) -> Tensor:
        """d = −η ‖k̂‖² ĝ, (n, d_out)."""
        return -self.step(module) * key.square().sum(-1, keepdim=True) * gradient

    def ridge(self, module: str) -> float | None:
        """λ = 1, as published."""
        return 1.0


def standardised(one: Normaliser, keys: Tensor, gradients: Tensor, centre: bool) -> tuple[Tensor, Tensor]:
    """k̂ (n, d_in) and ĝ (n, d_out): each coordinate less its mean, of gradients where `centre`, by its deviation."""
    width, mean, deviation = keys.shape[1], one.mean.to(keys), one.deviation.to(keys)
    key = (keys - mean[:width]) / deviation[:width]
    return key, (gradients - mean[width:] if centre else gradients) / deviation[width:]


class UltraEditor(RidgeEditor):
    """The rule at work. Its asks depend on the order in which facts come, so it relearns them in an order of their own.

    A solve over all facts together, as the other rules of the family make it, is none of UltraEdit's: with the moments
    of all facts and its own step it asks for next to nothing.
    """

    def relearn(
        self,
        facts: Sequence[Fact],
        *,
        start: Mapping[str, Tensor] | None = None,
        identity: str = "",
        say: Say = silent,
    ) -> Change:
        """All facts again from the base, batch after batch in the order of their digests, with empty moments."""
        reason = "its moments are those of the facts in their order"
        change, state = batch_after_batch(self, facts, start, self.settings.editor, reason, say)
        ordered = list(state.live.values())
        keys: dict[str, Brought] = {
            KEYS: Entries(lambda: traced_keys(self.bench, self.settings, ordered, state.shifts), whole=True)
        }
        return Change({**change.parts, **keys}, change.report)


def step_of(bench: Bench, options: UltraSettings) -> Step:
    """η of each module: as given, else by the size of its outputs, else as published.

    With `relative_step` ρ it is ρ·√(tr(W₀ᵀC₀W₀)/d_out)/d_in: a fact with ‖k̂‖² = d_in and ĝ of one deviation asks of
    each output the share ρ of what it usually is at ordinary text.
    """
    share = options.relative_step
    if options.eta is not None or share is None:
        return lambda _: STEP if options.eta is None else options.eta

    @cache
    def step(module: str) -> float:
        weight = bench.loaded.base_weight(module)
        size = (bench.text_gram.energy(module, weight) / weight.shape[1]) ** 0.5
        return float(share * size / weight.shape[0])

    return step


def settings_on(bench: Bench) -> UltraSettings:
    """The settings of the bench, which are of the rules with moments."""
    assert isinstance(bench.settings, UltraSettings)  # the registry pairs rules with their settings
    return bench.settings


def make(bench: Bench) -> UltraEditor:
    """The rule with the store's step."""
    options = settings_on(bench)
    group = grouped(bench.loaded.modules, options.moments)
    targets = NormalisedTargets(step_of(bench, options), options.ask == "published", group)
    return UltraEditor(bench, targets)


def usual(bench: Bench) -> Mapping[str, float]:
    """What settings that may be none come to on a bench, see `Rule.usual`."""
    return {"log_ridge": log_ridge_of(bench, 1.0)}
