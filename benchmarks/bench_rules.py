"""A life of edits by any editing rule, through a store: 20 batches of 50 facts into trex-gpt2-mini.

The protocol is that of `bench_streams` and `bench_lifelong`: half of a fact's rephrases are given, one of the others is
asked; neighbours are locality; everything by generation, after the last batch. `--facts train` lives on the training
facts, to choose settings on; its figures stay out of `results/`.

With `--trials N` the rule's settings are chosen first, on the training facts, by `lifelong-edit train --choose` with so
many trials, and its network is trained there where it has one, for `--minutes`; `--chosen` keeps both for a next time.

    python -m benchmarks.bench_rules --rule neurons [--trials 8 --tried 50] [--set rounds=25] [--modules 2@subject]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.bench_real import ordinary
from benchmarks.bench_streams import Stream, judge, make_stream
from benchmarks.data import trex_facts, trex_file, trex_model, wikitext, wikitext_file
from benchmarks.validation import validation
from lifelong_edit import Timeline
from lifelong_edit.bench import State
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.editors.ridge.settings import CHOSEN
from lifelong_edit.errors import StepRefusedError
from lifelong_edit.facts import Fact, Probe, preserved_prompts_of
from lifelong_edit.models import BASE
from lifelong_edit.settings import settings_of
from lifelong_edit.timeline.defaults import settings_from


def lived(split: str, count: int, seed: int) -> tuple[Stream, list[Probe]]:
    """The facts of a life, and prompts to preserve: of training facts, never of those that are judged."""
    train = trex_facts("train")
    if split == "train":
        return validation(train, count, seed)
    kept = [probe for fact in train for probe in preserved_prompts_of(fact)]
    return make_stream(trex_facts("stream"), count, seed), kept


def prepared(options: argparse.Namespace, folder: Path) -> None:
    """Choose the settings and train the network, by the command that users have; what it leaves lies in `folder`."""
    command = [sys.executable, "-m", "lifelong_edit", "train", "--editor", options.rule, "--model", str(trex_model())]
    command += ["--data", str(trex_file("train")), "--out", str(folder), "--minutes", str(options.minutes)]
    command += ["--text", str(wikitext_file("valid"))]
    if rule_of(options.rule).tries:
        command += ["--choose", "1000", "--choosing", f"trials={options.trials}"]
        command += ["--choosing", f"facts={options.tried}"]
    for pair in options.set:
        command += ["--set", pair]
    subprocess.run(command, check=True, stdout=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """One life; figures to results/rules-….json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", default="neurons")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--size", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--facts", choices=("stream", "train"), default="stream")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--modules")
    parser.add_argument("--trials", type=int, default=0, help="to choose settings by; 0: the rule's own settings")
    parser.add_argument("--tried", type=int, default=100, help="facts that a trial teaches")
    parser.add_argument("--minutes", type=float, default=10, help="that a network is trained")
    parser.add_argument("--chosen", type=Path, help="where what was chosen and trained is kept")
    parser.add_argument("--reconsolidate", action="store_true", help="once, at the end, whatever its guard says")
    options = parser.parse_args(arguments)
    stream, preserve = lived(options.facts, options.batches * options.size, options.seed)
    given: dict[str, Any] = dict(pair.split("=", 1) for pair in options.set)
    given |= {"modules": tuple(options.modules.split(","))} if options.modules else {}
    rule = rule_of(options.rule)
    if "preserved" not in rule.settings.__struct_fields__:
        preserve = []  # a rule that does nothing with them need not wait for their answers
    text = wikitext("test")
    with tempfile.TemporaryDirectory() as folder:
        chosen = options.chosen or Path(folder) / "chosen"
        if options.trials and not chosen.exists():
            prepared(options, chosen)
        kept = chosen if (chosen / CHOSEN).is_file() else None
        network = chosen if (chosen / "network.safetensors").is_file() else None
        settings = settings_of(rule.settings, {"editor": options.rule, **settings_from(kept, rule.settings), **given})
        found: dict[str, Any] = {"settings": settings.told(), "trials": options.trials, "tried": options.tried}
        model, store = str(trex_model()), Path(folder) / "store"
        timeline = Timeline.create(
            store, model=model, settings=settings, preserve=preserve, hypernetwork=network,
            text=ordinary(),  # as `prepared` has it
        )  # fmt: skip
        begun_at, refused = common.folder_bytes(store), list[Fact]()
        loaded = timeline.bench().loaded
        for start in range(0, len(stream.facts), options.size):
            batch = stream.facts[start : start + options.size]
            begun, used = time.perf_counter(), time.process_time()
            try:
                timeline.apply(batch)
            except StepRefusedError:  # the state stays as it was, and these are asked all the same
                refused += batch
            stream.seconds += time.perf_counter() - begun
            stream.processor += time.process_time() - used
            stream.batches.append([fact.digest for fact in batch])
        stream.state = State(live={fact.digest: fact for fact in (*timeline.at(timeline.head).facts(), *refused)})
        found["refused"] = len(refused)
        found["bytes_per_fact"] = (common.folder_bytes(store) - begun_at) / len(stream.facts)
        found["seconds_per_fact"] = stream.seconds / len(stream.facts)
        found["figures"] = judge(loaded, stream, text, cohorts=True, overlay=timeline.overlay(timeline.head))
        if options.reconsolidate:
            found["reconsolidated"] = reconsolidated(timeline, stream, text)
        with loaded.at(BASE):
            found["base"] = perplexity_now(loaded, text)
        timeline.close()
    for figures in (found["figures"], found.get("reconsolidated")):
        if figures is not None:
            print(json.dumps(common.rounded(summary(found, figures))), flush=True)
    if options.facts == "stream":
        common.write(f"rules-{options.rule}-{options.batches}x{options.size}-{options.seed}", found)


def reconsolidated(timeline: Timeline, stream: Stream, text: str) -> dict[str, Any]:
    """The figures of the same facts once all of them are solved for together, and what the guard had against it."""
    begun, used = time.perf_counter(), time.process_time()
    record = timeline.reconsolidate(guard=False)
    stream.seconds, stream.processor = time.perf_counter() - begun, time.process_time() - used
    loaded = timeline.bench().loaded
    figures = judge(loaded, stream, text, cohorts=True, overlay=timeline.overlay(timeline.head))
    return figures | {"objections": list(record.objections)}


def summary(found: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    """A line of the figures."""
    told = {name: figures[name]["generated"] for name in ("efficacy", "generality", "locality", "random facts")}
    told |= {name: found[name] for name in ("bytes_per_fact", "seconds_per_fact")}
    told |= {"perplexity": figures["perplexity"] / found["base"] - 1, "processor": figures["processor"]}
    return told


def perplexity_now(loaded: Any, text: str) -> float:
    """Perplexity of the model as it stands, on the windows that `judge` takes."""
    from lifelong_edit.tasks.causal.perplexity import perplexity_of, text_windows

    return perplexity_of(loaded, text_windows(loaded, text))


if __name__ == "__main__":
    main()
