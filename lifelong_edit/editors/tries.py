"""What may be tried for a rule when its settings are chosen for a model, as the rule's declaration says it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

Number = int | float
Grid = Mapping[str, tuple[Number, ...]]

LAYER = "layer"
"""What the highest edited layer is called beside the settings, where it is chosen too."""


@dataclass(frozen=True, kw_only=True)
class Tries:
    """What `train --choose` may try for a rule, and how its trials are judged unless it is told otherwise.

    grid: values of settings, ascending; in this order in the first round: what tells most comes first. relative: those
    whose values are multiples of what the setting comes to where it is none (`usual` of the rule's home). depths: where
    the highest edited layer may stand, as shares of the number of layers, ascending. fixing: settings of the grid on
    which what `init` fixes for the rule depends. stream_only: those that mean nothing to a reconsolidation. beside:
    whether modules at the subject may stand beside those that the rule edits. generated: whether facts are asked by
    generation. reconsolidate: whether a trial solves for all facts together too, which only some rules do cheaply.
    persists: whether the search looks past values with which nothing is taught, from where nothing is: the defaults of
    some rules, published for other models, are too small by a power of ten.
    """

    grid: Grid = field(default_factory=dict)
    relative: frozenset[str] = frozenset()
    depths: tuple[float, ...] = ()
    fixing: frozenset[str] = frozenset()
    stream_only: frozenset[str] = frozenset()
    beside: bool = False
    generated: bool = True
    reconsolidate: bool = False
    persists: bool = True

    def __bool__(self) -> bool:
        return bool(self.grid or self.depths)

    def wrong(self, known: Collection[str]) -> str:
        """What is wrong with it for a rule whose own settings are `known`; empty where nothing is."""
        if LAYER in self.grid or (strange := sorted({*self.grid} - {*known})):
            return f"the grid has {', '.join(strange) if LAYER not in self.grid else LAYER}, which is no setting of it"
        uneven = [name for name, values in self.grid.items() if not ascending(values)]
        if uneven or (self.depths and not ascending(self.depths)):
            return f"the values of {', '.join(uneven) or 'depths'} do not ascend"
        if not all(0 <= depth <= 1 for depth in self.depths):
            return f"the depths {self.depths} are no shares"
        loose = sorted((self.relative | self.fixing) - {*self.grid})
        return f"{', '.join(loose)} stands in no grid" if loose else ""


def ascending(values: Sequence[Number]) -> bool:
    """Whether there are two values at least, each greater than the one before."""
    return len(values) > 1 and list(values) == sorted(set(values))
