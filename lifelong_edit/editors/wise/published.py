"""Constants of the published code, for the models that it names, and what stands in their place for all others."""

from __future__ import annotations

from dataclasses import dataclass

from lifelong_edit.editors.locate.published import GPT_J, LLAMA_2, LLAMA_3
from lifelong_edit.editors.wise.settings import WiseSettings
from lifelong_edit.errors import UsageError

RELATIVE = (0.05, 0.2, 0.1)
"""Margins in the activation's own mean size, in the proportions of those of Llama-2."""


@dataclass(frozen=True)
class Constants:
    """What a store's settings come to for its model. rate: None where steps are of one size (`relative_rate`)."""

    rate: float | None
    steps: int
    margins: tuple[float, float, float]
    margin_weight: float
    threshold: float


PUBLISHED = {
    GPT_J: Constants(1.0, 70, (15.0, 40.0, 20.0), 1.0, 0.88),
    LLAMA_2: Constants(1.0, 70, (5.0, 20.0, 10.0), 1.0, 0.88),
    LLAMA_3: Constants(0.9, 30, (2.0, 20.0, 10.0), 1.0, 0.5),
}


def constants_of(settings: WiseSettings, known: tuple[str, int, int], size: float) -> Constants:
    """What the settings say, else what is published, else the rule for all others; size: of the mean activation.

    Raises UsageError for margins that are not three numbers.
    """
    a, b, c = RELATIVE
    relative = Constants(None, 70, (a * size, b * size, c * size), 1 / max(size, 1e-30), 0.88)
    s, found = settings, PUBLISHED.get(known, relative)
    return Constants(
        found.rate if s.rate is None else s.rate,
        s.steps or found.steps,
        three_of(s.margins) or found.margins,
        found.margin_weight if s.margin_weight is None else s.margin_weight,
        s.threshold or found.threshold,
    )


def three_of(margins: tuple[str, ...]) -> tuple[float, float, float] | None:
    """Margins as numbers; None where none are given. Raises UsageError where they are not three numbers."""
    if not margins:
        return None
    try:
        a, b, c = map(float, margins)
    except ValueError:
        raise UsageError(
            f"setting margins is {','.join(margins)!r}; it must be three numbers by comma, such as 5,20,10"
        ) from None
    return a, b, c
