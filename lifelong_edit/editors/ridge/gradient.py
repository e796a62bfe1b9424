"""The rule without a network: the gradient in the metric of the module's outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lifelong_edit.editors.ridge.targets import Asker, Moments, Seen
from lifelong_edit.numerics.devices import to_solve

SHARE = 1.8
"""Default η of the rule: the share of the facts' loss that one pass would take away, were it linear, in all modules
together. More than the whole of it, because it is not: the larger the step, the less of it comes true."""


def output_metric(gradients: Tensor, kappa: float) -> Tensor:
    """c·M/σ, so that ĝ = g @ output_metric: (d_out, d_out) float32.

    gradients: (n, d_out) of the solve's own facts. M = (Γ + κI)⁻¹ with Γ = GᵀG/n divided by its mean
    diagonal, σ the root mean square of G, c = ‖G‖/‖GM‖: one scalar each per module, never per row.
    With the keys' gram on the left this is a Kronecker-factored Gauss–Newton step (arXiv 1503.05671).
    All zeros where no gradient asks for anything.
    """
    g = to_solve(gradients)
    scale = g.square().mean().sqrt()
    if not bool(scale > 0):
        return torch.zeros(g.shape[1], g.shape[1], device=gradients.device)
    gamma = g.T @ g
    gamma /= gamma.diagonal().mean()
    metric = torch.linalg.inv(gamma + kappa * torch.eye(len(gamma), dtype=g.dtype, device=g.device))
    scaled: Tensor = g.norm() / (g @ metric).norm() / scale * metric
    return scaled.float().to(gradients.device)


def output_metrics(gradients: Mapping[str, Tensor], kappa: float) -> dict[str, Tensor]:
    """The output metric of every module."""
    return {name: output_metric(g, kappa) for name, g in gradients.items()}


def linear_step(eta: float, gradients: Tensor, metric: Tensor, loss: float | None) -> float:
    """The step at which d = −step·ĝ takes away the share `eta` of the loss, by the linear model (Polyak's step).

    gradients (n, d_out) and the loss summed over their rows, of the solve's own facts; one scalar per module. A step
    in units of the outputs would be right for one model only: residual streams differ in scale by a factor of ten.
    Without a loss, or where no gradient asks for anything, the step is `eta` itself.
    """
    slope = float((gradients * (gradients @ metric)).sum())
    return eta * loss / slope if loss is not None and slope > 0 else eta


def linear_steps(
    eta: float, gradients: Mapping[str, Tensor], metric: Mapping[str, Tensor], loss: float | None
) -> dict[str, float]:
    """The step of every module, each asked for an equal part of the share `eta`; without a loss `eta` itself.

    All modules move at once: each asked for the whole, six would take away six times what is there.
    """
    share = eta if loss is None else eta / max(1, len(gradients))
    return {name: linear_step(share, g, metric[name], loss) for name, g in gradients.items()}


def within(values: Tensor, radius: Tensor | float) -> Tensor:
    """Value differences (n, d_out), rows longer than radius·√d_out cut back to that length.

    In the output metric the facts' own gradients have root mean square 1, so a row norm of √d_out, at the
    first pass. At later ones the metric, fitted on the first, enlarges directions that it had hardly seen: single
    rows came to ask a hundred times more than a fact does, and one such row spoils a solve.
    """
    length = values.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    cut: Tensor = (radius * math.sqrt(values.shape[-1]) / length).clamp(max=1.0)
    return values * cut


class GradientTargets:
    """d = −η ĝ within a trust radius: no training, works on any known model on the first day."""

    recalls = True

    def __init__(self, eta: float, kappa: float, trust: float) -> None:
        self.eta, self.kappa, self.trust = eta, kappa, trust

    def ready(self, seen: Seen, moments: Moments) -> Asker:
        """The rule with the metric and the step of the gradients seen."""
        metric = output_metrics(seen.gradients, self.kappa)
        step = linear_steps(self.eta, seen.gradients, metric, seen.loss)

        def ask(module: str, keys: Tensor, gradients: Tensor) -> Tensor:
            return within(-step[module] * gradients @ metric[module], step[module] * self.trust)

        return Asker(ask)

    def ridge(self, module: str) -> float | None:
        """No ridge of its own."""
        return None
