"""What streams of real facts leave behind, by arm: `facts_stream.jsonl` of trex-gpt2-mini, three seeds.

One batch of 256, and 20 batches of 50 one after the other, judged after 5, 10 and 20. Networks are trained
on `facts_train.jsonl` alone, each for its own solve and for the same time, where `--networks` does not hold them
already. The protocol is that of the model's README: rows may use the first half of a fact's rephrases, generality
asks one of the second half, locality every neighbour whose subject and relation the stream does not edit.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import common
from benchmarks.data import trex_facts, trex_model, wikitext
from lifelong_edit import Settings
from lifelong_edit.bench import Bench, State, prepare, silent
from lifelong_edit.editors.contract import Change, Editor, Lesson, moved_by
from lifelong_edit.editors.malmen.network import NetworkSet, read_checkpoint
from lifelong_edit.editors.malmen.rule import pack
from lifelong_edit.eval.metrics.verdicts import (
    Result,
    ask_pairs,
    ask_unchanged,
    base_answers,
    predict_answers,
    summarise,
)
from lifelong_edit.facts import Fact, Probe, preserved_prompts_of
from lifelong_edit.models import Encoded, LoadedModel, Overlay, encode, encode_prompt, load_model
from lifelong_edit.tasks.causal.perplexity import perplexity_of, text_windows
from lifelong_edit.timeline.model import make_editor
from lifelong_edit.training.episodes import TrainSettings
from lifelong_edit.training.run import Run


@dataclass(frozen=True)
class Stage:
    """A training run, begun with the network of the stage before it, if any; the stages share the time."""

    folder: str
    settings: Settings
    train: TrainSettings


@dataclass(frozen=True)
class Arm:
    """An editing rule with its settings, and how its network is trained (no stages: it has none).

    reconsolidated: after so many batches all live facts are solved for again, from the base weights.
    """

    settings: Settings
    stages: tuple[Stage, ...] = ()
    reconsolidated: tuple[int, ...] = ()


PUBLISHED_MODULES = ("3-5",)
"""The published rule edits at the answer alone: the upper half of the layers, as it does."""
SINGLE = TrainSettings(rate=3e-4, locality_weight=1.0, batches=1, batch_size=100, validate_every=100)
# The same passes for every batch, so that the arms are compared at equal work.
PLAIN = Settings(more_passes=0)
# A network earns its keep where passes are few: it is compared with the rule at as many.
TWO = PLAIN.replace(passes=2)
PUBLISHED = PLAIN.replace(editor="malmen", ask="published", phrasings=0)
PHRASINGS = PUBLISHED.replace(phrasings=3)
ARMS = {
    "published": Arm(PUBLISHED, (Stage("published", PUBLISHED, SINGLE),)),
    "published-phrasings": Arm(PHRASINGS, (Stage("published3", PHRASINGS, SINGLE),)),
    "gradient": Arm(PLAIN),
    # Another point of the same rule: what efficacy and generality cost in locality.
    "gradient-larger-steps": Arm(PLAIN.replace(eta=2.7)),
    "gradient-two-passes": Arm(TWO),
    "gradient-two-larger-steps": Arm(TWO.replace(eta=2.7)),
    "gradient-reconsolidated": Arm(PLAIN, reconsolidated=(5, 10, 20)),
    "malmen": Arm(TWO.replace(editor="malmen"), (Stage("joint", TWO, TrainSettings()),)),
}


@dataclass
class Stream:
    """Facts in a seeded order, what generality asks of each, and the probes of locality.

    seconds, processor: what editing has taken so far, by the wall clock and of the process. batches: digests of the
    facts that each batch brought. base: what the base model says to probes, asked once.
    """

    facts: list[Fact]
    asked: dict[str, str]
    unedited: list[Fact]
    state: State = field(default_factory=State)
    seconds: float = 0.0
    processor: float = 0.0
    batches: list[list[str]] = field(default_factory=list)
    base: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def apply(self, editor: Editor, batch: Sequence[Fact]) -> Change:
        """Edit one batch; a fact replaces an earlier one of the same subject and relation."""
        old = self.replaced(batch)
        with self.timed():
            change = editor.learn(self.state, Lesson(batch, old))
        self.state = moved_by(self.state, change, batch, old)
        self.came(batch)
        return change

    def replaced(self, batch: Sequence[Fact]) -> list[str]:
        """Digests of the live facts that a batch replaces."""
        new = {(f.subject.casefold(), f.relation) for f in batch}
        return [d for d, f in self.state.live.items() if (f.subject.casefold(), f.relation) in new]

    def came(self, batch: Sequence[Fact]) -> None:
        """Note that a batch was edited."""
        self.state.digest = f"{self.state.digest}|{batch[0].digest}"
        self.batches.append([fact.digest for fact in batch])

    def reconsolidate(self, editor: Editor) -> None:
        """Solve again over all live facts, from the base weights."""
        with self.timed():
            change = editor.relearn(list(self.state.live.values()), say=silent)
        self.take(change)

    def take(self, change: Change) -> None:
        """Move on to what a reconsolidation has found."""
        self.state = moved_by(self.state, change, ())
        self.state.digest += "|reconsolidated"

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts the time of the block, on both clocks."""
        wall, processor = time.perf_counter(), time.process_time()
        yield
        self.seconds += time.perf_counter() - wall
        self.processor += time.process_time() - processor


