"""A life of edits: 20 batches of 50 facts, arm by arm, judged at every batch boundary; and the longest stream there is.

Arms: `published`; the batch step alone (`never`) and with reconsolidation by each policy (`every:5`, `geometric`,
`retention:0.95`, ...), at the end also canonical; and the rivals: `p0` and `p0-rows` (P = 0 with reconsolidation;
without preserved prompts, or with them as rows) and fine-tuning with replay, batch by batch (`finetune-batches`) or
once on everything (`finetune-once`). Fine-tuning gets the processor time of another arm (`--like`), batch by batch.

The protocol is that of `bench_streams`. `--facts train` lives on the training facts instead, to choose settings on;
its figures stay out of `results/`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from benchmarks import common
from benchmarks.bench_streams import (
    ARMS,
    PUBLISHED_MODULES,
    Arm,
    Stream,
    judge,
    line,
    make_stream,
    trained,
)
from benchmarks.data import trex_facts, trex_model, wikitext
from benchmarks.finetuning import FineTuner, Recipe
from benchmarks.validation import CHOSEN, validation
from lifelong_edit import Settings
from lifelong_edit.bench import Bench, prepare
from lifelong_edit.cli.common import parse_settings
from lifelong_edit.editors.malmen.network import NetworkSet, read_checkpoint
from lifelong_edit.editors.malmen.rule import pack
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.editors.ridge.held import Preservation
from lifelong_edit.errors import LifelongEditError, UsageError
from lifelong_edit.eval.metrics.verdicts import ask_pairs, summarise
from lifelong_edit.facts import Fact, Probe, preserved_prompts_of
from lifelong_edit.judging.forgetting import forecast_by_keys
from lifelong_edit.judging.guard import Figures, measure, objections, retention
from lifelong_edit.models import BASE, LoadedModel, load_model
from lifelong_edit.policies import Never, ReconsolidationPolicy, Standing, reconsolidation_policy
from lifelong_edit.tasks.causal.perplexity import perplexity_of, text_windows
from lifelong_edit.timeline.defaults import default_forecasters, solve_of
from lifelong_edit.timeline.model import as_tensors, make_editor

SPECIAL = ("published", "p0", "p0-rows", "finetune-batches", "finetune-once")
CORE = ("published", "never", "every:5", "geometric", "retention:0.95", "p0", "p0-rows", *SPECIAL[3:])
WORK = common.REPOSITORY / ".work" / "lifelong"

What = Literal["batch", "reconsolidated", "refused", "canonical at the end"]


@dataclass(frozen=True)
class Plan:
    """What a run goes through, and where it is judged.

    generated: batch boundaries at which answers are generated as well, beside every reconsolidation's and the last.
    every: boundaries are judged teacher-forced after each so many batches.
    """

    batches: int
    size: int
    generated: frozenset[int]
    every: int = 1
    canonical: bool = True
    facts: Literal["train", "stream"] = "stream"


class Unpreserved(Preservation):
    """What solves hold that hold nothing still: P = 0, whatever the settings and the live facts are."""

    def gram(self, module: str, *_: Any, **__: Any) -> Tensor:
        """Zeros, (d_in, d_in) float64."""
        return torch.zeros_like(self.bench.text_gram[module])


@dataclass
class Life:
    """One stream in one arm: what it lives through, and the record of it."""

    editor: RidgeEditor
    stream: Stream
    plan: Plan
    text: str
    say: Callable[[dict[str, Any]], None]
    since: int = 0
    before: int = 0
    lost: list[float] = field(default_factory=list)
    reached: float = 1.0
    checks: list[dict[str, Any]] = field(default_factory=list)
    base_wrapped: dict[str, Any] | None = None

    @property
    def bench(self) -> Bench:
        """The model that it is lived in."""
        return self.editor.bench

    def parts(self) -> Iterator[list[Fact]]:
        """The stream's batches."""
        for start in range(0, self.plan.batches * self.plan.size, self.plan.size):
            yield self.stream.facts[start : start + self.plan.size]

    def edit(self, policy: ReconsolidationPolicy) -> None:
        """Batch by batch, with reconsolidation when the policy says so; at the end canonical, if the plan says so."""
        for batch in self.parts():
            if policy.looks_ahead:
                self.ask(policy, batch)
            report = self.stream.apply(self.editor, batch).report
            self.since += 1
            self.check("batch", {key: report[key] for key in ("passes", "loss")})
            if not policy.looks_ahead:
                self.ask(policy)
        last = self.checks[-1]["what"] == "reconsolidated"
        if self.plan.canonical and not last:
            self.check("canonical at the end", self.reconsolidate(guarded=False))

    def ask(self, policy: ReconsolidationPolicy, coming: Sequence[Fact] = ()) -> None:
        """Reconsolidate if the policy says so. coming: the batch that is to be edited next, where it looks ahead."""
        with self.stream.timed():
            self.lost.append(self._forecast(coming) if coming else 0.0)
            due = policy.due(self.standing())
        if due:
            report = self.reconsolidate(guarded=True)
            self.before, self.since, self.lost = self.before + self.since, 0, self.lost[-1:]
            self.check("refused" if report["objections"] else "reconsolidated", report)

    def standing(self) -> Standing:
        """What a policy is shown, counted along the stream; `lost` has the coming batch's forecast by now."""
        share = sum(self.lost) / max(1, len(self.stream.state.live))
        return Standing(self.since, self.before, self._retention, lambda: share, self.reached)

    def _forecast(self, coming: Sequence[Fact]) -> float:
        """How many live facts a batch is expected to make forgotten, as a timeline forecasts it."""
        stream, old = self.stream, self.stream.replaced(coming)
        live = sorted(digest for digest in stream.state.live if digest not in set(old))
        keys = self.bench.conflict_keys([fact.prompt for fact in coming])
        forecaster = default_forecasters()["keys"]
        return float(forecast_by_keys(self.bench, stream.state, live, keys, forecaster)["forgotten"])

    def _retention(self) -> float:
        state = self.stream.state
        with self.bench.loaded.at(state.shifts):
            return retention(self.bench, self.editor.phrasings, list(state.live.values()), state.digest)[0]

    def reconsolidate(self, *, guarded: bool) -> dict[str, Any]:
        """Solve again over all live facts, with the guard's work; a report. Unguarded its objections change nothing."""
        stream, live = self.stream, list(self.stream.state.live.values())
        with stream.timed():
            was = self._measured(stream.state.shifts, live)
            found = self.editor.relearn(live)
            now = self._measured(as_tensors(found.weights({})), live)
            against = objections(was, now)
        if not (guarded and against):
            stream.take(found)
        self.reached = was.retention if guarded and against else now.retention
        return {"passes": found.report["passes"], "loss": found.report["loss"], "objections": against}

    def _measured(self, shifts: Mapping[str, Tensor], live: Sequence[Fact]) -> Figures:
        with self.bench.loaded.at(shifts):
            return measure(self.bench, self.editor.phrasings, live, self.stream.state.digest)

    def tune(self, tuner: FineTuner, budgets: Sequence[float]) -> None:
        """Fine-tune batch by batch, or once on everything where there is one budget."""
        stream, state = self.stream, self.stream.state
        for batch, seconds in zip(self.parts() if len(budgets) > 1 else [stream.facts], budgets, strict=True):
            old = stream.replaced(batch)
            for digest in old:
                del state.live[digest]
            steps = tuner.steps
            with stream.timed():
                state.shifts = tuner.tune(state, batch, seconds)
            if len(budgets) > 1:
                state.live |= {fact.digest: fact for fact in batch}
                stream.came(batch)
            else:
                self._all_came()
            self.check("batch", {"steps": tuner.steps - steps})

    def _all_came(self) -> None:
        """All batches at once; of facts that contradict each other the later one holds."""
        for batch in self.parts():
            for digest in self.stream.replaced(batch):
                del self.stream.state.live[digest]
            self.stream.state.live |= {fact.digest: fact for fact in batch}
            self.stream.came(batch)

    def check(self, what: What, report: dict[str, Any]) -> None:
        """Judge the state and note it down. Refused is what was judged before: only its time is noted."""
        number, plan = len(self.stream.batches), self.plan
        generated = what != "batch" or number in plan.generated or number == plan.batches
        found: dict[str, Any] = {"after": number, "what": what, "report": report}
        if what != "refused" and (generated or number % plan.every == 0):
            loaded = self.bench.loaded
            found |= judge(loaded, self.stream, self.text, generated=generated, cohorts=True)
            if generated:
                found["wrapped"] = self.wrapped()
        else:
            found |= {"seconds": self.stream.seconds, "processor": self.stream.processor}
        self.checks.append(found)
        self.say(found)

    def wrapped(self) -> dict[str, Any]:
        """CounterFact's own rephrases, which wrap a fact into a sentence: the targets as said by the edited model.

        base: the true answers as said by the base model, which knows few of them in such sentences.
        """
        loaded, live = self.bench.loaded, self.stream.state.live.values()
        own = [(f.counterfact_rephrase, f.target) for f in live if f.counterfact_rephrase]
        if self.base_wrapped is None:
            true = [(f.counterfact_rephrase, f.target_true) for f in self.stream.facts if f.target_true]
            with loaded.at(BASE):
                asked = ask_pairs(loaded, [(prompt, answer) for prompt, answer in true if prompt and answer])
            self.base_wrapped = msgspec.to_builtins(summarise(asked))
        with loaded.at(self.stream.state.shifts):
            edited = msgspec.to_builtins(summarise(ask_pairs(loaded, own)))
        return {"edited": edited, "base": self.base_wrapped}


