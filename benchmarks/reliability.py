"""Draws how far the probabilities of `bench_conflicts` can be believed: `docs/figures/conflicts.svg`.

`python -m benchmarks.reliability`; the same results give the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

from benchmarks import common
from benchmarks.frontier import COLOURS, FIGURES, STYLE, save

BINS = 10
FEWEST = 20
"""Pairs without which a bin is not drawn: its share would be chance."""


def save_figure(results: Path, folder: Path = FIGURES) -> None:
    """One line per model and kind of facts: the probability said against the share of paraphrases seen."""
    models = json.loads(results.read_text(encoding="utf-8"))["results"]
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(5.5, 5), layout="constrained")
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=":")
        paint = iter(COLOURS)
        for model, parts in models.items():
            for what, entry in parts.items() if isinstance(parts, dict) else ():
                bins = entry.get("reliability", {}).get("bins", ()) if isinstance(entry, dict) else ()
                if bins:
                    drawn = [part for part in bins if part["pairs"] >= FEWEST]
                    said, seen = ([part[name] for part in drawn] for name in ("said", "seen"))
                    style = "--" if "atlas" in what else "-"
                    axes.plot(said, seen, style, marker="o", markersize=4, color=next(paint), label=f"{model}: {what}")
        axes.set_xlabel("probability said that two facts about a subject ask for the same")
        axes.set_ylabel("share of those that do, as many pairs of each kind")
        axes.legend(frameon=False, fontsize=8)
        save(figure, folder / "conflicts.svg")


if __name__ == "__main__":
    save_figure(common.RESULTS / "conflicts.json")
