"""Makes `docs/ablations.md` of what `bench_ablations` measured; what each group says is written by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SCORES = ("efficacy", "generality", "locality", "random facts")
DEFAULT = "default: default"

GROUPS = {
    "default": ("The default", "All other rows are compared with this one."),
    "modules": (
        "Which modules",
        "At the answer alone much more of locality is lost: what a subject is known by is read up in the lower "
        "layers, and an edit there reaches its neighbours least.",
    ),
    "decay": (
        "How much is let go before each pass",
        "A line along which generality is paid for with locality: nothing let go gives three points of GS and costs "
        "two of LS, 5 % costs nearly six of GS and gives next to none of LS. The default, 1 %, is kept.",
    ),
    "asks": (
        "Small asks and many passes, large asks and few",
        "Asks twice as large cost three points of LS and give nearly four of GS, in half the passes or as many; five "
        "passes of large ones cost twelve of LS. Half as large in twice the passes, GS falls by three and LS gains "
        "nothing. Small asks are kept: over longer streams locality is what is short.",
    ),
    "preserved": (
        "Preserved prompts",
        "Rows are worth little at this size, more or fewer, near or not: what holds locality are the keys of all "
        "preserved prompts in P. Without these GS gains nearly four points and LS loses one; with four times their "
        "weight GS loses two.",
    ),
    "phrasings": (
        "Phrasings as rows",
        "What a fact is asked in is what generality comes from: .64 without another phrasing, .83 with one, .88 with "
        "three, and no more with eight. All three in each pass, and not one drawn, cost a quarter more time and change "
        "nothing that could be told from chance.",
    ),
    "metric": (
        "The metric at the module outputs",
        "From nearly the full metric (a small κ) to nearly none nothing changes that could be told from chance. Made "
        "anew in each pass it gives three points of GS for one and a half of LS, in half as much time again.",
    ),
    "solve": (
        "All modules from one trace, or one after the other",
        "One after the other, each from a trace of its own, is no better for the same number of traces, and takes more "
        "than twice the time for two points of GS and one of LS lost.",
    ),
    "free": (
        "Shifts in the null space of what is preserved",
        "The directions that hardly a preserved key has hardly a fact's key has either: at a threshold of .02 an "
        "eighth of the facts take, at .2 GS is three points lower. A soft bound, which P is, does better.",
    ),
    "starts": (
        "Canonical, or from where a stream has come to",
        "The stream itself has lost three points of LS. From .3 of its shift six passes reach what sixteen from the "
        "base weights do, in two fifths of the time; from all of it LS stays low. Canonical is the default because its "
        "result depends on the live facts alone.",
    ),
    "text": ("Keys of text", "Their weight may be three times smaller or larger."),
}
"""What each group is about, and what its figures say: read these sentences again whenever the figures change."""


def page(results: Mapping[str, Any], order: Sequence[tuple[str, str]]) -> str:
    """The document: a table for each group of which something was measured, variants in the given order."""
    variants = results["variants"]
    parts = [_head(results)]
    for group, (title, said) in GROUPS.items():
        names = [name for of, name in order if of == group and f"{of}: {name}" in variants]
        if names:
            parts.append("\n".join([f"## {title}", "", *_table(variants, group, names), *(["", said] if said else [])]))
    return "\n\n".join(parts) + "\n"


def _head(results: Mapping[str, Any]) -> str:
    asked, default = results["asked"], results["variants"][DEFAULT]
    counts = {name: default[name]["count"] for name in SCORES}
    errors = {name: 100 * standard_error(default[name]) for name in SCORES[:3]}
    return f"""# Ablations

What holds efficacy, generality and locality when many facts are edited: a canonical reconsolidation of trex-gpt2-mini \
over {asked["count"]} facts, one thing changed at a time. `python -m benchmarks.bench_ablations` measures what is not \
in `benchmarks/results/ablations.json` yet; with `--table` it writes this page from that file.

Facts are training facts (seed {asked["seed"]} of `benchmarks/validation.py`): nothing is chosen on the streams that \
are reported elsewhere. The default is that of the settings, modules 0-2@subject and 3-5, but for the passes: sixteen, \
all of which are made. Judged teacher-forced after the last: efficacy (ES) on {counts["efficacy"]} prompts, generality \
(GS) on {counts["generality"]} phrasings that are no row, locality (LS) on {counts["locality"]} neighbours of the same \
relation and true answer, neither edited nor preserved, and {counts["random facts"]} other facts; perplexity relative \
to the base model; seconds of one processor core for the solve.

One standard error of the default's figures is {errors["efficacy"]:.1f} points in ES, {errors["generality"]:.1f} in GS \
and {errors["locality"]:.1f} in LS. All variants are asked the same, so two rows differ by less chance than that. Even \
so, differences below 1.5 points in LS, or 1.2 in ES or GS, say nothing here."""


def standard_error(score: Mapping[str, Any]) -> float:
    """Of a share, as a binomial has it."""
    share = float(score["teacher_forced"])
    return float((share * (1 - share) / score["count"]) ** 0.5)


def _table(variants: Mapping[str, Any], group: str, names: Sequence[str]) -> Iterator[str]:
    yield "| changed | ES | GS | LS | random facts | perplexity | seconds |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    rows = [(name, variants[f"{group}: {name}"]) for name in names]
    if group != "default":
        rows.insert(0, ("*default*", variants[DEFAULT]))
    for name, scores in rows:
        figures = [f"{scores[score]['teacher_forced']:.3f}".removeprefix("0") for score in SCORES]
        ratio = scores["perplexity"] / scores["base perplexity"]
        yield f"| {name} | {' | '.join(figures)} | × {ratio:.2f} | {scores['processor']:.0f} |"
