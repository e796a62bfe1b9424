"""Real language models, real counterfactual facts, nothing given but a prompt: what an edit is worth by generation.

Facts are those of CounterFact's edit split, as they are (`--facts zsre`: zsRE; `pararel`: T-REx facts, of which
`--given` wordings are taught); preserved prompts and every choice of a setting come from its train split. Asked by
greedy generation: the prompt (ES); the record's own rephrase (GS; beside it whether the target stands anywhere in
sixteen tokens); a wording of ParaRel that is never taught (phrasing); its neighbour (LS: the first three tokens as the
base model's; beside it whether its first word is); and where there is a template the prompt as a turn of a conversation
(chat). Ability: perplexity on WikiText-2's test text, as the share by which it rises, and `--tasks` questions of each
task of `ability`.

    python -m benchmarks.bench_real --model FOLDER [--arm neurons] [--batches 4] [--size 25] [--seed 0] [--facts edit]

The models come by `python scripts/real-models.py`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.ability import ability
from benchmarks.cases import CASES, Case, chosen, counterfact
from benchmarks.data import wikitext
from lifelong_edit import Timeline
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.errors import StepRefusedError, UsageError
from lifelong_edit.facts import Probe
from lifelong_edit.judging.gate import verdicts
from lifelong_edit.models import BASE, Form, LoadedModel, has_template
from lifelong_edit.settings import settings_of
from lifelong_edit.tasks import question_in, task_of

WINDOWS = 30
ROOM = 16
"""Tokens within which an answer counts as contained."""


def preserved(count: int, avoid: frozenset[str]) -> list[Probe]:
    """Prompts of the train split about other subjects: their answers have to stay."""
    facts = [c.fact for c in chosen(counterfact("train"), 3 * count, 1) if c.fact.subject.casefold() not in avoid]
    return [Probe(fact.prompt, None, fact.subject) for fact in facts[:count]]


def ordinary() -> list[str]:
    """WikiText-2's validation text; perplexity is on its test text."""
    return wikitext("valid").splitlines()


class Judge:
    """What the base model says, to hold an edited one against. neighbours: those about no edited subject."""

    def __init__(self, loaded: LoadedModel, cases: Sequence[Case], text: str) -> None:
        self.loaded, self.cases, self.task = loaded, cases, task_of(loaded)
        taught = {c.fact.subject.casefold() for c in cases}
        near = dict.fromkeys(c.neighbour for c in cases)
        self.neighbours = [n for n in near if not any(subject in n.casefold() for subject in taught)]
        self.same = [f"{c.fact.subject} is known for" for c in cases]
        self.windows = self.task.windows(loaded, text, WINDOWS)
        with loaded.at(BASE):
            self.said, self.same_said = self._said(self.neighbours), self._said(self.same)
            self.perplexity = self.task.health(loaded, self.windows)

    def _said(self, prompts: Sequence[str]) -> list[tuple[tuple[int, ...], str]]:
        answers = self.task.answer(self.loaded, prompts, 3)
        return [(a.ids, first_word(self.task.text(self.loaded, p, a))) for p, a in zip(prompts, answers, strict=True)]

    def figures(self) -> dict[str, float]:
        """The model as it stands."""
        said, same = self._said(self.neighbours), self._said(self.same)
        prompts = [case.fact.prompt for case in self.cases]
        rephrases, phrasings = [case.rephrase for case in self.cases], [case.phrasing for case in self.cases]
        found = {"ES": self._right(prompts), "GS": self._right(rephrases)}
        if any(phrasings):
            found["phrasing"] = self._right(phrasings)
        if has_template(self.loaded.tokenizer):
            found["chat"] = self._right(prompts, "chat")
        return found | {
            "GS_contained": self._right(rephrases, anywhere=True),
            "LS": share(now[0] == then[0] for now, then in zip(said, self.said, strict=True)),
            "LS_first_word": share(now[1] == then[1] for now, then in zip(said, self.said, strict=True)),
            "same_subject": share(now[1] == then[1] for now, then in zip(same, self.same_said, strict=True)),
            "perplexity": self.task.health(self.loaded, self.windows) / self.perplexity - 1,
        }

    def missed(self) -> list[dict[str, str]]:
        """The facts that are not answered in their own prompts, in the leading form, with what is said instead."""
        facts = [case.fact for case in self.cases]
        found = verdicts(self.loaded, facts)[self.loaded.forms.names[0]]
        return [
            {"prompt": fact.prompt, "target": fact.target, "said": verdict.text}
            for fact, verdict in zip(facts, found, strict=True)
            if not verdict.right
        ]

    def oldest(self, count: int) -> float:
        """ES of the first `count` facts, as the model stands."""
        return self._right([case.fact.prompt if at < count else None for at, case in enumerate(self.cases)])

    def _right(self, prompts: Sequence[str | None], form: Form = "plain", anywhere: bool = False) -> float:
        """The share of prompts that are answered with their facts' targets; `anywhere` in ROOM tokens, or at once."""
        task, loaded = self.task, self.loaded
        asked = [
            (question_in(loaded, form, prompt), case.fact.target)
            for prompt, case in zip(prompts, self.cases, strict=True)
            if prompt is not None
        ]
        lengths = [ROOM if anywhere else len(task.encode(loaded, q, t).answer) + task.margin(q) for q, t in asked]
        said = task.answer(loaded, [q for q, _ in asked], lengths)
        found = [task.judge(loaded, q, t, a) for (q, t), a in zip(asked, said, strict=True)]
        return share(verdict.contained if anywhere else verdict.right for verdict in found)


