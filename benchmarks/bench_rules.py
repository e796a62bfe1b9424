"""A life of edits by any editing rule, through a store: 20 batches of 50 facts into trex-gpt2-mini.

The protocol is that of `bench_streams` and `bench_lifelong`: half of a fact's rephrases are given, one of the others is
asked; neighbours are locality; everything by generation, after the last batch. `--facts train` lives on the training
facts, to choose settings on; its figures stay out of `results/`.

    python -m benchmarks.bench_rules --rule neurons [--set rounds=25] [--modules 2@subject] [--batches 20] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.bench_streams import MODEL, TEXT, Stream, judge, make_stream
from benchmarks.validation import validation
from lifelong_edit import Timeline
from lifelong_edit.bench import State
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.facts import Probe, preserved_prompts_of, read_facts
from lifelong_edit.models import BASE
from lifelong_edit.settings import settings_of


def lived(split: str, count: int, seed: int) -> tuple[Stream, list[Probe]]:
    """The facts of a life, and prompts to preserve: of training facts, never of those that are judged."""
    folder = common.shared(*MODEL.split("/"))
    train = [record.fact for record in read_facts([str(folder / "facts_train.jsonl")])]
    if split == "train":
        return validation(train, count, seed)
    facts = [record.fact for record in read_facts([str(folder / "facts_stream.jsonl")])]
    return make_stream(facts, count, seed), [probe for fact in train for probe in preserved_prompts_of(fact)]


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
    parser.add_argument("--reconsolidate", action="store_true", help="once, at the end")
    options = parser.parse_args(arguments)
    stream, preserve = lived(options.facts, options.batches * options.size, options.seed)
    given: dict[str, Any] = dict(pair.split("=", 1) for pair in options.set)
    given |= {"modules": tuple(options.modules.split(","))} if options.modules else {}
    settings = settings_of(rule_of(options.rule).settings, {"editor": options.rule, **given})
    text = common.shared(*TEXT.split("/"), "test.txt").read_text(encoding="utf-8")
    found: dict[str, Any] = {"settings": settings.told(), "batches": []}
    with tempfile.TemporaryDirectory() as folder:
        model = str(common.shared(*MODEL.split("/")))
        timeline = Timeline.create(Path(folder) / "store", model=model, settings=settings, preserve=preserve)
        loaded = timeline.bench().loaded
        for start in range(0, len(stream.facts), options.size):
            batch = stream.facts[start : start + options.size]
            begun, used = time.perf_counter(), time.process_time()
            timeline.apply(batch)
            stream.seconds += time.perf_counter() - begun
            stream.processor += time.process_time() - used
            stream.batches.append([fact.digest for fact in batch])
        if options.reconsolidate:
            timeline.reconsolidate()
        stream.state = State(live={fact.digest: fact for fact in timeline.at(timeline.head).facts()})
        found["figures"] = judge(loaded, stream, text, cohorts=True, overlay=timeline.overlay(timeline.head))
        with loaded.at(BASE):
            found["base"] = perplexity_now(loaded, text)
        timeline.close()
    figures = found["figures"]
    told = {name: figures[name]["generated"] for name in ("efficacy", "generality", "locality", "random facts")}
    told |= {"perplexity": figures["perplexity"] / found["base"] - 1, "processor": figures["processor"]}
    print(json.dumps(common.rounded(told)), flush=True)
    if options.facts == "stream":
        common.write(f"rules-{options.rule}-{options.batches}x{options.size}-{options.seed}", found)


def perplexity_now(loaded: Any, text: str) -> float:
    """Perplexity of the model as it stands, on the windows that `judge` takes."""
    from lifelong_edit.tasks.causal.perplexity import perplexity_of, text_windows

    return perplexity_of(loaded, text_windows(loaded, text))


if __name__ == "__main__":
    main()
