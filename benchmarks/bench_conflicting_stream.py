"""A stream that contradicts and repeats itself, under each conflict policy: what is found, what the model says then.

600 facts of trex-gpt2-mini's stream in 20 batches, of which 180 meet an earlier one: 60 contradict it, 60 say the same
in other words, 60 are the same record at another place. The first two come in a phrasing that the store has not seen,
half of them with the relation (found by what the records say), half with the prompt alone (found by the model's keys).
Each policy edits the same stream into a store of its own, through `Scheduler` and `Timeline`. Then the model is asked
for the planted facts, and for efficacy, generality and locality of those that nothing was planted on.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import common
from benchmarks.bench_streams import Stream, judge, line, make_stream
from benchmarks.data import trex_facts, trex_model, wikitext
from benchmarks.validation import CHOSEN, validation
from lifelong_edit import Fact, Settings, Timeline
from lifelong_edit.eval.metrics.verdicts import ask_pairs
from lifelong_edit.facts import Probe, Record, preserved_prompts_of
from lifelong_edit.models import LoadedModel
from lifelong_edit.policies import POLICIES, FixedSize, normalise
from lifelong_edit.scheduler import Scheduler
from lifelong_edit.timeline.model import as_tensors

KINDS = ("contradiction", "paraphrase", "exact")


@dataclass(frozen=True)
class Plant:
    """A record that meets an earlier one. named: it has the relation, so that the records alone tell."""

    kind: str
    named: bool
    old: Fact
    new: Fact


@dataclass(frozen=True)
class Planted:
    """A stream with its plants; rest: the facts on which nothing was planted, as they are judged."""

    facts: list[Fact]
    plants: list[Plant]
    rest: Stream
    preserve: list[Probe]


def plant(stream: Stream, spare: Mapping[str, Sequence[str]], count: int, size: int, seed: int) -> Planted:
    """Put `count` plants of each kind among the stream's facts, never in the batch of what they meet.

    spare: by digest the phrasings that are neither rows nor asked. The first batch of `size` has no plants, the others
    have as nearly the same number as can be.
    """
    generator = random.Random(seed)
    kinds = [(kind, number % 2 == 0) for kind in KINDS for number in range(count)]
    generator.shuffle(kinds)
    targets: dict[str | None, list[str]] = {}
    for fact in stream.facts:
        targets.setdefault(fact.relation, []).append(fact.target)
    total = len(stream.facts) + len(kinds)
    later = -(-total // size) - 1
    came, coming, plants, order = list[Fact](), list(stream.facts), list[Plant](), list[Fact]()
    for batch in range(later + 1):
        due = round(len(kinds) * batch / later) - len(plants) if later else 0
        before = list(came)
        for kind, named in kinds[len(plants) : len(plants) + due]:
            old = generator.choice([f for f in before if kind == "exact" or (spare[f.digest] and _others(f, targets))])
            before.remove(old)
            came.remove(old)
            plants.append(Plant(kind, named, old, _made(kind, named, old, spare, targets, generator)))
        own = coming[: min(size, total - batch * size) - due]
        coming = coming[len(own) :]
        mixed = [*own, *(p.new for p in plants[len(plants) - due :])]
        generator.shuffle(mixed)
        came += own
        order += mixed
    touched = {p.old.digest for p in plants}
    rest = Stream(order, stream.asked, stream.unedited)
    rest.state.live = {f.digest: f for f in stream.facts if f.digest not in touched}
    return Planted(order, plants, rest, [])


def _others(fact: Fact, targets: Mapping[str | None, Sequence[str]]) -> list[str]:
    """Answers that other facts of the relation have, and this one neither has nor had."""
    own = {normalise(fact.target), normalise(fact.target_true or "")}
    return sorted({t for t in targets[fact.relation] if normalise(t) not in own})


def _made(
    kind: str,
    named: bool,
    old: Fact,
    spare: Mapping[str, Sequence[str]],
    targets: Mapping[str | None, Sequence[str]],
    generator: random.Random,
) -> Fact:
    if kind == "exact":
        return old
    return Fact(
        subject=old.subject,
        prompt=generator.choice(spare[old.digest]),
        target=generator.choice(_others(old, targets)) if kind == "contradiction" else old.target,
        relation=old.relation if named else None,
    )


def planted_stream(facts: Sequence[Fact], train: Sequence[Fact], options: argparse.Namespace) -> Planted:
    """The stream that the options ask for, with its preserved prompts."""
    count = options.batches * options.size - len(KINDS) * options.plants
    first: dict[tuple[str, str | None], Fact] = {}
    for fact in facts:  # they contradict each other once: what is found is to be what was planted
        first.setdefault((fact.subject.casefold(), fact.relation), fact)
    if options.quick:
        stream, preserve = validation(list(first.values()), count, options.seed)
    else:
        stream = make_stream(list(first.values()), count, options.seed)
        preserve = [probe for fact in train for probe in preserved_prompts_of(fact)]
    whole = {fact.id: fact for fact in facts}
    spare = {}
    for fact in stream.facts:
        said = {*fact.rephrases, fact.prompt, stream.asked.get(fact.digest)}
        spare[fact.digest] = [text for text in whole[fact.id].rephrases if text not in said]
    planted = plant(stream, spare, options.plants, options.size, options.seed)
    planted.preserve.extend(preserve)
    return planted


def found(timeline: Timeline, plants: Sequence[Plant], skipped: Mapping[str, int]) -> dict[str, Any]:
    """How much of what was planted was found (recall), by relation or by keys, and the reverse (precision).

    A repetition in other words counts as found whether it is taken for a `paraphrase`
    or, by its relation, for a `duplicate`; an exact one is left out before conflicts are looked for.
    """
    entries = timeline.conflicts()
    known = {(c["new"], c["old"]): c["kind"] for c in entries}
    same = {"contradiction": ("contradiction",), "paraphrase": ("paraphrase", "duplicate")}
    figures: dict[str, Any] = {}
    for kind, names in same.items():
        own = [p for p in plants if p.kind == kind]
        right = [p for p in own if known.get((p.new.digest, p.old.digest)) in names]
        pairs = {(p.new.digest, p.old.digest) for p in own}
        told = [pair for pair, said in known.items() if said in names]
        figures[kind] = {
            "planted": len(own),
            "found": len(right),
            "recall": len(right) / len(own),
            "by relation": _recall(right, own, named=True),
            "by keys": _recall(right, own, named=False),
            "told": len(told),
            "precision": sum(pair in pairs for pair in told) / len(told) if told else None,
        }
    exact = sum(p.kind == "exact" for p in plants)
    figures["exact"] = {"planted": exact, "skipped": skipped.get("live", 0) + skipped.get("quarantined", 0)}
    figures["actions"] = dict(Counter(f"{c['kind']}: {c['action']}" for c in entries))
    return figures


def _recall(right: Sequence[Plant], own: Sequence[Plant], *, named: bool) -> float | None:
    among = [p for p in own if p.named == named]
    return sum(p.named == named for p in right) / len(among) if among else None


def answers(loaded: LoadedModel, plants: Sequence[Plant]) -> dict[str, Any]:
    """What the model says to the planted facts, by generation: the new answer, the old one, or another, in shares.

    Asked as the earlier fact was, and as the planted record asks.
    """
    told: dict[str, Any] = {}
    for kind in KINDS:
        own = [p for p in plants if p.kind == kind]
        for way, prompts in (("as before", [p.old.prompt for p in own]), ("as planted", [p.new.prompt for p in own])):
            new = _said(loaded, prompts, [p.new.target for p in own])
            shares = {"new" if kind == "contradiction" else "right": sum(new) / len(own)}
            if kind == "contradiction":
                old = _said(loaded, prompts, [p.old.target for p in own])
                shares |= {"old": sum(old) / len(own), "other": 1 - (sum(new) + sum(old)) / len(own)}
            told.setdefault(kind, {})[way] = shares
    return told


def _said(loaded: LoadedModel, prompts: Sequence[str], targets: Sequence[str]) -> list[bool]:
    return [result.generated for result in ask_pairs(loaded, list(zip(prompts, targets, strict=True)))]


def run(timeline: Timeline, records: Sequence[Record], size: int, **how: Any) -> dict[str, Any]:
    """Edit records into a store; how: as of `Scheduler`. What was skipped, and the time on both clocks."""
    wall, processor = time.perf_counter(), time.process_time()
    scheduler = Scheduler(timeline, batching=FixedSize(size), **how)
    for _ in scheduler.run(records):
        pass
    done = scheduler.summary
    took = {"seconds": time.perf_counter() - wall, "processor": time.process_time() - processor}
    return {"steps": len(done.steps), "facts": done.facts, "skipped": dict(done.skipped), **took}


def judged(timeline: Timeline, planted: Planted, text: str, took: Mapping[str, Any]) -> dict[str, Any]:
    """The planted facts and the rest, at the head; took: what `run` gave."""
    loaded, rest = timeline.bench().loaded, planted.rest
    with timeline.at(timeline.head).standing():
        asked = answers(loaded, planted.plants)
    shifts = as_tensors(timeline.weights(timeline.head))
    rest.state.shifts, rest.seconds, rest.processor = shifts, took["seconds"], took["processor"]
    return {"planted": asked, "rest": judge(loaded, rest, text), "live facts": timeline.status()["live_facts"]}


def placed(facts: Sequence[Fact], file: str) -> list[Record]:
    """Facts as records of a file of their own."""
    return [Record(fact, file, i + 1, file.ljust(32, "0"), i) for i, fact in enumerate(facts)]


def run_policy(name: str, planted: Planted, folder: Path, size: int, text: str) -> dict[str, Any]:
    """One policy on a store of its own. A quarantine is then reviewed by somebody who finds nothing wrong in it."""
    with Timeline.open(folder) as timeline:
        done = run(timeline, placed(planted.facts, "stream"), size, conflicts=name)
        figures = {"run": done, "found": found(timeline, planted.plants, done["skipped"])}
        figures |= judged(timeline, planted, text, done)
        tell(name, figures)
        if name == "quarantine":
            aside = timeline.facts("quarantined")
            done = run(timeline, placed(aside, "review"), size, reviewed=True)
            figures["reviewed"] = {"run": done, **judged(timeline, planted, text, done)}
            tell("quarantine, reviewed", figures["reviewed"])
        return figures


def tell(name: str, figures: Mapping[str, Any]) -> None:
    """A few lines of figures."""
    shares = {
        f"{kind} {way}": {k: round(v, 3) for k, v in said.items()}
        for kind, ways in figures["planted"].items()
        for way, said in ways.items()
    }
    kinds = {k: v for k, v in figures.get("found", {}).items() if k in ("contradiction", "paraphrase")}
    told = [f"{k} {v['found']} of {v['planted']}, {v['told']} told" for k, v in kinds.items()]
    print(f"{name}: {'; '.join([*told, str(shares)])}\n  rest: {line(figures['rest'])}", flush=True)


def make_template(folder: Path, settings: Settings, preserve: Sequence[Probe], text: str) -> None:
    """A store at the base, to be copied."""
    Timeline.create(folder, model=str(trex_model()), settings=settings, preserve=list(preserve), text=[text]).close()


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--policies", nargs="*", default=list(POLICIES), choices=POLICIES)
    add("--seed", type=int, default=0)
    add("--batches", type=int, default=20)
    add("--size", type=int, default=30)
    add("--plants", type=int, default=60, help="of each kind")
    add("--quick", action="store_true", help="3 batches of 20 training facts with 6 plants of each kind: does it run?")
    return made


def main() -> None:
    """Run the policies asked for; one result file."""
    options, changes = parser().parse_args(), dict[str, Any]()
    out = common.RESULTS
    if options.quick:
        options.batches, options.size, options.plants = 3, 20, 6
        out, changes = common.REPOSITORY / ".work", {"text_tokens": 8000, "passes": 3}
    train, facts = trex_facts("train"), trex_facts("stream")
    planted = planted_stream(train if options.quick else facts, train, options)
    settings = msgspec.convert(CHOSEN | changes, Settings)
    counts = {"facts": len(planted.facts), "batches": options.batches, "plants of each kind": options.plants}
    results: dict[str, Any] = {**counts, "seed": options.seed, "settings": msgspec.to_builtins(settings)}
    with tempfile.TemporaryDirectory() as scratch:
        template = Path(scratch) / "template"
        make_template(template, settings, planted.preserve, wikitext("valid"))
        sample = wikitext("test")
        for name in options.policies:
            store = Path(shutil.copytree(template, Path(scratch) / name))
            results[name] = run_policy(name, planted, store, options.size, sample)
            common.write("conflicting_stream", results, out)


if __name__ == "__main__":
    main()
