"""Questions answered otherwise: one batch of many facts, and a stream, on the bundled encoder-decoder `atlas-t5`.

Facts are those of the world of atlas whose subjects are to be edited, and that `atlas-t5` answers in all twelve ways;
each gets another answer of its relation. A drawn question is taught with two others as rephrases; ES asks the
question, GS the fourth one, which was never given, LS the questions about subjects that nobody edits, whose answers
have to be the base model's. All by generation, the end included. No setting was chosen on any that is edited.

    python -m benchmarks.bench_seq2seq [--arm gradient] [--size 512] [--stream 20x50] [--speed]

`--speed` compares an edit of a T5 of random weights, of the shape of t5-small (60 M parameters), with bare passes over
the same rows. Figures of arms that are not run again stay in results/seq2seq.json.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from benchmarks import common
from benchmarks.bench_fever import taught
from lifelong_edit import atlas
from lifelong_edit.atlas.asking import questions
from lifelong_edit.atlas.build_t5 import answered
from lifelong_edit.atlas.datasets import counterfactual, role, spread
from lifelong_edit.atlas.questions import asked
from lifelong_edit.atlas.world_tables import WorldFact, draw, world_facts
from lifelong_edit.bench import Bench, State, prepare, silent
from lifelong_edit.editors.contract import Editor, moved_by
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.facts import Fact
from lifelong_edit.models import BASE, LoadedModel, by_length, load_model
from lifelong_edit.settings import settings_of
from lifelong_edit.tasks import task_of
from lifelong_edit.timeline.defaults import default_preserved, default_text
from lifelong_edit.timeline.model import make_editor
from lifelong_edit.tracing.rows import Row, fact_rows

ARMS: dict[str, dict[str, Any]] = {
    "gradient": {},
    "gradient, chosen": {"passes": 6, "c0": 300},
    "ultraedit": {},
    "ft": {},
    "grace": {},
}
"""Rules without a trained network, since none is trained for this model, and what is set beside their defaults.

What is chosen was so on 384 facts about the subjects that nobody edits here, of ten settings.
"""
EDITED, BESIDE = ("train", "validation"), ("train probe", "validation probe")
NEIGHBOURS, ROOM = 300, 12
SMALL_T5 = {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_decoder_layers": 6, "num_heads": 8}
SPEED_FACTS = 32


def known(roles: Sequence[str], model: LoadedModel) -> list[WorldFact]:
    """The facts about subjects of some roles that the model answers in all ways, the relations in turn."""
    facts = [fact for fact in world_facts() if role(fact.subject) in roles]
    pairs = [(fact, text) for fact in facts for text in asked(fact)]
    good = answered(model.model, model.tokenizer, pairs)
    wrong = {fact for (fact, _), right in zip(pairs, good, strict=True) if not right}
    return spread([fact for fact in facts if fact not in wrong], len(facts), "bench")


def edit_of(fact: WorldFact) -> tuple[Fact, str]:
    """A fact with another answer, and the question that is kept from it."""
    prompt, *others, held = questions(fact)
    target = counterfactual(fact, random.Random(draw("bench target", fact.relation, fact.subject)))
    own = {"subject": fact.subject, "relation": fact.relation, "target_true": fact.target}
    return Fact(prompt=prompt, target=target, rephrases=tuple(others), **own), held


class Judge:
    """Asks an edited model, and holds it against the base."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded, self.task = loaded, task_of(loaded)
        pairs = [edit_of(fact) for fact in known(EDITED, loaded)]
        self.facts = [fact for fact, _ in pairs]
        self.held = {fact.digest: held for fact, held in pairs}
        self.others = [questions(fact)[0] for fact in known(BESIDE, loaded)[:NEIGHBOURS]]
        with loaded.at(BASE):
            self.said = self.task.answer(loaded, self.others, ROOM)
        self.windows = self.task.windows(loaded, atlas.heldout_text_path().read_text(encoding="utf-8"), 10)

    def _right(self, pairs: Sequence[tuple[str, str]]) -> float:
        said = self.task.answer(self.loaded, [question for question, _ in pairs], ROOM)
        verdicts = [self.task.judge(self.loaded, *pair, a) for pair, a in zip(pairs, said, strict=True)]
        return sum(verdict.right and verdict.ended for verdict in verdicts) / len(verdicts)

    def figures(self, editor: Editor, state: State) -> dict[str, float]:
        """ES, GS, LS and the perplexity of text."""
        facts = list(state.live.values())
        with self.loaded.at(editor.overlay(state)):
            others = self.task.answer(self.loaded, self.others, ROOM)
            return {
                "ES": self._right([(fact.prompt, fact.target) for fact in facts]),
                "GS": self._right([(self.held[fact.digest], fact.target) for fact in facts]),
                "LS": sum(a == b for a, b in zip(others, self.said, strict=True)) / len(others),
                "perplexity": self.task.health(self.loaded, self.windows),
            }


