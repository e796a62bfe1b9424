"""Real language models, real counterfactual facts, nothing given but a prompt: what an edit is worth by generation.

Facts are those of CounterFact's edit split, as they are; preserved prompts and every choice of a setting come from its
train split. Asked by greedy generation: the prompt (ES); the record's own rephrase (GS; beside it whether the target
stands anywhere in sixteen tokens); its neighbour (LS: the first three tokens as the base model's; beside it whether its
first word is); and where there is a template the prompt as a turn of a conversation (chat). Ability: perplexity on
WikiText-2's test text, as the share by which it rises.

    python -m benchmarks.bench_real --model FOLDER [--arm search] [--batches 4] [--size 25] [--seed 0] [--facts edit]

The models come by `python scripts/real-models.py`.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from lifelong_edit import Timeline
from lifelong_edit.editors.registry import RULES, rule_of
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.models import BASE, Form, LoadedModel, has_template
from lifelong_edit.settings import settings_of
from lifelong_edit.tasks import question_in, task_of

WINDOWS = 30
ROOM = 16
"""Tokens within which an answer counts as contained."""


def counterfact(split: str) -> list[dict[str, Any]]:
    """The records of a split."""
    path = common.shared("data", "counterfact", f"counterfact-{split}.json")
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def chosen(records: Sequence[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` records of different subjects, drawn by seed."""
    order = random.Random(seed).sample(range(len(records)), len(records))
    found: dict[str, dict[str, Any]] = {}
    for i in order:
        found.setdefault(records[i]["subject"].casefold(), records[i])
        if len(found) == count:
            break
    return list(found.values())


def preserved(count: int, avoid: frozenset[str]) -> list[Probe]:
    """Prompts of the train split about other subjects: their answers have to stay."""
    records = [r for r in chosen(counterfact("train"), 3 * count, 1) if r["subject"].casefold() not in avoid]
    return [Probe(r["prompt"], None, r["subject"]) for r in records[:count]]


def ordinary() -> list[str]:
    """WikiText-2's validation text; perplexity is on its test text."""
    return common.shared("data", "wikitext2", "valid.txt").read_text(encoding="utf-8").splitlines()


class Judge:
    """What the base model says, to hold an edited one against. neighbours: those about no edited subject."""

    def __init__(self, loaded: LoadedModel, records: Sequence[dict[str, Any]], text: str) -> None:
        self.loaded, self.records, self.task = loaded, records, task_of(loaded)
        taught = {r["subject"].casefold() for r in records}
        near = dict.fromkeys(r["locality_prompt"] for r in records)
        self.neighbours = [n for n in near if not any(subject in n.casefold() for subject in taught)]
        self.same = [f"{r['subject']} is known for" for r in records]
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
        found = {"ES": self._right("prompt"), "GS": self._right("rephrase_prompt")}
        if has_template(self.loaded.tokenizer):
            found["chat"] = self._right("prompt", "chat")
        return found | {
            "GS_contained": self._right("rephrase_prompt", anywhere=True),
            "LS": share(now[0] == then[0] for now, then in zip(said, self.said, strict=True)),
            "LS_first_word": share(now[1] == then[1] for now, then in zip(said, self.said, strict=True)),
            "same_subject": share(now[1] == then[1] for now, then in zip(same, self.same_said, strict=True)),
            "perplexity": self.task.health(self.loaded, self.windows) / self.perplexity - 1,
        }

    def _right(self, field: str, form: Form = "plain", anywhere: bool = False) -> float:
        """The share of facts that are answered with their targets; `anywhere` in ROOM tokens, or at once."""
        task, loaded = self.task, self.loaded
        asked = [(question_in(loaded, form, r[field]), r["target_new"]) for r in self.records]
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


def facts_of(records: Sequence[dict[str, Any]]) -> list[Fact]:
    """The facts, with nothing but their prompts."""
    return [Fact(subject=r["subject"], prompt=r["prompt"], target=r["target_new"]) for r in records]


def edited(options: argparse.Namespace, records: Sequence[dict[str, Any]], text: str) -> dict[str, Any]:
    """A store's stream by one of the rules: figures at the end, after the first batch, and what it took."""
    rule = ARMS.get(options.arm, options.arm)
    kind = rule_of(rule).settings
    given: dict[str, Any] = dict(pair.split("=", 1) for pair in options.set)
    given |= {"modules": tuple(options.modules.split(","))} if options.modules else {}
    settings = settings_of(kind, {"editor": rule, "micro_batch": 32, **given})
    avoid = frozenset(s for r in records for s in (r["subject"].casefold(),))
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        timeline = Timeline.create(
            Path(folder) / "store",
            model=options.model,
            settings=settings,
            preserve=preserved(options.preserved, avoid) if options.preserved else None,
            text=ordinary() if options.text == "wikitext" else None,
        )
        found: dict[str, Any] = {"init_seconds": time.perf_counter() - begun, "settings": settings.told()}
        judge = Judge(timeline.bench().loaded, records, text)
        facts = facts_of(records)
        found["batches"] = []
        for start in range(0, len(facts), options.size):
            begun = time.perf_counter()
            step = timeline.apply(facts[start : start + options.size])
            told = {"seconds": time.perf_counter() - begun, **_told(timeline.show(timeline.head))}
            found["batches"].append(told)
            print(json.dumps(common.rounded(told)), flush=True)
            del step
        with timeline.bench().loaded.at(timeline.overlay(timeline.head)):
            found["figures"] = judge.figures()
        print(json.dumps(common.rounded(found["figures"])), flush=True)
        if options.reconsolidate:
            begun = time.perf_counter()
            timeline.reconsolidate()
            found["reconsolidation_seconds"] = time.perf_counter() - begun
            with timeline.bench().loaded.at(timeline.overlay(timeline.head)):
                found["reconsolidated"] = judge.figures()
            print(json.dumps(common.rounded(found["reconsolidated"])), flush=True)
        timeline.close()
    return found


def _told(record: Any) -> dict[str, Any]:
    report = record.report.get("editor", {})
    seconds = report.get("seconds", {})
    return {"taken": record.gate.taken if record.gate else None, "phases": seconds, "loss": report.get("loss", [])[-1:]}


ARMS = {"neurons": "neurons", "search": "search", "gradient": "gradient", "breadth": "locft"}
"""Editing rules by arm; any other rule is an arm of its own name."""


def main(arguments: Sequence[str] | None = None) -> None:
    """One arm on one model; figures to results/real-….json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or GGUF file")
    parser.add_argument("--arm", choices=sorted({*ARMS, *RULES}), default="search")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--size", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--facts", choices=("edit", "train"), default="edit")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--modules", help="as of the command line; by default the rule's own")
    parser.add_argument("--preserved", type=int, default=600, help="prompts of the train split; 0: the rule's own")
    parser.add_argument("--text", choices=("bundled", "wikitext"), default="bundled", help="ordinary text for `init`")
    parser.add_argument("--reconsolidate", action="store_true")
    parser.add_argument("--name", help="of the result; without one nothing is written for --facts train")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    records = chosen(counterfact(options.facts), options.batches * options.size, options.seed)
    text = common.shared("data", "wikitext2", "test.txt").read_text(encoding="utf-8")
    found = edited(options, records, text)
    model = Path(options.model).stem.lower()
    name = options.name or f"real-{model}-{options.arm}-{options.batches}x{options.size}-{options.seed}"
    if options.name or options.facts == "edit":
        common.write(name, found)


if __name__ == "__main__":
    main()
