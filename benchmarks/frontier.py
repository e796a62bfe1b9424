"""Draws what `bench_lifelong` and `bench_streams` measured: `docs/figures/frontier.svg` and `forgetting.svg`.

`python -m benchmarks.frontier`; the same results give the same bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import common

FIGURES = common.REPOSITORY / "docs" / "figures"
BATCHES, SIZE = 20, 50
FLOOR = {"efficacy": 0.95, "generality": 0.85, "locality": 0.88}
"""What no batch boundary shall fall below."""
RIVALS = ("published", "p0", "finetune")
COLOURS = ("#0072b2", "#009e73", "#56b4e9", "#332288", "#117733", "#44aa99", "#6699cc", "#004488")
RIVAL_COLOURS = ("#d55e00", "#cc79a7", "#e69f00", "#882255", "#aa4499", "#ddaa33")
STYLE = {
    "svg.hashsalt": "lifelong-edit",  # ids of paths would be random without it
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Point:
    """Where an arm ends, by generation, one value per seed."""

    arm: str
    scores: Mapping[str, Sequence[float]]

    def mean(self, name: str) -> float:
        """Over the seeds."""
        return sum(self.scores[name]) / len(self.scores[name])

    def bar(self, name: str) -> list[list[float]]:
        """How far the least and the greatest are from the mean, as matplotlib wants it."""
        return [[self.mean(name) - min(self.scores[name])], [max(self.scores[name]) - self.mean(name)]]


def read(folder: Path, start: str) -> dict[str, dict[str, Any]]:
    """The results of the files `START-ARM.json`, by what stands for ARM."""
    return {
        path.stem.removeprefix(f"{start}-"): json.loads(path.read_text(encoding="utf-8"))["results"]
        for path in sorted(folder.glob(f"{start}-*.json"))
    }


def complete(results: Mapping[str, Any], batches: int) -> list[dict[str, Any]]:
    """The complete runs of that many batches of 50."""
    return [r for r in results["runs"] if r["complete"] and r["batches"] == batches and r["size"] == SIZE]


def ends(run: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The last state that was judged, and the canonical one after it: what is added to the arm's name, and scores."""
    judged = [c for c in run["checks"] if "efficacy" in c]
    own = [c for c in judged if c["what"] != "canonical at the end"]
    yield "", own[-1]
    yield from ((" + canonical", c) for c in judged if c["what"] == "canonical at the end")


def points(folder: Path) -> list[Point]:
    """Every arm of 20 batches: those of `lifelong-*`, and of `streams-*` what these do not have."""
    found: dict[str, dict[str, list[float]]] = {}
    for results in read(folder, "lifelong").values():
        for run in complete(results, BATCHES):
            for suffix, scores in ends(run):
                _add(found, results["arm"] + suffix, scores)
    known = {arm.split(" + ")[0] for arm in found}
    for arm, results in read(folder, "streams").items():
        for label, scores in results.items():
            if label.startswith(f"{BATCHES} x {SIZE},") and arm not in known:
                _add(found, f"{arm} (batches)", scores)
    return [Point(arm, scores) for arm, scores in sorted(found.items())]


def _add(found: dict[str, dict[str, list[float]]], arm: str, scores: Mapping[str, Any]) -> None:
    for name in FLOOR:
        found.setdefault(arm, {}).setdefault(name, []).append(scores[name]["generated"])


def is_rival(arm: str) -> bool:
    """Whether an arm is one to be beaten."""
    return arm.startswith(RIVALS)


def colours(arms: Sequence[str]) -> dict[str, str]:
    """One colour per arm: warm ones for rivals, grey for what was measured batch by batch alone."""
    counts, found = {True: 0, False: 0}, {}
    for arm in arms:
        palette = RIVAL_COLOURS if is_rival(arm) else COLOURS
        found[arm] = "#999999" if arm.endswith("(batches)") else palette[counts[is_rival(arm)] % len(palette)]
        counts[is_rival(arm)] += not arm.endswith("(batches)")
    return found


MARKERS = "osD^vP*X<>hpd8"


def draw_frontier(found: Sequence[Point]) -> Figure:
    """Efficacy and generality against locality: all arms above, below those that keep most of all three."""
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 9), layout="constrained")
    paint = colours([point.arm for point in found])
    near = [p for p in found if min(p.mean(name) for name in FLOOR) > 0.5]
    for row, shown in zip(axes, (found, near), strict=True):
        for ax, name in zip(row, ("efficacy", "generality"), strict=True):
            for i, point in enumerate(found):
                if point in shown:
                    _place(ax, point, name, paint[point.arm], MARKERS[i % len(MARKERS)])
            ax.axhline(FLOOR[name], color="#bbbbbb", linewidth=0.8, linestyle=":")
            ax.axvline(FLOOR["locality"], color="#bbbbbb", linewidth=0.8, linestyle=":")
            ax.set_xlabel("locality: neighbours answered as by the base model")
            ax.set_ylabel(name)
    axes[0, 0].set_title(f"{BATCHES} batches of {SIZE} facts, by generation")
    axes[1, 0].set_title("the same, nearer")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _place(ax: Axes, point: Point, name: str, colour: str, marker: str) -> None:
    """Mean with range over the seeds."""
    ax.errorbar(
        point.mean("locality"),
        point.mean(name),
        xerr=point.bar("locality"),
        yerr=point.bar(name),
        color=colour,
        marker=marker,
        markersize=6,
        linewidth=0.8,
        linestyle="none",
        label=point.arm,
    )