def run(name: str, sizes: Sequence[int], stream: str | None) -> dict[str, Any]:
    """One batch of each size, each from the base, and a stream with a reconsolidation at its end."""
    editor_name = name.partition(",")[0]
    rule = rule_of(editor_name)
    settings = settings_of(rule.settings, {"editor": editor_name, **ARMS[name]})
    loaded = load_model("atlas-t5", places=rule.places)
    preserve = default_preserved("atlas-t5")
    fixed = prepare(loaded, settings, text=default_text(), preserve=preserve, statistics=rule.statistics)
    editor, judge = make_editor(Bench(loaded, settings, fixed)), Judge(loaded)
    found: dict[str, Any] = {
        "settings": settings.told(),
        "facts": len(judge.facts),
        "base perplexity": judge.task.health(loaded, judge.windows),
    }
    for size in sizes:
        state, seconds = taught(editor, State(digest="base"), judge.facts[:size])
        found[str(len(state.live))] = {**judge.figures(editor, state), "processor": seconds}
        print(name, len(state.live), json.dumps(common.rounded(found[str(len(state.live))])), flush=True)
    if stream:
        batches, size = (int(n) for n in stream.split("x"))
        state, spent = State(digest="base"), 0.0
        for start in range(0, min(batches * size, len(judge.facts)), size):
            state, seconds = taught(editor, state, judge.facts[start : start + size])
            spent += seconds
        told = found[stream] = {"live": len(state.live), "stream": {**judge.figures(editor, state), "processor": spent}}
        if rule.relearns:
            begun = time.process_time()
            state = moved_by(state, editor.relearn(list(state.live.values()), say=silent), ())
            spent = time.process_time() - begun
            told["reconsolidated"] = {**judge.figures(editor, state), "processor": spent}
        print(name, stream, json.dumps(common.rounded(told)), flush=True)
    return found


def speed() -> dict[str, Any]:
    """Processor seconds of an edit in one and in two rounds, and of a bare pass over the same rows."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = AutoTokenizer.from_pretrained(atlas.t5_dir())
        torch.manual_seed(0)
        words = {"vocab_size": len(tokenizer), "decoder_start_token_id": tokenizer.pad_token_id}
        T5ForConditionalGeneration(T5Config(**SMALL_T5, **words)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        loaded = load_model(folder)
    facts = [edit_of(fact)[0] for fact in spread(world_facts(), SPEED_FACTS, "speed")]
    plain = {"editor": "gradient", "preserved": 0, "rehearse": 0, "phrasings": 0, "more_passes": 0, "text_tokens": 4000}
    one = settings_of(rule_of("gradient").settings, {**plain, "passes": 1})
    bench = Bench(loaded, one, prepare(loaded, one, text=default_text()))
    rows = fact_rows(loaded, facts, 0)
    spent = {}
    for rounds in (1, 2):
        editor = make_editor(bench.under(one.replace(passes=rounds)))
        spent[rounds] = taught(editor, State(digest="base"), facts)[1]
    begun = time.process_time()
    bare_pass(loaded, rows, one.micro_batch)
    bare = time.process_time() - begun
    found = {"parameters": sum(p.numel() for p in loaded.model.parameters()), "facts": len(facts)}
    found |= {"modules": [module.name for module in loaded.modules]}
    times = {"one round": spent[1], "two rounds": spent[2], "a round more": spent[2] - spent[1], "bare pass": bare}
    print("speed", json.dumps(common.rounded(times)), flush=True)
    return {**found, "processor": times, "a round more, in bare passes": (spent[2] - spent[1]) / bare}


def bare_pass(loaded: LoadedModel, rows: Sequence[Row], micro_batch: int) -> None:
    """One forward and backward pass over rows, gradients of the edited matrices and nothing else."""
    task, weights = task_of(loaded), [loaded.model.get_submodule(module.name).weight for module in loaded.modules]
    loaded.model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    for chosen in by_length([len(row.encoded.ids) for row in rows], micro_batch):
        part = [rows[i] for i in chosen]
        batch = task.collate(loaded, [row.encoded for row in part])
        losses, _ = task.loss(task.logits(loaded, batch), batch, part)
        torch.autograd.grad(losses.sum(), weights)
    loaded.model.requires_grad_(False)


def main(arguments: Sequence[str] | None = None) -> None:
    """What is asked for; figures to results/seq2seq.json, beside those that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", action="append", choices=ARMS, help="by default all")
    parser.add_argument("--size", action="append", type=int, help="facts of a batch; by default 8, 64, 512")
    parser.add_argument("--stream", metavar="BATCHESxSIZE")
    parser.add_argument("--speed", action="store_true", help="that alone")
    options = parser.parse_args(arguments)
    told = common.RESULTS / "seq2seq.json"
    results = json.loads(told.read_text(encoding="utf-8"))["results"] if told.is_file() else {}
    if options.speed:
        common.write("seq2seq", {**results, "speed": speed()})
        return
    for name in options.arm or ARMS:
        found = run(name, options.size if options.size is not None else (8, 64, 512), options.stream)
        results[name] = {**results.get(name, {}), **found}
        common.write("seq2seq", results)


if __name__ == "__main__":
    main()
