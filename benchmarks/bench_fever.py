"""MALMEN's experiment on fact checking: claims flipped in one batch, and in a stream, on MiniLM fine-tuned on FEVER.

A claim is flipped: what is taught is the label that the model does not give, so that every edit has something to do.
ES is the flipped claim; GS the claim in a template that was never given; LS whether claims about other things keep the
base model's label, and beside it ("true") how many of them have their true one; "same" whether other claims about the
very things that claims were flipped about do, many of which say nearly what a flipped claim says. Claims are those of
the part `judged`; networks are trained on the part `trained`, of which the preserved prompts are as well, and
`--part trained` runs the same there, to choose settings, with no figures left in results.

    python -m benchmarks.fever_checker   # makes the model, once
    python -m benchmarks.bench_fever [--arm malmen] [--size 64] [--stream 20x50] [--minutes 10] [--set c0=100]

Figures of arms and sizes that are not run again stay in results/fever.json.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import common
from benchmarks.fever import ASKED_WORDINGS, Claim, Part, checker_folder, claims_of, flipped
from lifelong_edit.bench import Bench, State, prepare, silent
from lifelong_edit.editors.contract import Editor, Lesson, moved_by
from lifelong_edit.editors.malmen.network import read_checkpoint
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.models import LoadedModel, load_model
from lifelong_edit.settings import StoreSettings, settings_of
from lifelong_edit.tasks import task_of
from lifelong_edit.timeline.defaults import default_text
from lifelong_edit.timeline.model import given_to, make_editor
from lifelong_edit.training.episodes import TrainSettings
from lifelong_edit.training.run import Run

SIZES = {1: 4, 8: 2, 64: 1, 256: 1, 1024: 1}
"""Claims of a batch, and how many such batches are judged, each from the base model."""
NEIGHBOURS, PRESERVED, TRAINED, MOST_PRESERVED = 300, 200, 600, 2000
"""Claims about other things that are asked, that are preserved, and that networks are trained on."""
FEW, SAME = 20, 600
"""The most claims about one thing that is set aside to be asked; further claims about what flipped ones are about."""
TRAINING = TrainSettings(rank=64, batch_size=64, batches=4, probes=64, validation_facts=64, validate_every=40)
ONE_BATCH = msgspec.structs.replace(TRAINING, batches=1, batch_size=128, locality_weight=1.0, rate=3e-4)
COMMON = {"text_tokens": 6_400}  # a tenth of the default


@dataclass(frozen=True)
class Arm:
    """A rule with what is set beside its defaults, and how its network is trained, where it has one."""

    editor: str
    given: dict[str, Any]
    train: TrainSettings | None = None
    preserved: int = PRESERVED

    def settings(self, more: dict[str, Any]) -> StoreSettings:
        """The settings of a store."""
        kind = rule_of(self.editor).settings
        told = {name: value for name, value in COMMON.items() if name in kind.__struct_fields__}
        return settings_of(kind, {"editor": self.editor, **told, **self.given, **more})


ARMS = {
    "gradient": Arm("gradient", {}),
    "malmen": Arm("malmen", {"passes": 2, "more_passes": 0}, TRAINING),
    "malmen, published": Arm("malmen", {"ask": "published", "phrasings": 0}, ONE_BATCH),
    "mend": Arm("mend", {}, ONE_BATCH),
    "ultraedit": Arm("ultraedit", {}),
    "ft": Arm("ft", {}),
    "grace": Arm("grace", {}),
    "neurons": Arm("neurons", {"rounds": 8, "more_rounds": 8, "reconsolidation_rounds": 8}, preserved=MOST_PRESERVED),
}
"""SERAC edits decoders alone, since its counterfactual model is the base that reads a fact before a question."""


class Judge:
    """Asks an edited model, and holds it against the base."""

    def __init__(self, loaded: LoadedModel, part: Part, count: int) -> None:
        self.loaded, self.task = loaded, task_of(loaded)
        self.claims, self.others, self.same = parted(claims_of(part), count)
        self.said = self._said([claim.text for claim in self.claims])
        self.beside = self._said([claim.text for claim in self.others])
        self.beside_same = self._said([claim.text for claim in self.same])
        shuffled = random.Random(1).choices(self.others, k=len(self.claims))
        self.facts = flipped(self.claims, self.said, shuffled)
        drawn = random.Random(2)
        pairs = zip(self.facts, self.claims, strict=True)
        self.asked = {fact.digest: claim.worded(drawn.choice(ASKED_WORDINGS)) for fact, claim in pairs}
        self.about = {fact.digest: claim.about for fact, claim in zip(self.facts, self.claims, strict=True)}
        self.base = {
            "right of the claims": _share(s == c.label for s, c in zip(self.said, self.claims, strict=True)),
            "right of the others": self._true(self.beside),
            "same in another wording": _share(
                s == w for s, w in zip(self.said, self._said([self.asked[f.digest] for f in self.facts]), strict=True)
            ),
        }

    def _said(self, texts: Sequence[str]) -> list[str]:
        answers = self.task.answer(self.loaded, texts, 1)
        return [self.task.text(self.loaded, t, a) for t, a in zip(texts, answers, strict=True)]

    def _true(self, said: Sequence[str]) -> float:
        return _share(s == c.label for s, c in zip(said, self.others, strict=True))

    def figures(self, editor: Editor, state: State) -> dict[str, float]:
        """ES, GS, LS and true labels of a state."""
        facts = list(state.live.values())
        with self.loaded.at(editor.overlay(state)):
            own = self._said([fact.prompt for fact in facts])
            worded = self._said([self.asked[fact.digest] for fact in facts])
            others = self._said([claim.text for claim in self.others])
            same = self._said([claim.text for claim in self.same])
        taught = {self.about[fact.digest] for fact in facts}
        kept = [s == b for s, b, c in zip(same, self.beside_same, self.same, strict=True) if c.about in taught]
        return {
            "ES": _share(s == f.target for s, f in zip(own, facts, strict=True)),
            "GS": _share(s == f.target for s, f in zip(worded, facts, strict=True)),
            "LS": _share(s == b for s, b in zip(others, self.beside, strict=True)),
            "true": self._true(others),
            **({"same": _share(kept)} if kept else {}),
        }


def parted(claims: Sequence[Claim], count: int) -> tuple[list[Claim], list[Claim], list[Claim]]:
    """Of a part's claims those to be flipped, NEIGHBOURS about other things than these, and some about the same.

    What is set aside for the second has few claims each, so that they are about many things.
    """
    sizes, aside, held = Counter(claim.about for claim in claims), set[str](), 0
    for claim in claims:
        if held < NEIGHBOURS and sizes[claim.about] <= FEW and claim.about not in aside:
            aside.add(claim.about)
            held += sizes[claim.about]
    rest = [claim for claim in claims if claim.about not in aside]
    others = [claim for claim in claims if claim.about in aside]
    return rest[:count], others[:NEIGHBOURS], rest[count : count + SAME]


def _share(right: Iterable[bool]) -> float:
    found = list(right)
    return sum(found) / len(found)


def taught(editor: Editor, state: State, batch: Sequence[Fact]) -> tuple[State, float]:
    """The state after a batch, and processor seconds."""
    begun = time.process_time()
    after = moved_by(state, editor.learn(state, Lesson(batch)), batch)
    after.digest = f"{state.digest}|{batch[0].digest}"
    return after, time.process_time() - begun


def one_batch(judge: Judge, editor: Editor, size: int) -> dict[str, float]:
    """Mean figures of batches of a size, each taught to the base model."""
    found = []
    for start in range(0, size * SIZES.get(size, 1), size):
        state, seconds = taught(editor, State(digest="base"), judge.facts[start : start + size])
        found.append({**judge.figures(editor, state), "processor": seconds})
    return {name: sum(one[name] for one in found) / len(found) for name in found[0]}


def streamed(judge: Judge, editor: Editor, batches: int, size: int, reconsolidates: bool) -> dict[str, Any]:
    """Figures after a stream, and after all its claims were solved for again."""
    state, spent = State(digest="base"), 0.0
    for start in range(0, batches * size, size):
        state, seconds = taught(editor, state, judge.facts[start : start + size])
        spent += seconds
    found: dict[str, Any] = {"stream": {**judge.figures(editor, state), "processor": spent}}
    if reconsolidates:
        begun = time.process_time()
        state = moved_by(state, editor.relearn(list(state.live.values()), say=silent), ())
        found["reconsolidated"] = {**judge.figures(editor, state), "processor": time.process_time() - begun}
    return found


def network_of(name: str, arm: Arm, settings: StoreSettings, options: argparse.Namespace) -> Path | None:
    """The folder of an arm's network, trained now on the part `trained` if it is not there."""
    if arm.train is None:
        return None
    folder = Path(options.networks) / name.replace(", ", "-")
    if not (folder / "network.safetensors").is_file():
        loaded = load_model(str(checker_folder()))
        task, claims = task_of(loaded), claims_of("trained")[PRESERVED : PRESERVED + TRAINED]
        texts = [claim.text for claim in claims]
        said = [task.text(loaded, t, a) for t, a in zip(texts, task.answer(loaded, texts, 1), strict=True)]
        facts = flipped(claims, said, claims)
        Run(loaded, facts, default_text(), folder, settings, arm.train).go(options.minutes, options.steps)
    return folder


