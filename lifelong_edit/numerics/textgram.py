"""The mean gram of text keys C₀, streamed: whole in float64, or as a factor of low rank and a diagonal.

A gram of 16,384² numbers is 2 GiB in float64 for every edited module. Text keys lie mostly in few directions; what they
leave outside them is well enough described by its diagonal. So for a large d_in the stream goes into a sketch
Y = C₀Ω of a few thousand columns, from which Nyström's approximation gives the factor (Tropp, Yurtsever, Udell, Cevher,
"Fixed-rank approximation of a positive-semidefinite matrix from streaming data", arXiv 1706.05736); docs/mathematics.md
says what it costs and what its error is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lifelong_edit.numerics.devices import solve_device, to_solve
from lifelong_edit.numerics.lowrank import LowRank

DENSE_UP_TO = 8192
"""The greatest d_in whose gram is kept whole unless `gram_rank` says otherwise: half a GiB in float64."""
RANK = 1024
"""Rank of the factor beyond it."""
_AT_ONCE = 1024
"""Keys that are taken to float64 together."""
_DENSE, _FACTOR, _REST = "gram/", "gram_factor/", "gram_rest/"


def is_gram(name: str) -> bool:
    """Whether an array fixed at `init` is one of a text gram, by its name."""
    return name.startswith((_DENSE, _FACTOR, _REST))


def module_of(name: str) -> str:
    """The module whose gram an array is, or is a part of, by its name."""
    return name.partition("/")[2]


def require_gram(fixed: Mapping[str, np.ndarray], module: str) -> None:
    """Raise KeyError, naming the array, unless a module's gram is there: whole, or a factor and what is beside it."""
    whole, parts = _DENSE + module, [_FACTOR + module, _REST + module]
    for name in parts if any(part in fixed for part in parts) and whole not in fixed else [whole]:
        if name not in fixed:
            raise KeyError(name)


def rank_for(d_in: int, gram_rank: int | None) -> int:
    """Rank of the factor for a module, 0 for the whole gram: as set, by d_in where nothing is.

    A factor whose sketch (twice its rank) is no smaller than the gram would be more work for less.
    """
    rank = (0 if d_in <= DENSE_UP_TO else RANK) if gram_rank is None else gram_rank
    return 0 if 2 * rank >= d_in else rank


class GramSum(Protocol):
    """Σ kᵀk of one module while the keys go by, in float64."""

    def add(self, keys: Tensor) -> None:
        """Take in keys (n, d_in)."""

    def arrays(self, module: str, count: int) -> dict[str, np.ndarray]:
        """The mean over `count` keys, as arrays to be fixed at `init`."""


def gram_sum(d_in: int, rank: int, device: torch.device) -> GramSum:
    """An empty sum: whole for rank 0, else a sketch; kept on the device that solves for keys on `device`."""
    device = solve_device(device)
    return _Sketch(d_in, rank, device) if rank else _Whole(d_in, device)


class _Whole:
    def __init__(self, d_in: int, device: torch.device) -> None:
        self.sum = torch.zeros(d_in, d_in, dtype=torch.float64, device=device)

    def add(self, keys: Tensor) -> None:
        for part in keys.split(_AT_ONCE):
            exact = to_solve(part)
            self.sum.addmm_(exact.T, exact)

    def arrays(self, module: str, count: int) -> dict[str, np.ndarray]:
        return {_DENSE + module: (self.sum / count).cpu().numpy()}