@dataclass(frozen=True)
class Curve:
    """One arm's line in a panel."""

    arm: str
    xs: Sequence[float]
    ys: Sequence[float]


def oldest(results: Mapping[str, Any], batches: int, name: str = "efficacy") -> Curve:
    """The oldest batch over time, teacher-forced (as every boundary is asked): the mean over the seeds."""
    sums: dict[int, list[float]] = {}
    for run in complete(results, batches):
        last = {c["after"]: c for c in run["checks"] if "cohorts" in c and c["what"] != "canonical at the end"}
        for after, check in last.items():
            if check["cohorts"] and name in check["cohorts"][0]:
                sums.setdefault(after, []).append(check["cohorts"][0][name]["teacher_forced"])
    return Curve(results["arm"], sorted(sums), [_mean(sums[x]) for x in sorted(sums)])


def by_age(results: Mapping[str, Any], batches: int, name: str = "efficacy") -> Curve:
    """Every batch at the end, by generation, against how many batches came after it: the mean over the seeds."""
    sums: dict[int, list[float]] = {}
    for run in complete(results, batches):
        check = dict(ends(run))[""]
        for cohort in check["cohorts"]:
            if name in cohort:
                sums.setdefault(batches - cohort["batch"], []).append(cohort[name]["generated"])
    return Curve(results["arm"], sorted(sums), [_mean(sums[x]) for x in sorted(sums)])


def over_time(results: Mapping[str, Any], batches: int, name: str) -> Curve:
    """A score of all live facts over time, teacher-forced."""
    (run,) = complete(results, batches)[:1]
    last = {c["after"]: c[name] for c in run["checks"] if name in c and c["what"] != "canonical at the end"}
    return Curve(name, [x * SIZE for x in sorted(last)], [last[x]["teacher_forced"] for x in sorted(last)])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def draw_forgetting(lives: Mapping[str, Mapping[str, Any]]) -> Figure:
    """The oldest batch over time, all batches at the end by age, and the long stream."""
    own = [r for r in lives.values() if complete(r, BATCHES)]
    long = [(r, n) for r in lives.values() for n in sorted({run["batches"] for run in r["runs"]}) if n > BATCHES]
    long = [(r, n) for r, n in long if complete(r, n)]
    figure, axes = pyplot.subplots(1, 2 + bool(long), figsize=(10 + 4 * bool(long), 5), layout="constrained")
    paint = colours([r["arm"] for r in own])
    for i, results in enumerate(own):
        look = {"color": paint[results["arm"]], "marker": MARKERS[i % len(MARKERS)], "markersize": 4, "linewidth": 1}
        for ax, curve in zip(axes, (oldest(results, BATCHES), by_age(results, BATCHES)), strict=False):
            ax.plot(curve.xs, curve.ys, label=curve.arm, **look)
    _words(axes[0], "the oldest batch, as others follow", "batches", "efficacy, teacher-forced")
    _words(axes[1], "every batch at the end", "batches that came after it", "efficacy, by generation")
    for results, batches in long:
        first = oldest(results, batches)
        axes[2].plot([x * SIZE for x in first.xs], first.ys, marker="o", markersize=4, label="efficacy, oldest batch")
        for name in ("efficacy", "generality", "locality"):
            curve = over_time(results, batches, name)
            axes[2].plot(curve.xs, curve.ys, marker="s", markersize=3, label=name)
        _words(axes[2], f"{results['arm']}, {batches} batches", "facts", "teacher-forced")
        axes[2].legend(frameon=False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _words(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_title(title)
    ax.set_xlabel(x)
    ax.set_ylabel(y)


def save(figure: Figure, path: Path) -> None:
    """As SVG without a date, so that the same results give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    # matplotlib leaves white space at line ends, of which a diff would complain.
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("".join(f"{line.rstrip()}\n" for line in lines), encoding="utf-8")


def main() -> None:
    """Both figures, of the results that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    parser.add_argument("--figures", type=Path, default=FIGURES)
    options = parser.parse_args()
    with pyplot.rc_context(STYLE):
        if found := points(options.results):
            save(draw_frontier(found), options.figures / "frontier.svg")
        lives = read(options.results, "lifelong")
        if any(complete(results, BATCHES) for results in lives.values()):
            save(draw_forgetting(lives), options.figures / "forgetting.svg")


if __name__ == "__main__":
    main()
