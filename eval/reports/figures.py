"""The figures of a report: drawn by matplotlib, in colours that the page decides, each with its numbers as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lifelong_edit.eval.reports.data import ALARM, StoreReport
from lifelong_edit.eval.reports.drawing import Figure, Palette, Table
from lifelong_edit.eval.reports.matrix import Rate, rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


MARKS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1)), (0, (1, 3)))
MOST_COHORTS = 6
MOST_CELLS = 2500


def figures(stores: Sequence[StoreReport]) -> list[Figure]:
    """All figures that there is something to draw for."""
    measured = [store for store in stores if store.measurements]
    found: list[Figure] = []
    if measured:
        found += [_retention(measured), _ages(measured)]
        found += [_cohorts(store, i) for i, store in enumerate(stores) if store.measurements]
        found += [_matrix(store, i) for i, store in enumerate(stores) if store.measurements]
        found.append(_locality(measured))
    if any(store.perplexity for store in stores):
        found.append(_perplexity([store for store in stores if store.perplexity]))
    found += [_survival(store, i) for i, store in enumerate(stores) if store.survival]
    return found


# -- over the stream


def _retention(stores: Sequence[StoreReport]) -> Figure:
    series = [(s.name, [m.step for m in s.measurements], s.retention) for s in stores]

    def draw(canvas: Canvas, colours: Palette) -> None:
        axes = canvas.subplots()
        _lines(axes, series, colours)
        for i, store in enumerate(stores):
            for step in store.reconsolidations:
                axes.axvline(step, color=colours.line(i), linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        _shares(axes, "step", "still answered")
        _legend(axes, len(stores))

    marked = any(store.reconsolidations for store in stores)
    return Figure(
        "retention",
        "What earlier batches taught and the model still answers",
        _told(series, "Share of the facts of earlier batches that are still answered, by step"),
        "After each step, of the facts that earlier batches taught and that are in force. Bands are 95 % intervals"
        + ("; dotted lines mark where all facts were solved for again." if marked else "."),
        _table_of(series, "step"),
        draw,
    )


def _locality(stores: Sequence[StoreReport]) -> Figure:
    kinds: list[tuple[str, Callable[[StoreReport], list[Rate]]]] = [
        ("neighbours", lambda store: store.neighbours),
        ("guard prompts", lambda store: store.guards),
    ]
    label = "{kind}" if len(stores) == 1 else "{name}, {kind}"
    series = [
        (label.format(kind=kind, name=s.name), [m.step for m in s.measurements], of(s))
        for s in stores
        for kind, of in kinds
        if any(point.asked for point in of(s))
    ]

    def draw(canvas: Canvas, colours: Palette) -> None:
        axes = canvas.subplots()
        _lines(axes, series, colours)
        _shares(axes, "step", "answered as before")
        _legend(axes, len(series))

    return Figure(
        "locality",
        "What was not edited and should not change",
        _told(series, "Share of unedited prompts that get the answer of the base model, by step"),
        "Neighbours share the relation with an edited fact, and are asked as long as the stream does not edit them "
        "too; guard prompts are preserved prompts that are never rows of a solve.",
        _table_of(series, "step"),
        draw,
    )


def _perplexity(stores: Sequence[StoreReport]) -> Figure:
    def draw(canvas: Canvas, colours: Palette) -> None:
        axes = canvas.subplots()
        for i, store in enumerate(stores):
            steps, values = zip(*store.perplexity, strict=True)
            axes.plot(steps, values, label=store.name, **_look(i, len(steps), colours))
        axes.axhline(ALARM, color=colours.faint, linewidth=1, linestyle=(0, (4, 3)))
        said, where = f"alarm at {ALARM:g}", ("axes fraction", "data")
        axes.annotate(said, (1, ALARM), xycoords=where, ha="right", va="bottom", color=colours.faint, fontsize=9)
        top = max(value for store in stores for _, value in store.perplexity if np.isfinite(value))
        if top > 5:
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("perplexity, base = 1")
        axes.locator_params(axis="x", integer=True)
        _legend(axes, len(stores))

    said = "; ".join(f"{s.name}: {s.perplexity[-1][1]:.2f} in the end" for s in stores)
    rows = [(s.name, step, round(value, 4)) for s in stores for step, value in s.perplexity]
    return Figure(
        "perplexity",
        "How well the model still models text",
        f"Perplexity on the store's sample of text relative to the base model, by step. {said}.",
        "On a sample of text that is fixed with the store. It rises early where a model is about to collapse.",
        Table(("store", "step", "perplexity, base = 1"), list(rows)),
        draw,
    )


# -- by age


def _ages(stores: Sequence[StoreReport]) -> Figure:
    series = [(s.name, list(range(len(s.curve))), s.curve) for s in stores]

    def draw(canvas: Canvas, colours: Palette) -> None:
        axes = canvas.subplots()
        _lines(axes, series, colours)
        _shares(axes, "batches edited since", "still answered")
        _legend(axes, len(stores))

    return Figure(
        "forgetting-curve",
        "The forgetting curve",
        _told(series, "Share of facts that are still answered, by how many batches were edited since they were taught"),
        "Facts of all batches together, asked after the last edit of each step; 0 is right after their own batch.",
        _table_of(series, "batches since"),
        draw,
    )


def _cohorts(store: StoreReport, number: int) -> Figure:
    matrix = store.matrices["efficacy"]
    groups = np.array_split(np.arange(len(matrix.taught)), min(MOST_COHORTS, len(matrix.taught)))
    series = []
    for group in groups:
        steps, points = [], []
        for j, step in enumerate(matrix.measured):
            asked = int(matrix.asked[group, j].sum())
            if asked:
                steps.append(step)
                points.append(rate(int(matrix.right[group, j].sum()), asked))
        first, last = matrix.taught[group[0]], matrix.taught[group[-1]]
        series.append((f"step {first}" if first == last else f"steps {first}–{last}", steps, points))

    def draw(canvas: Canvas, colours: Palette) -> None:
        axes = canvas.subplots()
        _lines(axes, series, colours, bands=False)
        _shares(axes, "step", "still answered")
        _legend(axes, len(series), "taught at")

    return Figure(
        f"cohorts-{number + 1}",
        f"Batches by age: {store.name}",
        _told(series, f"{store.name}: share of facts still answered by step, a line for each group of batches"),
        "Each line follows the batches of one time. Where lines fall from left to right, the model forgets.",
        _table_of(series, "step"),
        draw,
    )


def _matrix(store: StoreReport, number: int) -> Figure:
    matrix = store.matrices["efficacy"]
    share = matrix.share

    def draw(canvas: Canvas, colours: Palette) -> None:
        axes = canvas.subplots()
        axes.grid(False)
        few = share.size <= MOST_CELLS
        shown = axes.pcolormesh(
            np.ma.masked_invalid(share), cmap="cividis", vmin=0, vmax=1, rasterized=not few,
            edgecolors="none", linewidth=0,
        )  # fmt: skip
        axes.invert_yaxis()
        for axis, labels in ((axes.xaxis, matrix.measured), (axes.yaxis, matrix.taught)):
            every = max(1, -(-len(labels) // 8))
            axis.set_ticks([i + 0.5 for i in range(0, len(labels), every)], [str(n) for n in labels[::every]])
        axes.set_xlabel("asked after step")
        axes.set_ylabel("taught at step")
        bar = canvas.colorbar(shown, ax=axes, ticks=[0, 0.5, 1])
        bar.outline.set_visible(False)
        bar.ax.set_ylabel("answered", color=colours.ink)

    rows = [
        (taught, step, f"{matrix.right[i, j]}/{matrix.asked[i, j]}", round(float(share[i, j]), 3))
        for i, taught in enumerate(matrix.taught)
        for j, step in enumerate(matrix.measured)
        if matrix.asked[i, j]
    ]
    asked = matrix.asked[matrix.asked > 0]
    each = f"{int(asked.min())} to {int(asked.max())}" if len(asked) else "no"
    return Figure(
        f"matrix-{number + 1}",
        f"The forgetting matrix: {store.name}",
        f"{store.name}: share of facts answered, a row for each batch, a column for each step asked after.",
        f"A row follows one batch; a row that darkens to the right is forgotten. Each cell is over {each} facts.",
        Table(("taught at step", "asked after step", "right", "share"), list(rows)),
        draw,
        (5.2, 3.6),
    )


def _survival(store: StoreReport, number: int) -> Figure:
    def draw(canvas: Canvas, colours: Palette) -> None:
        axes = canvas.subplots()
        for i, (name, found) in enumerate(store.survival.items()):
            look = {key: value for key, value in _look(i, 2, colours).items() if key != "marker"}
            axes.step(found.ages, found.share, where="post", label=f"{name} ({found.at_risk[0]})", **look)
        _shares(axes, "batches edited since", "not yet lost")
        _legend(axes, len(store.survival))

    rows = [
        (name, age, round(share, 4), risk, lost)
        for name, found in store.survival.items()
        for age, share, risk, lost in zip(found.ages, found.share, found.at_risk, found.lost, strict=True)
    ]
    told = [f"{name}: {found.share[-1]:.2f} after {found.ages[-1]} batches" for name, found in store.survival.items()]
    parted = f", parted at a cosine of {store.nearness:.2f}" if len(store.survival) > 1 else ""
    return Figure(
        f"survival-{number + 1}",
        f"How long facts survive: {store.name}",
        f"{store.name}: share of facts not yet lost, by batches edited since. {'; '.join(told)}.",
        "Kaplan and Meier's estimate over the facts that were answered at first; lost is what was asked and not "
        "answered, though solving again may have brought it back since. Near is what later edits ask about with "
        f"similar keys{parted}.",
        Table(("facts", "batches since", "not yet lost", "facts at risk", "lost"), list(rows)),
        draw,
    )


# -- what they share


Series = Sequence[tuple[str, Sequence[int], Sequence[Rate]]]


def _lines(axes: Axes, series: Series, colours: Palette, *, bands: bool = True) -> None:
    for i, (name, places, points) in enumerate(series):
        known = [(x, point) for x, point in zip(places, points, strict=True) if point.asked]
        if not known:
            continue
        xs, values = [x for x, _ in known], [point.value for _, point in known]
        axes.plot(xs, values, label=name, **_look(i, len(xs), colours))
        if bands:
            low, high = [point.low for _, point in known], [point.high for _, point in known]
            axes.fill_between(xs, low, high, color=colours.line(i), alpha=0.14, linewidth=0)


def _look(number: int, points: int, colours: Palette) -> dict[str, Any]:
    mark = MARKS[number % len(MARKS)]
    look = {"color": colours.line(number), "linestyle": DASHES[number % len(DASHES)], "marker": mark}
    return look | {"markevery": max(1, points // 12)}


def _shares(axes: Axes, x: str, y: str) -> None:
    axes.set_ylim(-0.02, 1.04)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.locator_params(axis="x", integer=True)


def _legend(axes: Axes, count: int, title: str | None = None) -> None:
    if count > 1 and axes.get_legend_handles_labels()[0]:  # nothing is drawn of series that were never asked
        axes.legend(loc="best", title=title, alignment="left")


def _told(series: Series, what: str) -> str:
    ends = []
    for name, places, points in series:
        known = [(x, point) for x, point in zip(places, points, strict=True) if point.asked]
        if known:
            ends.append(f"{name}: {known[0][1].value:.0%} at {known[0][0]}, {known[-1][1].value:.0%} at {known[-1][0]}")
    return f"{what}. {'; '.join(ends) or 'nothing was asked'}."


def _table_of(series: Series, place: str) -> Table:
    rows: list[tuple[object, ...]] = [
        (name, x, round(p.value, 4), round(p.low, 4), round(p.high, 4), p.asked)
        for name, places, points in series
        for x, p in zip(places, points, strict=True)
        if p.asked
    ]
    return Table(("series", place, "share", "low", "high", "asked"), rows)
