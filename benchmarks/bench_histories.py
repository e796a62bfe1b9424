"""Long histories: what stays flat and what grows with the number of live facts, as ratios to the first one given.

A store on a two-layer GPT-2 of random weights gets its history by `write_step`, the commit that every step goes
through: real facts by templates, keys drawn at random on the store's grid, shifts of rank one. What is measured then
are the real commands on it: opening, the state at the head, a first batch (which makes everything ready), later batches
with their conflict check, sieve and rehearsal, `status`, `log`, `facts`, `report`. Processor seconds of one thread, so
that a busy machine does not count; memory is the process's peak.

On so small a model a batch is next to nothing but what a history costs. `--real` takes trex-gpt2-mini instead, edited
in layers 4 and 5 with the settings that users have; batches are facts of its stream, and the keys by which
contradictions are found lie about those of its training facts as real ones do: each is one of them and half the
difference of two others of its relation. Measured is then what a process that edits takes.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_load import PLACES, make_model
from benchmarks.common import write
from benchmarks.data import trex_facts, trex_model

AT_ONCE = 500
"""Facts of each step of the history that is written."""
BATCH, BATCHES = 50, 7
"""Facts of a batch that is measured, and how many are; the quickest counts."""
COMMANDS = {
    "status": ["status"],
    "log": ["log"],
    "facts_listed": ["facts", "--json"],
    "report": ["report", "-o", "report.html"],
    "fsck": ["fsck"],
}
SMALL = {"modules": ("0-1",), "passes": 1, "rehearse": 20, "preserved": 20, "phrasings": 0, "text_tokens": 2000}
"""Settings of the store on the made model: little work, so that what a history costs stands out."""
REAL = {"modules": ("4-5",)}
"""Of that on a real one: a user's, but for rounds beyond the first three, of which there may be more or fewer."""
ROADS = ("Road", "Street", "Lane", "Hill", "Bridge")


def main() -> None:
    """Measures, prints and writes `results/histories.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument(
        "--place", type=Path, help="where the stores are made, kept, and taken from when they are there"
    )
    parser.add_argument("--real", action="store_true", help="of a real model of 8 M parameters")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        print(json.dumps(inside(given.inside, real=given.real)))
        return
    name = "histories-real" if given.real else "histories"
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        place = given.place or Path(work)
        model = trex_model() if given.real else place / "model"
        if not model.exists():
            make_model(model)
        for count in given.facts:
            kept = place / f"store-{count}"
            began = time.process_time()
            if not kept.exists():
                make_history(model, kept, count, real=given.real)
            making = time.process_time() - began
            results.append({"facts": count, "making": making, **one(kept, Path(work), real=given.real)})
            first = results[0]
            results[-1]["to_the_first"] = {
                name: value / first[name] for name, value in results[-1].items() if isinstance(value, float)
            }
            print(json.dumps(results[-1], indent=1), flush=True)
            write(name, {"batch": BATCH, "histories": results})


def template(number: int) -> Any:
    """One fact of the history: a subject of its own, one of five relations."""
    from lifelong_edit import Fact

    name = f"{PLACES[number % 8]} {ROADS[number // 8 % 5]} {number}"
    relation = ("mayor", "twin town", "river", "founder", "team")[number % 5]
    return Fact(
        subject=name, prompt=f"The {relation} of {name} is", target=PLACES[(number * 5 + 3) % 8], relation=relation
    )


def one(kept: Path, work: Path, *, real: bool) -> dict[str, Any]:
    """All that is measured on a copy of a history in `work`."""
    store = work / f"measured-{kept.name}"
    shutil.copytree(kept, store)
    command = [sys.executable, "-m", "benchmarks.bench_histories", "--inside", str(store)]
    command += ["--real"] if real else []
    found: dict[str, Any] = json.loads(subprocess.check_output(command, text=True))
    if not real:
        base = min(processor_time(["--version"], work) for _ in range(2))  # the first one reads files anew
        found |= {name: max(0.001, processor_time(words, work, store) - base) for name, words in COMMANDS.items()}
    found["mib_on_disk"] = sum(f.stat().st_blocks * 512 for f in store.rglob("*") if f.is_file()) / 2**20
    return found


def processor_time(words: list[str], folder: Path, store: Path | None = None) -> float:
    """Processor seconds of a command of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    options = [] if store is None else [str(store)] if words[0] == "report" else ["--store", str(store)]
    command = [sys.executable, "-m", "lifelong_edit", *words, *options]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def make_history(model: Path, store: Path, count: int, *, real: bool) -> None:
    """A store with `count` live facts, by steps of AT_ONCE facts that no solve made."""
    from lifelong_edit import Settings, Timeline
    from lifelong_edit.editors.contract import Added, Change, Entries
    from lifelong_edit.stores import KEYS, WEIGHTS, Edit, FactKeys, Factors
    from lifelong_edit.timeline.commit import UNMADE, Draft, write_step
    from lifelong_edit.timeline.defaults import default_preserved, default_text

    random = np.random.default_rng(0)
    settings = Settings(editor="gradient", more_passes=0, gate_perplexity=1e30, **(REAL if real else SMALL))
    preserve = default_preserved("atlas")[:40]
    with Timeline.create(
        store, model=str(model), settings=settings, preserve=preserve, text=default_text()
    ) as timeline:
        shapes = timeline.config.model.modules
        weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

        width = next(iter(shapes.values()))[0]
        drawn = like_real(timeline.bench().loaded, random) if real else lambda: random.standard_normal(width)

        def keys() -> FactKeys:
            rows = {n: random.integers(-9000, 9000, (2, s[0])).astype(np.int16) for n, s in shapes.items()}
            return FactKeys(rows, drawn().astype(np.float32))

        for first in range(0, count, AT_ONCE):
            facts = [template(n) for n in range(first, min(first + AT_ONCE, count))]
            shift = {
                n: Factors(*(1e-4 * random.standard_normal(s).astype(np.float32) for s in ((r, 1), (1, c))))
                for n, (r, c) in shapes.items()
            }
            held = {fact.digest: keys() for fact in facts}
            change = Change({WEIGHTS: Added(shift), KEYS: Entries(lambda held=held: iter([held]))}, {})  # type: ignore[misc]
            weights = change.weights(weights)
            draft = Draft(
                record=Edit(**UNMADE | {"parent": timeline.head}), weights=weights, facts=facts, change=change
            )
            write_step(timeline._log, timeline.history(), timeline.config, draft)


