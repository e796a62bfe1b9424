"""Running moments of keys and gradients: a part of the state, so that a rollback takes them back as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lifelong_edit.editors.ridge.targets import Moments, Seen
from lifelong_edit.editors.ultraedit.settings import By
from lifelong_edit.models import EditableModule

Group = Callable[[str], str]
"""The name under which a module's moments stand: modules of one name share a normaliser."""
PARTS = ("count", "mean", "squares", "scatter")


@dataclass(frozen=True)
class Normaliser:
    """Of rows [k; g] their count, mean (d_in + d_out,) and sum of squared distances (d_in + d_out,).

    scatter: where it is kept, the sum of outer products of the gradients' distances, (d_out, d_out). All float64 on the
    CPU.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor
    scatter: Tensor | None = None

    @classmethod
    def of(cls, keys: Tensor, gradients: Tensor, scatter: bool = False) -> Normaliser:
        """Of rows (n, d_in) and (n, d_out); zeros without any: no fact mentions its subject."""
        rows = torch.cat([keys, gradients], -1).cpu().double()
        mean = rows.mean(0) if len(rows) else rows.new_zeros(rows.shape[1])
        apart = rows - mean
        own = apart[:, keys.shape[1] :]
        count = torch.tensor(float(len(rows)), dtype=torch.float64)
        return cls(count, mean, apart.square().sum(0), own.T @ own if scatter else None)

    @classmethod
    def read(cls, arrays: Moments, name: str) -> Normaliser | None:
        """As it is kept under a name; None where nothing is."""
        found = [torch.from_numpy(np.array(arrays[n])) for part in PARTS if (n := f"{name}/{part}") in arrays]
        return cls(*found) if found else None

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """What is kept, by name."""
        return {f"{name}/{part}": kept.numpy() for part in PARTS if (kept := getattr(self, part)) is not None}

    def joined(self, later: Normaliser) -> Normaliser:
        """Of the rows of both together (Chan, Golub, LeVeque, 1979): cut as they may be, up to rounding."""
        total = later.count + self.count
        share = later.count / total.clamp_min(1)
        change = later.mean - self.mean
        squares = self.squares + later.squares + change.square() * share * self.count
        scatter = None
        if self.scatter is not None and later.scatter is not None:
            own = change[-len(self.scatter) :]
            scatter = self.scatter + later.scatter + torch.outer(own, own) * share * self.count
        return Normaliser(total, self.mean + change * share, squares, scatter)

    @property
    def deviation(self) -> Tensor:
        """The standard deviation of each coordinate, (d_in + d_out,), of n − 1 degrees of freedom."""
        return (self.squares / (self.count - 1).clamp_min(1)).sqrt() + 1e-8


def grouped(modules: Sequence[EditableModule], by: By) -> Group:
    """Under which name the moments of each module stand: its own, or that of its shape."""
    shapes = {m.name: f"{m.d_in}x{m.d_out}" for m in modules}
    return (lambda name: name) if by == "module" else shapes.__getitem__


def gathered(moments: Moments, seen: Seen, group: Group, scatter: bool = False) -> dict[str, Normaliser]:
    """By group the moments of earlier rows and of those seen, taken module after module."""
    found: dict[str, Normaliser] = {}
    for module, keys in seen.keys.items():
        name = group(module)
        earlier = found.get(name) or Normaliser.read(moments, name)
        own = Normaliser.of(keys, seen.gradients[module], scatter)
        found[name] = own if earlier is None else earlier.joined(own)
    return found


def kept(found: dict[str, Normaliser]) -> dict[str, np.ndarray]:
    """All of them as a part of the state."""
    return {name: array for group, one in found.items() for name, array in one.arrays(group).items()}
