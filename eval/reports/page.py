"""The report as one page that needs nothing but itself, and its figures as files."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import msgspec

from lifelong_edit.atomic import write_bytes_atomic
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.errors import UsageError
from lifelong_edit.eval.reports.data import ALARM, KEPT, WORN, Met, StoreReport, changed_settings
from lifelong_edit.eval.reports.drawing import DARK, LIGHT, Palette, Table
from lifelong_edit.eval.reports.figures import figures
from lifelong_edit.eval.reports.matrix import Rate
from lifelong_edit.eval.reports.survival import Lost
from lifelong_edit.facts import Fact
from lifelong_edit.stores import Measure

TEMPLATE = "report.html.jinja"
MOST_ROWS = 400
"""Of a table on the page; its CSV has all."""
MOST_LISTED = 100
"""Lost facts and conflicts on the page."""
FOLLOWING: tuple[tuple[Measure, str, str], ...] = (
    ("portability", "portability", "what follows from a fact, answered"),
    ("multihop", "multi-hop", "what follows from several, answered"),
)
"""Rows of a page whose stores have been asked such questions."""
LEVELS = {
    "kept": "keeps what it was taught",
    "worn": "has begun to forget",
    "lost": "forgets",
    "few": "too few were asked again to say",
    "unknown": "was not asked",
}


@dataclass(frozen=True)
class Row:
    """One line of a table of figures: what, and a cell for each store."""

    name: str
    what: str
    cells: tuple[str, ...]


def page(stores: Sequence[StoreReport], command: str) -> str:
    """The page. command: the line that made it."""
    import jinja2

    template = resources.files("lifelong_edit.eval.reports").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found: str = environment.from_string(template).render(
        stores=stores,
        verdicts=[verdict(store) for store in stores],
        levels=LEVELS,
        rows=compared(stores),
        figures=[(figure, figure.inline(), figure.table.rows[:MOST_ROWS]) for figure in figures(stores)],
        most=MOST_LISTED,
        light=_variables(LIGHT),
        dark=_variables(DARK),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=metadata.version("lifelong-edit"),
        command=command,
        provenance=[provenance(store) for store in stores],
        kept=KEPT,
        worn=WORN,
        alarm=ALARM,
    )
    return found


def write_page(text: str, path: Path) -> None:
    """Write the page, whole or not at all. Raises UsageError where it cannot be."""
    try:
        write_bytes_atomic(path, text.encode())
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; choose another place for the page") from error


def write_figures(stores: Sequence[StoreReport], folder: Path) -> list[Path]:
    """Every figure as SVG, PNG and CSV, and the tables of the page as CSV; the files. Raises UsageError."""
    files: dict[str, bytes] = {}
    for figure in figures(stores):
        files[f"{figure.name}.svg"] = figure.svg().encode()
        files[f"{figure.name}.png"] = figure.png()
        files[f"{figure.name}.csv"] = as_csv(figure.table)
    rows: list[tuple[object, ...]] = [(row.name, *row.cells) for row in compared(stores)]
    files["figures.csv"] = as_csv(Table(("figure", *(store.name for store in stores)), rows))
    files["lost.csv"] = as_csv(_lost(stores))
    files["conflicts.csv"] = as_csv(_conflicts(stores))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_bytes_atomic(folder / name, data)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}; choose another folder for figures") from error
    return [folder / name for name in files]


def as_csv(table: Table) -> bytes:
    """A table as RFC 4180 has it, in UTF-8; cells that a spreadsheet would take for formulas get an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(table.columns)
    writer.writerows([[_harmless(value) for value in row] for row in table.rows])
    return out.getvalue().encode()


def _harmless(value: object) -> object:
    if not isinstance(value, str) or value[:1] not in ("=", "+", "-", "@", "\t", "\r"):
        return value
    try:
        float(value)
        return value
    except ValueError:
        return f"'{value}"


# -- words