def like_real(loaded: Any, random: np.random.Generator) -> Callable[[], Any]:
    """Draws keys (width,) that lie about those of the model's training facts, relation by relation."""
    from lifelong_edit.models import encode_prompt
    from lifelong_edit.tracing.conflict_keys import lowest_keys

    facts = trex_facts("train")
    keys = lowest_keys(loaded, [encode_prompt(loaded.tokenizer, fact.prompt) for fact in facts], 64).cpu().numpy()
    named: dict[str | None, list[int]] = {}
    for number, fact in enumerate(facts):
        named.setdefault(fact.relation, []).append(number)
    groups = [np.array(group) for group in named.values() if len(group) > 2]
    shares = np.array([len(group) for group in groups]) / sum(map(len, groups))

    def drawn() -> Any:
        core, one, other = random.choice(groups[random.choice(len(groups), p=shares)], 3)
        return keys[core] + 0.5 * (keys[one] - keys[other])

    return drawn


def inside(store: Path, *, real: bool) -> dict[str, Any]:
    """What a process that edits takes: each stretch in processor seconds."""
    from lifelong_edit import Timeline
    from lifelong_edit.facts import Record

    found: dict[str, float] = {}

    def took(name: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        made = work()
        found[name] = time.process_time() - began
        return made

    reader = took("open_to_read", lambda: Timeline.open(store, read_only=True))
    count = len(reader.facts())
    reader.close()
    timeline = took("open_to_write", lambda: Timeline.open(store))
    timeline.bench()
    took("state_at_the_head", lambda: timeline._solve().state())
    of_stream = trex_facts("stream") if real else []

    def taught(number: int) -> list[Any]:
        return of_stream[number * BATCH : (number + 1) * BATCH] if real else batch(count + number * BATCH)

    took("first_batch", lambda: timeline.apply(taught(0)))
    parts: dict[str, list[float]] = {"batch": [], "sieve": [], "conflicts": [], "rehearsal": []}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        made = work()
        parts[name].append(time.process_time() - began)
        return made

    for number in range(1, BATCHES + 1):
        facts = taught(number)
        records = [Record(fact, "f.jsonl", i + 1, "f" * 32, i) for i, fact in enumerate(facts)]
        sieved = timed("sieve", lambda records=records: timeline.sieve(records))
        timed("conflicts", lambda sieved=sieved: timeline._solve()._conflicts(timeline._solve().state(), sieved))
        timed("rehearsal", lambda: rehearsal(timeline))
        timed("batch", lambda facts=facts: timeline.apply(facts))
    timeline.close()
    # the least: on a busy machine a process takes up to twice as long for the same, never less
    found |= {name: min(seconds) for name, seconds in parts.items()}
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def rehearsal(timeline: Any) -> None:
    """The draw of earlier facts that a batch has as rows."""
    from lifelong_edit.editors.ridge.rows import rehearsed
    from lifelong_edit.tracked import in_order

    state = timeline._solve().state()
    rehearsed(state, in_order(state.live), 20, 0, ("x",))


def batch(first: int) -> list[Any]:
    """Facts that nothing in the history is about."""
    return [template(10**7 + first + i) for i in range(BATCH)]


if __name__ == "__main__":
    main()