def make_stream(facts: Sequence[Fact], count: int, seed: int) -> Stream:
    """The first `count` facts of a shuffle by seed."""
    generator = random.Random(seed)
    order = list(facts)
    generator.shuffle(order)
    chosen, asked = [], {}
    for fact in order[:count]:
        half = len(fact.rephrases) // 2
        kept = msgspec.structs.replace(fact, rephrases=fact.rephrases[:half])
        chosen.append(kept)
        if fact.rephrases:
            asked[kept.digest] = generator.choice(fact.rephrases[half:])
    edited = {(f.subject.casefold(), f.relation) for f in chosen}
    unedited = [f for f in order[count:] if (f.subject.casefold(), f.relation) not in edited]
    return Stream(chosen, asked, unedited[:300])


def judge(
    loaded: LoadedModel,
    stream: Stream,
    text: str,
    *,
    generated: bool = True,
    cohorts: bool = False,
    overlay: Overlay | None = None,
) -> dict[str, Any]:
    """Efficacy, generality, locality (neighbours, random facts), teacher-forced and by generation; perplexity.

    generated: without it teacher-forced alone, at a fraction of the time. cohorts: also batch by batch. overlay: of the
    state, where it is more than the stream's shifts.
    """
    live = list(stream.state.live.values())
    edited = {(f.subject.casefold(), f.relation) for f in stream.facts}
    near = {p.prompt: (f.digest, p.target) for f in live for p in f.locality if _free(p, f, edited)}
    far = {f.prompt: (f.digest, f.target_true) for f in stream.unedited}
    unknown = [(p, t) for p, (_, t) in (near | far).items() if p not in stream.base]
    stream.base.update(zip([p for p, _ in unknown], base_answers(loaded, unknown), strict=True))
    asked = [f for f in live if f.digest in stream.asked]
    with loaded.at(stream.state.shifts if overlay is None else overlay):
        found = {
            "efficacy": _ask(loaded, [f.digest for f in live], [(f.prompt, f.target) for f in live], generated),
            "generality": _ask(
                loaded, [f.digest for f in asked], [(stream.asked[f.digest], f.target) for f in asked], generated
            ),
            "locality": _ask_unchanged(loaded, stream, near, generated),
            "random facts": _ask_unchanged(loaded, stream, far, generated),
        }
        perplexity = perplexity_of(loaded, text_windows(loaded, text))
    scores: dict[str, Any] = {name: _score([r for _, r in pairs], generated) for name, pairs in found.items() if pairs}
    if cohorts:
        scores["cohorts"] = _by_batch(stream, found, generated)
    return {
        **scores,
        "perplexity": perplexity,
        "seconds": stream.seconds,
        "processor": stream.processor,
    }


Answers = list[tuple[str, Result]]
"""Results, each with the digest of the fact that was asked, or beside which was asked."""


def _ask(loaded: LoadedModel, digests: Sequence[str], pairs: Sequence[tuple[str, str]], generated: bool) -> Answers:
    if generated:
        return list(zip(digests, ask_pairs(loaded, pairs), strict=True))
    encoded = [encode(loaded.tokenizer, prompt, target) for prompt, target in pairs]
    return list(zip(digests, _forced(loaded, encoded), strict=True))


def _ask_unchanged(
    loaded: LoadedModel, stream: Stream, probes: Mapping[str, tuple[str, str | None]], generated: bool
) -> Answers:
    digests, answers = [digest for digest, _ in probes.values()], [stream.base[prompt] for prompt in probes]
    if generated:
        return list(zip(digests, ask_unchanged(loaded, list(probes), answers), strict=True))
    fronts = [encode_prompt(loaded.tokenizer, prompt) for prompt in probes]
    encoded = [Encoded((*front, *answer), len(front)) for front, answer in zip(fronts, answers, strict=True)]
    return list(zip(digests, _forced(loaded, encoded), strict=True))