def verdict(store: StoreReport) -> str:
    """What the figures of a store come to, in a few sentences."""
    if not store.edits:
        return "Nothing has been edited into this store yet."
    taught = sum(len(record.added) for record in store.edits)
    begun = f"{_counted(taught, 'fact')} in {_counted(len(store.edits), 'batch', 'batches')}"
    if not store.measurements:
        return f"{begun}; none was asked again, so nothing can be said of forgetting: see below how to ask now."
    if store.unasked:
        begun += f" (asked last at step {store.measurements[-1].step}; batches since: {store.unasked})"
    kept = store.retention[-1]
    if kept.asked:
        said = [f"{begun}. Of what earlier batches taught, {share(kept)} is still answered"]
    else:
        said = [f"{begun}. {share(store.now('efficacy'))} is answered"]
    if store.oldest.asked and kept.asked:
        said[0] += f"; of the oldest batch {store.oldest.value:.0%}"
    if store.held.asked:
        said.append(f"of {store.held.asked} answered at first and asked again {store.held.value:.0%} still are")
    if store.neighbours[-1].asked:
        said.append(f"{share(store.neighbours[-1])} of their neighbours get the base model's answer")
    if store.perplexity:
        said.append(f"perplexity is {store.perplexity[-1][1]:.2f} times the base model's")
    if store.alarm is not None:
        said.append(f"it went beyond {ALARM:g} times at step {store.alarm}")
    return said[0] + ". " + _sentence(said[1:])


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _counted(count: int, noun: str, many: str = "") -> str:
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def share(found: Rate) -> str:
    """A share with its interval, in per cent."""
    if not found.asked:
        return "–"
    return f"{found.value:.0%} ({found.low:.0%} to {found.high:.0%})"


def compared(stores: Sequence[StoreReport]) -> list[Row]:
    """The figures of all stores, one row each."""

    def row(name: str, what: str, of: Any) -> Row:
        return Row(name, what, tuple(of(store) for store in stores))

    turns = [row("in conversations", "answered as a turn", lambda s: share(s.now("chat")))]
    return [
        row("facts taught", "in all batches", lambda s: f"{sum(len(r.added) for r in s.edits):,}"),
        row("facts in force", "now", lambda s: f"{s.status['live_facts']:,}"),
        row("batches", "edit steps", lambda s: str(len(s.edits))),
        row("reconsolidations", "and retractions", lambda s: str(len(s.reconsolidations))),
        row("asked last", "at step", lambda s: str(s.measurements[-1].step) if s.measurements else "–"),
        row("still answered", "of those answered at first", lambda s: share(s.held)),
        row("efficacy", "answered in their own prompts", lambda s: share(s.now("efficacy"))),
        row("… of earlier batches", "without the newest one", lambda s: share(s.retention[-1]) if s.retention else "–"),
        row("… of the oldest batch", "", lambda s: share(s.oldest)),
        row("generality", "answered in a phrasing that was no row", lambda s: share(s.now("generality"))),
        *[
            row(name, what, lambda s, measure=measure: share(s.now(measure)))
            for measure, name, what in FOLLOWING
            if any(store.now(measure).asked for store in stores)
        ],
        *(turns if any(store.status["form"] == "both" for store in stores) else []),
        row("locality", "neighbours answered as by the base model", lambda s: share(s.now("locality"))),
        row("guard prompts", "preserved ones that are never rows", lambda s: share(s.guards[-1]) if s.guards else "–"),
        row("perplexity", "base = 1", lambda s: f"{s.perplexity[-1][1]:.3f}" if s.perplexity else "–"),
        row("alarm", f"first step beyond {ALARM:g}", lambda s: "no" if s.alarm is None else f"step {s.alarm}"),
        row("backward transfer", "end minus right after the edit", lambda s: _signed(s.transfer)),
        row("forgetting", "best before minus end", lambda s: _number(s.forgotten)),
        row("half-life", "batches", _half),
        row("facts lost", "answered at first, not now", lambda s: str(len(s.lost)) if s.measurements else "–"),
        row("seconds of steps", "by the clock", lambda s: f"{sum(r.seconds or 0 for r in s.records):,.0f}"),
        row("… of asking", "processor", lambda s: f"{sum(m.seconds for m in s.measurements):,.0f}"),
    ]


def _half(store: StoreReport) -> str:
    found = store.half
    if math.isnan(found.value):
        return "–"
    if math.isinf(found.value) or found.value > 1000:
        return "none seen"
    return f"{found.value:.1f}" if found.seen else f"{found.value:.0f} (extrapolated)"


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.3f}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _lost(stores: Iterable[StoreReport]) -> Table:
    def cells(name: str, fact: Fact, lost: Lost) -> tuple[object, ...]:
        then, now = lost.then, lost.now
        return (name, fact.digest, then.taught, then.prompt, fact.target, then.answer, now.answer, lost.asked_at)

    columns = ("store", "fact", "taught at", "prompt", "target", "answer then", "answer now", "asked at")
    return Table(columns, [cells(s.name, fact, lost) for s in stores for fact, lost in s.lost])