def bench_of(arm: Arm, settings: StoreSettings, network: Path | None, preserve: Sequence[Claim]) -> Bench:
    """The fact checker on the bench of a rule."""
    rule = rule_of(arm.editor)
    loaded = load_model(str(checker_folder()), modules=settings.modules or None, places=rule.places)
    probes = [Probe(claim.text) for claim in preserve]
    fixed = prepare(loaded, settings, text=default_text(), preserve=probes, statistics=rule.statistics)
    given = given_to(network, default_text(), probes)
    return Bench(loaded, settings, replace(fixed, rule={**given.network, **rule.fix(loaded, settings, given)}))


def run(name: str, arm: Arm, options: argparse.Namespace) -> dict[str, Any]:
    """All that is asked of an arm."""
    given: dict[str, Any] = dict(pair.split("=", 1) for pair in options.set)
    given |= {"modules": tuple(options.modules.split(","))} if options.modules else {}
    settings = arm.settings(given)
    network = network_of(name, arm, settings, options)
    batches, size = (int(n) for n in (options.stream or "0x0").split("x"))
    most = max([*options.size, batches * size, 64])
    preserve = claims_of("trained")
    if options.part == "trained":
        used = {claim.text for some in parted(preserve, most) for claim in some}
        preserve = [claim for claim in preserve if claim.text not in used]
    preserve = preserve[: options.preserved or arm.preserved]
    bench = bench_of(arm, settings, network, preserve)
    editor = make_editor(bench)
    judge = Judge(bench.loaded, options.part, most)
    found: dict[str, Any] = {"settings": settings.told(), "preserved": len(preserve), "base": judge.base}
    if network is not None:
        found["network"] = read_checkpoint(network).config.provenance
    for count in options.size:
        found[str(count)] = one_batch(judge, editor, count)
        print(name, count, json.dumps(common.rounded(found[str(count)])), flush=True)
    if batches:
        found[options.stream] = streamed(judge, editor, batches, size, bool(rule_of(arm.editor).relearns))
        print(name, options.stream, json.dumps(common.rounded(found[options.stream])), flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The arms that are asked for; figures to results/fever.json, beside those that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", action="append", choices=ARMS, help="by default all")
    parser.add_argument("--size", action="append", type=int, help="claims of a batch; by default 1 to 1,024")
    parser.add_argument("--stream", metavar="BATCHESxSIZE")
    parser.add_argument("--part", choices=("judged", "trained"), default="judged")
    parser.add_argument("--minutes", type=float, default=10, help="that each network is trained")
    parser.add_argument("--steps", type=int, help="that it is trained at most")
    parser.add_argument("--networks", default=str(checker_folder().parent / "fever-networks"))
    parser.add_argument("--preserved", type=int, help="claims that are preserved; by default the arm's")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--modules")
    options = parser.parse_args(arguments)
    if not checker_folder().is_dir():
        print("skipped: the fact checker is not there; python -m benchmarks.fever_checker makes it")
        raise SystemExit(0)
    options.size = list(SIZES) if options.size is None else [n for n in options.size if n]
    told = common.RESULTS / "fever.json"
    results = json.loads(told.read_text(encoding="utf-8"))["results"] if told.is_file() else {}
    for name in options.arm or ARMS:
        found = run(name, ARMS[name], options)
        if options.part == "judged" and not (options.set or options.modules or options.preserved):
            results[name] = {**results.get(name, {}), **found}
            card = json.loads((checker_folder() / "card.json").read_text(encoding="utf-8"))
            common.write("fever", {**results, "checker": {n: card[n] for n in ("recipe", "claims", "right")}})


if __name__ == "__main__":
    main()
