"""This project's rule without a network: the gradient in the metric of the module's outputs."""

from __future__ import annotations

from collections.abc import Sequence

from lifelong_edit.bench import Bench
from lifelong_edit.editors.contract import Arrays
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.editors.ridge.gradient import SHARE, GradientTargets
from lifelong_edit.models import EditableModule
from lifelong_edit.settings import StoreSettings


def make(bench: Bench, fixed: Arrays) -> RidgeEditor:
    """The rule with the store's step."""
    options = RidgeEditor.options_of(bench)
    eta = SHARE if options.eta is None else options.eta
    return RidgeEditor(bench, GradientTargets(eta, options.kappa, options.trust))


def fix(settings: StoreSettings, modules: Sequence[EditableModule], given: Arrays) -> Arrays:
    """Nothing is fixed."""
    return {}
