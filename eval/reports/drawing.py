"""How a figure of a report is drawn: in which colours, and as what kind of file."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


@dataclass(frozen=True)
class Palette:
    """The colours of a figure."""

    ink: str
    rule: str
    faint: str
    series: tuple[str, ...]

    def line(self, number: int) -> str:
        """The colour of a series."""
        return self.series[number % len(self.series)]

    def names(self) -> dict[str, str]:
        """By the page's name of each colour, without its dashes."""
        named = {"ink": self.ink, "rule": self.rule, "faint": self.faint}
        return named | {f"series-{i + 1}": colour for i, colour in enumerate(self.series)}


# Okabe and Ito's colours, which people with colour blindness can tell apart, some of them darker than theirs (on a dark
# page lighter), so that lines stand out.
LIGHT = Palette("#1c1f23", "#d5d9de", "#5f6770", ("#0072b2", "#c4500a", "#00805f", "#a8447f", "#8a6d00", "#4a7fa5"))
DARK = Palette("#e8eaed", "#3a4048", "#9aa3ad", ("#56b4e9", "#f0a35e", "#35c49a", "#dd8fbe", "#e3cc4f", "#a5c8e4"))
TOLD = Palette("#101112", "#101113", "#101114", tuple(f"#20110{i}" for i in range(1, 7)))
"""Colours that stand for those of the page, which decides by what it is read on."""
SIZE = (5.2, 3.1)
"""Inches. Text of 10 points is read on a phone then, where a figure is as wide as the screen."""


@dataclass(frozen=True)
class Table:
    """The numbers of a figure."""

    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]


@dataclass(frozen=True)
class Figure:
    """One figure. name: of its files; what: in one sentence, for those who cannot see it."""

    name: str
    title: str
    what: str
    note: str
    table: Table
    draw: Callable[[Canvas, Palette], None] = field(repr=False)
    size: tuple[float, float] = SIZE

    def _save(self, out: io.StringIO | io.BytesIO, colours: Palette, **how: Any) -> None:
        import matplotlib as mpl
        from matplotlib.figure import Figure as Canvas

        with mpl.rc_context(_style(self.name, colours)):
            canvas = Canvas(figsize=self.size, layout="constrained")
            self.draw(canvas, colours)
            canvas.savefig(out, **how)

    def svg(self) -> str:
        """A file of its own, on nothing."""
        out = io.StringIO()
        self._save(out, LIGHT, format="svg", transparent=True, metadata={"Date": None})
        return out.getvalue()

    def png(self) -> bytes:
        """A file of its own, on white."""
        out = io.BytesIO()
        self._save(out, LIGHT, format="png", dpi=160, facecolor="white", metadata={"Software": None})
        return out.getvalue()

    def inline(self) -> str:
        """SVG to be set into the page: in its colours, as wide as it likes, with a title and a description."""
        out = io.StringIO()
        self._save(out, TOLD, format="svg", transparent=True, metadata={"Date": None})
        text = out.getvalue()
        text = text[text.index("<svg") :]
        for name, told in TOLD.names().items():
            text = text.replace(told, f"var(--{name})")
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        # Several figures stand on one page, and matplotlib calls the parts of each the same.
        text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{self.name}-", text)
        front, back = text.split(">", 1)
        front = re.sub(r' (width|height)="[^"]*"', "", front)
        said = f'<title id="{self.name}-title">{_escaped(self.title)}</title>'
        said += f'<desc id="{self.name}-what">{_escaped(self.what)}</desc>'
        return f'{front} role="img" aria-labelledby="{self.name}-title {self.name}-what">{said}{back}'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _style(name: str, colours: Palette) -> dict[str, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.edgecolor": colours.rule,
        "axes.labelcolor": colours.ink,
        "axes.titlecolor": colours.ink,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": colours.rule,
        "grid.linewidth": 0.6,
        "text.color": colours.ink,
        "xtick.color": colours.faint,
        "ytick.color": colours.faint,
        "xtick.labelcolor": colours.faint,
        "ytick.labelcolor": colours.faint,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.8,
        "lines.markersize": 4,
    }
