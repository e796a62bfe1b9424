"""Make the stream that goes with atlas-t5: ``python -m lifelong_edit.atlas.asking [--news DIR]``.

Questions that it answers, each with another answer of the same relation. Subjects have the roles that they have for
atlas, so no file asks about a subject that another one edits.
"""

from __future__ import annotations

import argparse
import random
from functools import cache
from pathlib import Path

from lifelong_edit.atlas import t5_dir
from lifelong_edit.atlas.datasets import Record, counterfactual, role, spread, write_lines
from lifelong_edit.atlas.questions import QUESTIONS, asked
from lifelong_edit.atlas.world_tables import WorldFact, draw, world_facts

STREAM = 32


@cache
def known() -> tuple[WorldFact, ...]:
    """The facts that atlas-t5 answers in all twelve ways of asking."""
    import torch
    from transformers import AutoTokenizer, T5ForConditionalGeneration

    from lifelong_edit.atlas.build_t5 import answered

    tokenizer = AutoTokenizer.from_pretrained(t5_dir())
    model = T5ForConditionalGeneration.from_pretrained(t5_dir(), dtype=torch.float32).eval()
    names = ("validation", "validation probe")
    pairs = [(fact, text) for fact in world_facts() if role(fact.subject) in names for text in asked(fact)]
    wrong = {pair[0] for pair, good in zip(pairs, answered(model, tokenizer, pairs), strict=True) if not good}
    return tuple(dict.fromkeys(fact for fact, _ in pairs if fact not in wrong))


def questions(fact: WorldFact) -> list[str]:
    """The questions about a fact, in a drawn order."""
    found = [fact.prompt(question) for question in QUESTIONS[fact.relation]]
    random.Random(draw("question", fact.relation, fact.subject)).shuffle(found)
    return found


def stream() -> list[Record]:
    """Edits of questions: three others as rephrases and a phrasing of atlas' last; beside each a true neighbour."""
    probes = [fact for fact in known() if role(fact.subject) == "validation probe"]
    found = []
    for fact in spread([f for f in known() if role(f.subject) == "validation"], STREAM, "questions"):
        prompt, *others = questions(fact)
        near = [f for f in probes if f.relation == fact.relation][:1]
        found.append(
            {
                "id": f"t5-{draw('t5', fact.relation, fact.subject):016x}",
                "subject": fact.subject,
                "relation": fact.relation,
                "prompt": prompt,
                "target": counterfactual(fact, random.Random(draw("t5 target", fact.relation, fact.subject))),
                "target_true": fact.target,
                "rephrases": [*others, fact.prompts[0]],
                "locality": [{"prompt": questions(f)[0], "target": f.target, "subject": f.subject} for f in near],
            }
        )
    return found


def main() -> None:
    """Write the sample stream."""
    parser = argparse.ArgumentParser(prog="python -m lifelong_edit.atlas.asking", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--news", type=Path, default=Path(__file__).parents[2] / "facts", help="folder of the sample streams"
    )
    folder: Path = parser.parse_args().news / "t5"
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "questions.jsonl", stream())


if __name__ == "__main__":
    main()