def _conflicts(stores: Iterable[StoreReport]) -> Table:
    def cells(name: str, met: Met) -> tuple[object, ...]:
        said = (met.new.prompt, met.new.target, met.old.prompt, met.old.target)
        return (name, met.step, met.kind, met.action, met.probability, *said)

    columns = ("store", "step", "kind", "action", "probability", "new prompt", "new target", "old prompt", "old target")
    return Table(columns, [cells(s.name, met) for s in stores for met in s.conflicts])


# -- where it comes from


@dataclass(frozen=True)
class Provenance:
    """What a store was made from, and the commands that make its like and look at it further."""

    facts: list[tuple[str, str]]
    commands: list[str]


def provenance(store: StoreReport) -> Provenance:
    """Where a store comes from."""
    first, last, status = store.records[0], store.records[-1], store.status
    environment = first.provenance.get("environment", {})
    told = [
        ("store", str(status["store"])),
        ("model", f"{status['model']} ({status['dtype']})"),
        ("base fingerprint", str(status["base_fingerprint"])),
        ("edited modules", ", ".join(status["modules"])),
        ("editor", str(status["editor"])),
        ("settings changed", ", ".join(f"{k} = {v}" for k, v in _changed(status).items()) or "none"),
        ("hypernetwork", str(first.provenance.get("hypernetwork") or "none")),
        ("seed", str(first.provenance.get("seed"))),
        ("branch, head", f"{status['branch']}, step {status['head']}"),
        ("ΔW digest", last.weights_digest),
        ("digest of live facts", last.live_digest),
        ("from, to", f"{first.time[:19]}, {last.time[:19]} UTC"),
        ("made with", ", ".join(f"{k} {v}" for k, v in environment.items()) or "unknown"),
        ("input files", ", ".join(_files(store)) or "none"),
        ("asked after each step", _asked(store)),
    ]
    name = shlex.quote(str(status["store"]))
    commands = [
        _remake(store),
        f"lifelong-edit log --store {name}",
        f"lifelong-edit eval --store {name}",
        f"lifelong-edit report {name} --evaluate -o report.html",
    ]
    return Provenance(told, commands)


def _changed(status: dict[str, Any]) -> dict[str, Any]:
    return changed_settings(msgspec.convert(status["settings"], rule_of(status["editor"]).settings))


def _files(store: StoreReport) -> list[str]:
    counts: dict[str, int] = {}
    for record in store.records:
        for place in record.places:
            counts[place.file_digest] = counts.get(place.file_digest, 0) + 1
    return [f"{digest[:12]} ({_counted(count, 'record')})" for digest, count in counts.items()]


def _asked(store: StoreReport) -> str:
    if not store.measurements:
        return "nothing"
    sizes = sorted({m.sample for m in store.measurements if m.sample is not None})
    said = [f"at most {' or '.join(map(str, sizes))} facts"] if sizes else []
    whole = [m.step for m in store.measurements if m.sample is None]
    said += [f"all facts at step {', '.join(map(str, whole))}"] if whole else []
    return "; ".join(said) + f"; seed {store.measurements[-1].seed}"


def _remake(store: StoreReport) -> str:
    """The `stream` that makes a store of the kind; the names of its files are not in the log."""
    status = store.status
    parts = ["lifelong-edit", "stream", "FACTS…", "--store", "again", "--model", str(status["model"])]
    parts += ["--editor", str(status["editor"])]
    for key, value in _changed(status).items():
        if key != "editor":
            parts += ["--set", f"{key}={_as_option(value)}"]
    sizes = [len(record.places) for record in store.edits if record.places]
    even = len(sizes) > 1 and len(set(sizes[:-1])) == 1 and sizes[-1] <= sizes[0]
    parts += ["--batch-size", str(sizes[0])] if even else []
    policies = {r.reason for r in store.records if r.kind == "reconsolidate" and r.reason}
    parts += ["--reconsolidate", policies.pop()] if len(policies) == 1 else []
    return shlex.join(parts).replace("'FACTS…'", "FACTS…")


def _as_option(value: object) -> str:
    """A setting as `--set` reads it."""
    if isinstance(value, list | tuple):
        return ",".join(value)
    return value if isinstance(value, str) else json.dumps(value)


def _variables(palette: Palette) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in palette.names().items())
