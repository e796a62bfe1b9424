"""This project's rule without a network: the gradient in the metric of the module's outputs."""

from __future__ import annotations

from lifelong_edit.bench import Bench
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.editors.ridge.gradient import SHARE, GradientTargets


def make(bench: Bench) -> RidgeEditor:
    """The rule with the store's step."""
    options = RidgeEditor.options_of(bench)
    eta = SHARE if options.eta is None else options.eta
    return RidgeEditor(bench, GradientTargets(eta, options.kappa, options.trust))
