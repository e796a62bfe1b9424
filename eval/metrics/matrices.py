"""How edits have changed the weight matrices themselves: norms and condition numbers, base and now.

Norms that grow and condition numbers that rise from edit to edit come before a model's collapse: Ma et al. (PRUNE),
arXiv 2405.16821, on condition numbers; Gupta et al., arXiv 2502.01636, on norms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lifelong_edit.models import LoadedModel


@dataclass(frozen=True)
class MatrixFigures:
    """Of one matrix. condition: greatest over least singular value, infinite where the least is 0."""

    frobenius: float
    spectral: float
    condition: float


@dataclass(frozen=True)
class MatrixChange:
    """One edited matrix at the base model and now. shift: ‖ΔW‖ / ‖W₀‖ by Frobenius norm."""

    module: str
    base: MatrixFigures
    now: MatrixFigures
    shift: float


def matrix_figures(weight: Tensor) -> MatrixFigures:
    """Norms and condition number of a matrix (d_in, d_out), from its singular values in float64; NaN if it has NaN."""
    if not bool(weight.isfinite().all()):
        return MatrixFigures(*[float("nan")] * 3)
    values = torch.linalg.svdvals(weight.cpu().double())
    greatest, least = float(values[0]), float(values[-1])
    condition = greatest / least if least else float("inf")
    return MatrixFigures(float(values.square().sum().sqrt()), greatest, condition)


def matrix_changes(loaded: LoadedModel) -> list[MatrixChange]:
    """The figures of every edited matrix of a model as it stands, in order of depth.

    A singular value decomposition of each, twice: seconds for matrices of some thousand rows, minutes for larger ones.
    """
    found = []
    for module in loaded.modules:
        base, now = loaded.base_weight(module.name), loaded.weight(module.name)
        figures = matrix_figures(base)
        shift = float((now.double() - base.double()).norm()) / figures.frobenius
        found.append(MatrixChange(module.name, figures, matrix_figures(now), shift))
    return found
