"""UltraEdit: the identity hypernetwork with a running normaliser (arXiv 2505.14679)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.editors.ridge.targets import Asker, Moments, Seen


class NormalisedTargets:
    """d = −η ‖ĥ‖² ĝ with ĥ, ĝ normalised by mean and deviation over all edits so far.

    In this project's joint solve ĝ is not centred, so that a row without gradient asks for nothing.
    The moments (count, mean, sum of squared distances) are a part of the store's state.
    """

    # Moments are taken over each edit once.
    recalls = False
    sample: int | None = None

    def __init__(self, eta: float, centre: bool) -> None:
        self.eta, self.centre = eta, centre

    def ready(self, seen: Iterable[Seen], moments: Moments) -> Asker:
        """The rule with the moments of earlier edits and of the rows seen."""
        found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        kept = dict(moments)
        for part in seen:
            rows = {name: torch.cat([part.keys[name], part.gradients[name]], -1) for name in part.keys}
            found = {name: _joined(kept, name, own) for name, own in rows.items()}
            kept = {f"{n}/{what}": t.numpy() for n, m in found.items() for what, t in zip(PARTS, m, strict=True)}

        def ask(module: str, keys: Tensor, gradients: Tensor) -> Tensor:
            count, mean, squares = (m.to(keys) for m in found[module])
            if count < 2:  # no deviation to measure by: facts that say nothing at this module's positions
                return torch.zeros_like(gradients)
            deviation = (squares / (count - 1).clamp_min(1)).sqrt() + 1e-8
            width = keys.shape[1]
            key = (keys - mean[:width]) / deviation[:width]
            gradient = (gradients - mean[width:] if self.centre else gradients) / deviation[width:]
            return -self.eta * key.square().sum(-1, keepdim=True) * gradient

        return Asker(ask, kept)

    def ridge(self, module: str) -> float | None:
        """λ = 1, as published."""
        return 1.0


STEP = 1e-6
"""η unless the settings say otherwise, as published."""
PARTS = ("count", "mean", "squares")


def _joined(state: Moments, name: str, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and sum of squared distances of earlier rows and these together (Chan et al. 1979)."""
    rows = rows.cpu().double()
    count = torch.tensor(float(len(rows)), dtype=torch.float64)
    mean = rows.mean(0) if len(rows) else rows.new_zeros(rows.shape[1])  # none: no fact mentions its subject
    squares = (rows - mean).square().sum(0)
    if f"{name}/count" not in state:
        return count, mean, squares
    old_count, old_mean, old_squares = (torch.from_numpy(np.array(state[f"{name}/{part}"])) for part in PARTS)
    total = count + old_count
    share = count / total.clamp_min(1)
    change = mean - old_mean
    return total, old_mean + change * share, old_squares + squares + change.square() * share * old_count


def make(bench: Bench) -> RidgeEditor:
    """The rule; with all facts together its ĝ is not centred, for preserved prompts are rows there."""
    options = RidgeEditor.options_of(bench)
    eta = STEP if options.eta is None else options.eta
    targets = NormalisedTargets(eta, centre=options.ask == "published")
    return RidgeEditor(bench, targets, for_all=NormalisedTargets(eta, centre=False))