@dataclass
class Place:
    """Where figures are kept: one file per arm, written after every check, with the runs of earlier calls."""

    name: str
    folder: Path
    head: dict[str, Any]
    runs: list[dict[str, Any]] = field(default_factory=list)

    def read(self, again: bool) -> None:
        """Take over the runs of the file, if there is one. Raises UsageError where they had other settings."""
        path = self.folder / f"{self.name}.json"
        if again or not path.is_file():
            return
        found = json.loads(path.read_text(encoding="utf-8"))["results"]
        if {key: found.get(key) for key in self.head} != common.rounded(self.head):
            raise UsageError(f"{path.name} holds figures of other settings; --again replaces them")
        self.runs = [run for run in found["runs"] if run["complete"]]

    def write(self) -> None:
        """The file anew, with mean and range over the seeds."""
        results = {**self.head, "last": over_seeds(self.runs), "runs": self.runs}
        common.write(self.name, results, self.folder)


def over_seeds(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean, least and greatest over the complete runs, of each score of each kind of check after the last batch."""
    ended = [run for run in runs if run["complete"]]
    found: dict[str, Any] = {}
    for what in ("batch", "reconsolidated", "canonical at the end"):
        last = [c for run in ended for c in run["checks"] if c["what"] == what and c["after"] == run["batches"]]
        scores = {
            f"{name}, {way}": [c[name][way] for c in last]
            for name in ("efficacy", "generality", "locality", "random facts")
            for way in ("teacher_forced", "generated")
            if last and all(name in c for c in last)
        }
        if scores:
            scores |= {key: [c[key] for c in last] for key in ("perplexity", "seconds", "processor")}
            found[what] = {key: {"mean": sum(v) / len(v), "range": [min(v), max(v)]} for key, v in scores.items()}
    return found


@dataclass
class Ground:
    """What all arms stand on: models, facts and text; and where networks and figures lie."""

    loaded: LoadedModel
    published: LoadedModel
    """The same model, edited where the published rule edits it."""
    train: list[Fact]
    facts: list[Fact]
    text: dict[str, str]
    options: argparse.Namespace

    def stream(self, plan: Plan, seed: int) -> tuple[Stream, list[Probe]]:
        """A stream and the preserved prompts beside it."""
        count = plan.batches * plan.size
        if plan.facts == "train":
            return validation(self.train, count, seed)
        if count > len(self.facts):
            raise UsageError(f"found {len(self.facts)} facts, expected at least {count}; ask for fewer batches")
        return make_stream(self.facts, count, seed), [
            probe for fact in self.train for probe in preserved_prompts_of(fact)
        ]

    def arm(self, name: str) -> tuple[Settings, NetworkSet | None, type[Preservation], ReconsolidationPolicy]:
        """Settings, network, what is held still and policy of an arm. Raises UsageError for one that is none."""
        o = self.options
        if name == "published":
            arm: Arm = ARMS[name]
            network = trained(arm, self.published, self.train, self.text["valid"], o.networks, o.minutes)
            return arm.settings, network, Preservation, Never()
        network = None if o.network is None else read_checkpoint(o.network)
        named = CHOSEN if o.network is None else {"editor": "malmen", **solve_of(o.network)}
        settings = parse_settings(Settings, "--set", o.set, **named)
        if name in ("p0", "p0-rows"):
            settings = settings.replace(c0=0, preserved_keys=0)
            if name == "p0":
                settings = settings.replace(preserved=0, reconsolidation_preserved=0)
            return settings, network, Unpreserved, reconsolidation_policy(o.policy)
        policy = Never() if name in SPECIAL else reconsolidation_policy(name)
        return settings, network, Preservation, policy


def run_arm(ground: Ground, name: str, plan: Plan) -> None:
    """All seeds of one arm that its file does not have yet."""
    o, loaded = ground.options, ground.published if name == "published" else ground.loaded
    settings, network, holding, policy = ground.arm(name)
    label = name if network is None or name == "published" else f"network-{name}"
    head: dict[str, Any] = {"arm": label, "facts": plan.facts, "settings": msgspec.to_builtins(settings)}
    head |= {"policy": str(policy)} if not name.startswith("finetune") else {"recipe": msgspec.to_builtins(o.recipe)}
    head |= {"network": network.config.provenance} if network is not None else {}
    place = Place(file_name(label, plan), o.folder, head)
    place.read(o.again)
    for seed in o.seeds:
        if any(run["seed"] == seed for run in place.runs):
            continue
        stream, probes = ground.stream(plan, seed)
        fixed = prepare(loaded, settings, text=[ground.text["valid"]], preserve=probes, rule=pack(network))
        editor = ridge_editor(Bench(loaded, settings, fixed), holding)
        run: dict[str, Any] = {"seed": seed, "batches": plan.batches, "size": plan.size, "complete": False}
        run["base perplexity"] = perplexity_of(loaded, text_windows(loaded, ground.text["test"]))
        run["checks"] = []
        place.runs.append(run)
        life = Life(editor, stream, plan, ground.text["test"], told(name, seed, run, place), checks=run["checks"])
        if name.startswith("finetune"):
            shares = budgets(o, plan, seed)
            life.tune(FineTuner(editor, o.recipe, seed), shares if name == "finetune-batches" else [sum(shares)])
        else:
            life.edit(policy)
        run["complete"] = True
        place.write()


def ridge_editor(bench: Bench, holding: type[Preservation]) -> RidgeEditor:
    """The rule that the settings name at work, with what it holds still."""
    editor = make_editor(bench)
    assert isinstance(editor, RidgeEditor)
    editor.preservation = holding(bench)
    return editor


def told(name: str, seed: int, run: dict[str, Any], place: Place) -> Callable[[dict[str, Any]], None]:
    """Writes the file and says one line at each check."""

    def say(found: dict[str, Any]) -> None:
        place.write()
        scores = line(found) if "perplexity" in found else "; ".join(found["report"].get("objections", ()))
        print(f"{name}, seed {seed}, {found['after']} of {run['batches']}, {found['what']}: {scores}", flush=True)

    return say


def file_name(arm: str, plan: Plan) -> str:
    """`lifelong-ARM`, with the length of a stream other than 20 batches."""
    return f"lifelong-{arm.replace(':', '-')}" + ("" if plan.batches == 20 else f"-{plan.batches}")


def budgets(options: argparse.Namespace, plan: Plan, seed: int) -> list[float]:
    """Processor seconds for each batch: those of the arm that fine-tuning is compared with, or equal shares."""
    if options.seconds is not None:
        return [options.seconds / plan.batches] * plan.batches
    path = options.folder / f"{file_name(options.like, plan)}.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["results"]["runs"] if path.is_file() else []
    own = [run for run in runs if run["seed"] == seed and run["complete"]]
    if not own:
        raise UsageError(f"{path.name} has no complete run of seed {seed}; run that arm first, or give --seconds")
    return shares_of(own[0]["checks"], options.like_end)


def shares_of(checks: Sequence[dict[str, Any]], end: bool) -> list[float]:
    """Processor seconds per batch, reconsolidations with the batch before them; `end`: the canonical one as well."""
    reached: dict[int, float] = {}
    for check in checks:
        if end or check["what"] != "canonical at the end":
            reached[check["after"]] = check["processor"]
    totals = [0.0, *(reached[number] for number in sorted(reached))]
    return [after - before for before, after in pairwise(totals)]


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = found.add_argument
    add("--arms", nargs="*", default=list(CORE), help=f"policies, or {', '.join(SPECIAL)}")
    add("--seeds", nargs="*", type=int, default=[0, 1, 2])
    add("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of all arms but `published`")
    add("--network", type=Path, help="edit with this hypernetwork, in the solve that it was trained for")
    add("--policy", default="geometric", help="when the arms with P = 0 reconsolidate")
    add("--recipe", nargs="*", default=[], metavar="NAME=VALUE", help="how is fine-tuned")
    add("--like", default="geometric", help="the arm whose processor time fine-tuning gets")
    add("--like-end", action="store_true", help="... with that of its canonical reconsolidation at the end")
    add("--seconds", type=float, help="processor seconds that fine-tuning gets instead, in equal shares")
    add("--batches", type=int, default=20)
    add("--size", type=int, default=50)
    add("--long", action="store_true", help="the longest stream: 40 batches, `geometric`, seed 0, judged at each fifth")
    add("--generate", nargs="*", type=int, help="boundaries judged by generation; default: each fifth")
    add("--every", type=int, help="judge boundaries after each so many batches alone; default: each, 5 where --long")
    add("--generate-all", action="store_true", help="judge all boundaries by generation")
    add("--no-canonical", action="store_true", help="no canonical reconsolidation at the end")
    add("--facts", choices=("train", "stream"), default="stream", help="train: to choose settings on")
    add("--quick", action="store_true", help="3 batches of 20 training facts, seed 0: does it run?")
    add("--again", action="store_true", help="replace figures that are there")
    add("--networks", type=Path, default=common.REPOSITORY / ".work" / "networks")
    add("--minutes", type=float, default=16, help="processor minutes for training the published arm's network")
    return found


def plan_of(o: argparse.Namespace) -> Plan:
    """The plan that the options ask for; shortens their list of seeds and arms where they ask for one stream."""
    if o.quick:
        o.facts, o.batches, o.size, o.seeds, o.minutes = "train", 3, 20, [0], 0.05
        o.networks, o.set = WORK / "networks", ["text_tokens=8000", *o.set]
    if o.long:
        o.batches, o.seeds, o.arms = 40, [0], ["geometric"]
    fifths = range(5, o.batches + 1, 5)
    chosen = range(1, o.batches + 1) if o.generate_all else fifths if o.generate is None else o.generate
    every = o.every or (5 if o.long else 1)
    return Plan(o.batches, o.size, frozenset(chosen), every, not o.no_canonical, o.facts)


def main() -> None:
    """Run the arms asked for; a result file for each."""
    o = parser().parse_args()
    plan = plan_of(o)
    o.folder = common.RESULTS if plan.facts == "stream" else WORK
    try:
        o.recipe = parse_settings(Recipe, "--recipe", o.recipe)
        model, train, facts = str(trex_model()), trex_facts("train"), trex_facts("stream")
        texts = {"valid": wikitext("valid"), "test": wikitext("test")}
        published = load_model(model, modules=PUBLISHED_MODULES)
        ground = Ground(load_model(model, modules=CHOSEN["modules"]), published, train, facts, texts, o)
        for name in o.arms:
            run_arm(ground, name, plan)
    except LifelongEditError as error:
        sys.exit(f"bench_lifelong: {error}")


if __name__ == "__main__":
    main()