class _Sketch:
    """Y = Σ kᵀ(kΩ) (d_in, 2·rank) and the diagonal of Σ kᵀk, which is exact. Ω is the same in every run."""

    def __init__(self, d_in: int, rank: int, device: torch.device) -> None:
        self.rank = rank
        draws = torch.randn(d_in, 2 * rank, dtype=torch.float64, generator=torch.Generator().manual_seed(d_in))
        # Not made orthonormal: of tall random matrices that changes nothing, and takes minutes.
        self.test = draws.div_(d_in**0.5).to(device)
        self.sum = torch.zeros_like(self.test)
        self.diagonal = torch.zeros(d_in, dtype=torch.float64, device=device)

    def add(self, keys: Tensor) -> None:
        for part in keys.split(_AT_ONCE):
            exact = to_solve(part)
            self.sum.addmm_(exact.T, exact @ self.test)
            self.diagonal += exact.square().sum(0)

    def arrays(self, module: str, count: int) -> dict[str, np.ndarray]:
        factor = self.factor(count).float()
        # Of the factor as stored, so that diagonal and trace are those of the gram; it is never below zero but for
        # rounding, because Nyström's approximation is nowhere above the matrix.
        rest = (self.diagonal / count - factor.double().square().sum(0)).clamp_min(0)
        return {_FACTOR + module: factor.cpu().numpy(), _REST + module: rest.cpu().numpy()}

    def factor(self, count: int) -> Tensor:
        """F (rank, d_in) float64: FᵀF = Y(ΩᵀY)⁺Yᵀ, cut to its greatest eigenvalues. Fewer rows for a gram of less."""
        mean = self.sum / count
        inner = self.test.T @ mean
        values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
        known = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
        root = mean @ (vectors[:, known] / values[known].sqrt())
        squares, right = torch.linalg.eigh(root.T @ root)
        kept = right[:, squares > 0][:, -self.rank :]
        found: Tensor = (root @ kept).T.flip(0).contiguous()
        return found


class TextGrams:
    """C₀ of every module as `init` fixed it; a factor is multiplied out only where it is added to a matrix.

    devices: by module the device on which its keys are; C₀ is kept where solves for these are.
    """

    def __init__(self, fixed: Mapping[str, np.ndarray], devices: Mapping[str, torch.device]) -> None:
        self._whole: dict[str, Tensor] = {}
        self._parts: dict[str, tuple[Tensor, Tensor]] = {}
        for name, own in devices.items():
            device = solve_device(own)
            if _DENSE + name in fixed:
                self._whole[name] = torch.from_numpy(fixed[_DENSE + name]).to(device).double()
            else:
                factor, rest = (torch.from_numpy(fixed[part + name]).to(device).double() for part in (_FACTOR, _REST))
                self._parts[name] = factor, rest

    def __getitem__(self, module: str) -> Tensor:
        """C₀, (d_in, d_in) float64."""
        if module in self._whole:
            return self._whole[module]
        width = self.width(module)
        return self.add_to(torch.zeros(width, width, dtype=torch.float64, device=self._parts[module][1].device), module)

    def low_rank(self, module: str, count: float = 1.0) -> LowRank | None:
        """count·C₀ by its rows, not multiplied out; None where it is kept whole."""
        if module in self._whole:
            return None
        factor, rest = self._parts[module]
        return LowRank(factor * count**0.5, rest * count)

    def width(self, module: str) -> int:
        """d_in."""
        return len(self._whole[module]) if module in self._whole else len(self._parts[module][1])

    def trace(self, module: str) -> float:
        """The trace of C₀."""
        if module in self._whole:
            return float(self._whole[module].trace())
        factor, rest = self._parts[module]
        return float(factor.square().sum() + rest.sum())

    def energy(self, module: str, weight: Tensor) -> float:
        """tr(WᵀC₀W) of a matrix (d_in, d_out): the mean of ‖kW‖² over ordinary text, its bias left out."""
        if module in self._whole:
            gram = self._whole[module]
            weight = weight.to(gram)
            return float(((gram @ weight) * weight).sum())
        factor, rest = self._parts[module]
        weight = weight.to(factor)
        return float((factor @ weight).square().sum() + (rest[:, None] * weight.square()).sum())

    def add_to(self, gram: Tensor, module: str, count: float = 1.0) -> Tensor:
        """gram + count·C₀, in place: (d_in, d_in) float64; a factor is never a matrix of its own."""
        if module in self._whole:
            return gram.add_(self._whole[module], alpha=count)
        factor, rest = self._parts[module]
        gram.addmm_(factor.T, factor, alpha=count)
        gram.diagonal().add_(rest, alpha=count)
        return gram