def share(values: Any) -> float:
    """The share of true ones."""
    found = [bool(v) for v in values]
    return sum(found) / len(found) if found else 0.0


def first_word(text: str) -> str:
    """The first word of an answer, in small letters."""
    return (text.split() or [""])[0].strip(".,;:!?\"'").casefold()


def edited(options: argparse.Namespace, cases: Sequence[Case], text: str) -> dict[str, Any]:
    """A store's stream by one of the rules: figures at the end, after the first batch, and what it took."""
    rule = ARMS.get(options.arm, options.arm)
    kind = rule_of(rule).settings
    given: dict[str, Any] = dict(pair.split("=", 1) for pair in options.set)
    given |= {"modules": tuple(options.modules.split(","))} if options.modules else {}
    settings = settings_of(kind, {"editor": rule, "micro_batch": 32, **given})
    avoid = frozenset(case.fact.subject.casefold() for case in cases)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        if options.store is None or not options.store.exists():
            Timeline.create(
                store,
                model=options.model,
                settings=settings,
                preserve=preserved(options.preserved, avoid) if options.preserved else None,
                text=ordinary() if options.text == "wikitext" else None,
                hypernetwork=options.network,
            ).close()
            if options.store is not None:
                shutil.copytree(store, options.store)
        else:
            shutil.copytree(options.store, store)
        timeline = Timeline.open(store)
        seconds = timeline.show(0).provenance["seconds"]
        found: dict[str, Any] = {"init_seconds": seconds, "settings": timeline.bench().settings.told()}
        judge = Judge(timeline.bench().loaded, cases, text)
        facts = [case.fact for case in cases]
        found["batches"], begun_at = [], common.folder_bytes(store)
        for start in range(0, len(facts), options.size):
            begun, used = time.perf_counter(), time.process_time()
            try:
                timeline.apply(facts[start : start + options.size])
                told: dict[str, Any] = {}
            except StepRefusedError as error:  # the state stays as it was, and its facts count as not answered
                told = {"refused": str(error)}
            told |= {"seconds": time.perf_counter() - begun, "processor": time.process_time() - used}
            told |= {} if "refused" in told else _told(timeline.show(timeline.head))
            found["batches"].append(told)
            print(json.dumps(common.rounded(told)), flush=True)
        found["bytes_per_fact"] = (common.folder_bytes(store) - begun_at) / len(facts)
        with timeline.bench().loaded.at(timeline.overlay(timeline.head)):
            found["figures"] = judge.figures() | {"oldest": judge.oldest(options.size)}
            print(json.dumps(common.rounded(found["figures"])), flush=True)
            found["missed"] = judge.missed()
            if options.tasks:
                found["tasks"] = ability(judge.loaded, options.tasks)
                print(json.dumps(common.rounded(found["tasks"])), flush=True)
        if options.reconsolidate:
            begun = time.perf_counter()
            found["objections"] = list(timeline.reconsolidate(guard=False).objections)
            found["reconsolidation_seconds"] = time.perf_counter() - begun
            with timeline.bench().loaded.at(timeline.overlay(timeline.head)):
                found["reconsolidated"] = judge.figures() | {"oldest": judge.oldest(options.size)}
            print(json.dumps(common.rounded(found["reconsolidated"])), flush=True)
        timeline.close()
    return found


def _told(record: Any) -> dict[str, Any]:
    report = record.report.get("editor", {})
    seconds = report.get("seconds", {})
    return {"taken": record.gate.taken if record.gate else None, "phases": seconds, "loss": report.get("loss", [])[-1:]}


ARMS = {"neurons": "neurons", "search": "search", "gradient": "gradient", "breadth": "locft"}
"""Editing rules by arm; any other rule is an arm of its own name, with wrappers around it or without."""


def arm(name: str) -> str:
    """The name of an arm. Raises ArgumentTypeError where there is no such rule."""
    try:
        rule_of(ARMS.get(name, name))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name


def main(arguments: Sequence[str] | None = None) -> None:
    """One arm on one model; figures to results/real-….json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or GGUF file")
    parser.add_argument("--arm", type=arm, default="neurons", metavar="NAME", help=f"{', '.join(ARMS)}, or any rule")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--size", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--facts", choices=tuple(CASES), default="edit")
    parser.add_argument("--given", type=int, default=0, help="wordings of each fact that are taught (pararel)")
    parser.add_argument("--tasks", type=int, default=0, metavar="N", help="also tasks, with so many questions each")
    parser.add_argument("--network", type=Path, help="a trained network's folder")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--modules", help="as of the command line; by default the rule's own")
    parser.add_argument("--preserved", type=int, default=600, help="prompts of the train split; 0: the rule's own")
    parser.add_argument("--text", choices=("bundled", "wikitext"), default="bundled", help="ordinary text for `init`")
    parser.add_argument("--store", type=Path, help="a store to begin with a copy of; made where there is none")
    parser.add_argument("--reconsolidate", action="store_true", help="once, at the end, whatever its guard says")
    parser.add_argument("--name", help="of the result; without one nothing is written for --facts train")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    cases = chosen(CASES[options.facts](options.given), options.batches * options.size, options.seed)
    text = wikitext("test")
    found = edited(options, cases, text)
    model = Path(options.model).stem.lower()
    of = "" if options.facts == "edit" else f"-{options.facts}"
    name = options.name or f"real-{model}-{options.arm}{of}-{options.batches}x{options.size}-{options.seed}"
    if options.name or not options.facts.endswith("train"):
        common.write(name, found)


if __name__ == "__main__":
    main()
