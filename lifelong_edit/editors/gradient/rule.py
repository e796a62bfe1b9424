"""This project's rule without a network: the gradient in the metric of the module's outputs."""

from __future__ import annotations

from collections.abc import Mapping

from lifelong_edit.bench import Bench
from lifelong_edit.editors.ridge.editor import RidgeEditor, log_ridge_of
from lifelong_edit.editors.ridge.gradient import SHARE, GradientTargets


def make(bench: Bench) -> RidgeEditor:
    """The rule with the store's step."""
    options = RidgeEditor.options_of(bench)
    eta = SHARE if options.eta is None else options.eta
    return RidgeEditor(bench, GradientTargets(eta, options.kappa, options.trust))


def usual(bench: Bench) -> Mapping[str, float]:
    """What settings that may be none come to on a bench, see `Rule.usual`."""
    return {"eta": SHARE, "log_ridge": log_ridge_of(bench, 1.0)}
