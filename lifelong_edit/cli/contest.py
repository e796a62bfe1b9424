"""`compare`: one stream edited in several ways, each in a store of its own, and what each left behind."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from lifelong_edit.cli.common import cell, editor_in, json_option, opened, print_json, print_table, say
from lifelong_edit.cli.editing import stream
from lifelong_edit.cli.looking import describe_fact
from lifelong_edit.cli.processes import processes_asked
from lifelong_edit.cli.reporting import make_report
from lifelong_edit.cli.setup import BUNDLED, require_makeable
from lifelong_edit.errors import LifelongEditError, UsageError

if TYPE_CHECKING:
    from lifelong_edit.eval.reports.comparison import Arm

_FILES = ("--preserve", "--text")
_Found = dict[tuple[str, int], dict[str, float | None]]
"""Figures by arm and seed."""


@click.command()
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--arm",
    "arms",
    multiple=True,
    required=True,
    metavar="'NAME: KEY=VALUE …'",
    help="A way of editing, at least one; keys are settings of its rule, `hypernetwork`, "
    "`settings` (what `train --choose` wrote), `reconsolidate` and `batch_size`.",
)
@click.option("--seeds", default="0", show_default=True, metavar="N,N", help="Each arm is run once with each of them.")
@click.option("--shuffle", is_flag=True, help="Bring the facts in an order drawn by the seed, not that of the files.")
@click.option(
    "--out", type=click.Path(path_type=Path), default="comparison", show_default=True, metavar="DIR", help="For stores."
)
@click.option("--model", metavar="MODEL", help="As of `init`, for all arms.")
@click.option("--preserve", multiple=True, metavar="FILE", help="As of `init`, for all arms.")
@click.option("--text", multiple=True, metavar="FILE", help="As of `init`, for all arms.")
@click.option("--set", "pairs", multiple=True, metavar="NAME=VALUE", help="A setting of all arms without their own.")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True, help="Facts edited together.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Stores filled side by side.")
@json_option
def compare(files: tuple[str, ...], arms: tuple[str, ...], seeds: str, out: Path, as_json: bool, **given: Any) -> None:
    """The same stream edited in several ways, several seeds, into one table and one report.

    Each arm and seed is a store DIR/NAME-SEED like any other, filled by `stream`; interrupted or killed, the same
    command goes on where it stopped, and one with a further arm or seed adds that. An arm of which no store could be
    made is refused before any is filled. In the end all live facts of each are asked, and DIR/report.html shows the
    stores side by side. Times are comparable with --jobs 1 alone.

    \b
    Examples:
      lifelong-edit compare facts/*.jsonl --arm network --arm 'rule: editor=gradient' --seeds 0,1 --shuffle
      lifelong-edit compare week.jsonl --arm 'never:' --arm 'often: reconsolidate=every:2'
      lifelong-edit compare week.jsonl --arm 'chosen: settings=chosen' --arm 'own: editor=memit'
    """
    from lifelong_edit.eval.reports.comparison import parse_arm, store_of

    # in their own processes: they are asked for here, in the options of the program, and not those of the thread there
    given["processes"] = processes_asked()
    shared, model = editor_in(given["pairs"]), given["model"] or BUNDLED
    ways, numbers = [parse_arm(text, shared, model) for text in arms], _numbers(seeds)
    if len({way.name for way in ways}) < len(ways):
        raise UsageError("found two arms of one name; expected a name for each")
    runs = [(way, seed) for way in ways for seed in numbers]
    for way in ways:
        if not all(store_of(out, way, seed).exists() for seed in numbers):
            _require_makeable(way, numbers[0], given)
    sources = _sources(files, numbers, out, shuffle=given["shuffle"])
    with ThreadPoolExecutor(given["jobs"]) as pool:
        filling = [pool.submit(_fill, way, seed, sources[seed], out, given) for way, seed in runs]
        failed = [told for run in filling if (told := run.result()) is not None]
    if failed:
        raise LifelongEditError("; ".join(failed))
    found = {(way.name, seed): _asked(store_of(out, way, seed)) for way, seed in runs}
    make_report([store_of(out, way, seed) for way, seed in runs], out / "report.html")
    _tell(ways, numbers, found, out, as_json=as_json)


def _numbers(seeds: str) -> list[int]:
    try:
        found = list(dict.fromkeys(int(part) for part in seeds.split(",")))
    except ValueError:
        raise UsageError(f"found --seeds {seeds!r}, expected whole numbers by comma, as 0,1,2") from None
    return found


def _sources(files: Sequence[str], seeds: Sequence[int], out: Path, *, shuffle: bool) -> dict[int, list[str]]:
    """By seed the files to stream: those given, or one with their facts in another order."""
    from lifelong_edit.facts import read_facts

    if not shuffle:
        return {seed: list(files) for seed in seeds}
    facts = [record.fact for record in read_facts(files)]
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for seed in seeds:
        order = list(facts)
        random.Random(seed).shuffle(order)
        path = out / f"facts-{seed}.jsonl"
        path.write_bytes(b"".join(msgspec.json.encode(describe_fact(fact)) + b"\n" for fact in order))
        found[seed] = [str(path)]
    return found


def _require_makeable(arm: Arm, seed: int, given: dict[str, Any]) -> None:
    """Refuse an arm of which no store could be made before hours go into the others."""
    asked = stream.make_context("stream", [*_options(arm, seed, given), "--", "-"]).params
    try:
        require_makeable(asked["device"], asked)
    except LifelongEditError as error:
        raise type(error)(f"arm {arm.name}: {error}") from error


def _options(arm: Arm, seed: int, given: dict[str, Any]) -> list[str]:
    """The options of `stream` for an arm, but for its store."""
    found = arm.arguments(seed, given["batch_size"], given["pairs"])
    found += ["--model", given["model"]] if given["model"] else []
    return found + [part for option in _FILES for name in given[option.strip("-")] for part in (option, name)]


def _fill(arm: Arm, seed: int, files: Sequence[str], out: Path, given: dict[str, Any]) -> str | None:
    """Fill a store by `stream`, in a process of its own whose output is kept beside it; what failed, if anything."""
    from lifelong_edit.eval.reports.comparison import store_of

    store = store_of(out, arm, seed)
    command = [sys.executable, "-m", "lifelong_edit"]
    command += ["--processes", str(given["processes"])] if given["processes"] else []
    command += ["stream", "--store", str(store), *_options(arm, seed, given)]
    out.mkdir(parents=True, exist_ok=True)
    told = store.with_name(f"{store.name}.log")
    say(f"{arm.name}, seed {seed}: streaming into {store}")
    with told.open("w", encoding="utf-8") as log:
        code = subprocess.run([*command, "--", *files], stdout=log, stderr=log).returncode
    if code == 0:
        return None
    last = next((line for line in reversed(told.read_text(encoding="utf-8").splitlines()) if line.strip()), "nothing")
    return f"arm {arm.name}, seed {seed} ended with exit code {code}; it said: {cell(last, 300)} (all of it: {told})"


def _asked(store: Path) -> dict[str, float | None]:
    """The figures of a store, all of whose live facts are asked unless that was done before."""
    from lifelong_edit.eval.reports.comparison import figures

    with opened(store, read_only=False) as timeline:
        state = timeline.history().state_of(timeline.head)
        known = [found for found in timeline.measurements("head") if found.step == state and found.sample is None]
        if not known:
            from lifelong_edit.eval.reports.sampling import Sampler

            say(f"asking {store}")
            known = [Sampler(timeline, None)(timeline.head)]
            timeline.keep_measurement(known[0])
        return figures(timeline, known[0])


def _tell(arms: Sequence[Arm], seeds: Sequence[int], found: _Found, out: Path, *, as_json: bool) -> None:
    from lifelong_edit.eval.reports.comparison import FIGURES, described, over_seeds

    results = []
    for arm in arms:
        runs = [found[arm.name, seed] for seed in seeds]
        each = [{"seed": seed, **run} for seed, run in zip(seeds, runs, strict=True)]
        results.append(described(arm) | {"over_seeds": over_seeds(runs), "runs": each})
    (out / "comparison.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if as_json:
        print_json(results)
        return
    rows = [(result["arm"], *(_mean(result["over_seeds"][name]) for name in FIGURES)) for result in results]
    print_table(("arm", *FIGURES), rows)


def _mean(found: dict[str, float] | None) -> str | None:
    if found is None:
        return None
    if found["min"] == found["max"]:
        return cell(found["mean"])
    return f"{cell(found['mean'])} ({cell(found['min'])}–{cell(found['max'])})"