def _forced(loaded: LoadedModel, encoded: Sequence[Encoded]) -> list[Result]:
    """Teacher-forced alone; what was not asked counts as wrong, and `_score` leaves it out."""
    guesses = predict_answers(loaded, encoded)
    return [Result(g == e.answer, False, False, "") for g, e in zip(guesses, encoded, strict=True)]


def _score(results: Sequence[Result], generated: bool) -> dict[str, Any]:
    score: dict[str, Any] = msgspec.to_builtins(summarise(results))
    return score if generated else {"count": score["count"], "teacher_forced": score["teacher_forced"]}


def _by_batch(stream: Stream, found: Mapping[str, Answers], generated: bool) -> list[dict[str, Any]]:
    """The scores of each batch's facts, from the oldest on; where none is live any more, nothing."""
    cohorts = []
    for number, digests in enumerate(stream.batches, 1):
        own = set(digests)
        parts = {name: [r for d, r in answers if d in own] for name, answers in found.items()}
        cohorts.append({"batch": number, **{name: _score(part, generated) for name, part in parts.items() if part}})
    return cohorts


def _free(probe: Probe, fact: Fact, edited: set[tuple[str, str | None]]) -> bool:
    return ((probe.subject or "").casefold(), fact.relation) not in edited


def trained(
    arm: Arm, loaded: LoadedModel, facts: Sequence[Fact], text: str, networks: Path, minutes: float
) -> NetworkSet | None:
    """The arm's network, trained on `facts` where `networks` does not hold it already; None where it has none."""
    place: Path | None = None
    for stage in arm.stages:
        before, place = place, networks / stage.folder
        if not (place / "network.safetensors").is_file():
            run = Run(loaded, facts, [text], place, stage.settings, stage.train, start=before)
            # One thread's own seconds: arms that run side by side have the same budget.
            run.go(minutes / len(arm.stages), clock=time.process_time)
    return None if place is None else read_checkpoint(place)


def run_arm(name: str, seeds: Sequence[int], networks: Path, minutes: float) -> dict[str, Any]:
    """All seeds of one arm."""
    arm = ARMS[name]
    published = arm.settings.ask == "published"
    loaded = load_model(str(trex_model()), modules=PUBLISHED_MODULES if published else None)
    train, stream_facts = trex_facts("train"), trex_facts("stream")
    text = {"valid": wikitext("valid"), "test": wikitext("test")}
    network = trained(arm, loaded, train, text["valid"], networks, minutes)
    preserve = [probe for f in train for probe in preserved_prompts_of(f)]
    fixed = prepare(loaded, arm.settings, text=[text["valid"]], preserve=preserve, rule=pack(network))
    editor = make_editor(Bench(loaded, arm.settings, fixed))
    found: dict[str, Any] = {"settings": msgspec.to_builtins(arm.settings)}
    if network is not None:
        found["network"] = network.config.provenance
    found["base perplexity"] = perplexity_of(loaded, text_windows(loaded, text["test"]))
    for seed in seeds:
        for sizes, checks in (([256], {1}), ([50] * 20, {5, 10, 20})):
            stream = make_stream(stream_facts, sum(sizes), seed)
            for i, size in enumerate(sizes):
                stream.apply(editor, stream.facts[sum(sizes[:i]) : sum(sizes[:i]) + size])
                if i + 1 not in checks:
                    continue
                label = f"{i + 1} x {size}, seed {seed}"
                if size == 50 and i + 1 in arm.reconsolidated:
                    found[f"before: {label}"] = judge(loaded, stream, text["test"])
                    print(name, f"before: {label}", line(found[f"before: {label}"]), flush=True)
                    stream.reconsolidate(editor)
                found[label] = judge(loaded, stream, text["test"])
                print(name, label, line(found[label]), flush=True)
        common.write(f"streams-{name}", found)
    return found


def line(scores: dict[str, Any]) -> str:
    """One line: teacher-forced, and by generation where that was asked."""
    asked = {k: v for k, v in scores.items() if isinstance(v, dict) and "teacher_forced" in v}
    parts = [
        k + "".join(f" {v[way]:.3f}" for way in ("teacher_forced", "generated") if way in v) for k, v in asked.items()
    ]
    return "  ".join([*parts, f"ppl {scores['perplexity']:.1f}", f"{scores['seconds']:.0f} s"])


def main() -> None:
    """Run the arms asked for and leave one result file for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--networks", type=Path, default=common.REPOSITORY / ".work" / "networks")
    parser.add_argument(
        "--minutes", type=float, default=16, help="training time of each network, in minutes of the processor"
    )
    options = parser.parse_args()
    for name in options.arms:
        run_arm(name, options.seeds, options.networks, options.minutes)


if __name__ == "__main__":
    main()
