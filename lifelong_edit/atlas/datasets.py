"""Make the data files that ship with atlas: ``python -m lifelong_edit.atlas.datasets [--out DIR] [--news DIR]``.

Every subject has one role, drawn from its name: edited in training, edited in validation, probed beside either, or
preserved. Subjects of the sample streams and their probes are taken out first. So no file asks about a subject that
another one edits.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lifelong_edit.atlas import model_dir
from lifelong_edit.atlas.corpus import paragraphs
from lifelong_edit.atlas.news import news_subjects, streams
from lifelong_edit.atlas.world_tables import WorldFact, draw, subject_order, world_facts

TRAIN, VALIDATION, PRESERVED = 900, 200, 1000
TEXT_BYTES, HELD_BYTES = 100_000, 80_000
PROBES = 2
# Shares of the subjects that no stream needs, in parts of a hundred.
ROLES = (("train", 35), ("validation", 8), ("train probe", 14), ("validation probe", 7), ("preserved", 36))

Record = dict[str, Any]


@dataclass(frozen=True)
class Known:
    """The facts that atlas answers in all eight phrasings, and which untrained phrasings it also answers."""

    facts: tuple[WorldFact, ...]
    untrained: frozenset[str]


@cache
def known() -> Known:
    """Ask the bundled model everything once."""
    import torch
    from transformers import AutoTokenizer, GPT2LMHeadModel

    from lifelong_edit.atlas.judging import answered

    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    model = GPT2LMHeadModel.from_pretrained(model_dir(), dtype=torch.float32).eval()
    pairs = [(fact, prompt) for fact in world_facts() for prompt in fact.prompts]
    wrong = {pair[0] for pair, good in zip(pairs, answered(model, tokenizer, pairs), strict=True) if not good}
    facts = tuple(fact for fact in world_facts() if fact not in wrong)
    spare = [(fact, prompt) for fact in facts for prompt in fact.untrained_prompts]
    right = answered(model, tokenizer, spare)
    return Known(facts, frozenset(prompt for (_, prompt), good in zip(spare, right, strict=True) if good))


def role(subject: str) -> str:
    """What a subject that is in no stream may be used for; a function of its name alone."""
    place = draw("role", subject) % 100
    for name, portion in ROLES:
        if place < portion:
            return name
        place -= portion
    raise AssertionError("the roles' shares add up to a hundred")


def of_role(name: str, taken: frozenset[str]) -> tuple[WorldFact, ...]:
    """The known facts of a role's subjects, without the subjects that the streams edit or probe."""
    return tuple(f for f in known().facts if f.subject not in taken and role(f.subject) == name)


def spread(facts: Iterable[WorldFact], count: int, seed: object) -> list[WorldFact]:
    """``count`` facts, taken from the relations in turn so that a large relation does not crowd out a small one."""
    queues: dict[str, list[WorldFact]] = {}
    for fact in subject_order(tuple(facts), "spread", seed):
        queues.setdefault(fact.relation, []).append(fact)
    ranked = [(i, draw("turn", seed, i, name), fact) for name, q in queues.items() for i, fact in enumerate(q)]
    ranked.sort(key=lambda entry: entry[:2])
    return [fact for _, _, fact in ranked[:count]]


def neighbours(fact: WorldFact, pool: Sequence[WorldFact], rng: random.Random, count: int = PROBES) -> list[Record]:
    """True facts of the same relation as probes; the first has the same true object wherever the pool has one."""
    same = [f for f in pool if f.relation == fact.relation and f.subject != fact.subject]
    twins = [f for f in same if f.target == fact.target]
    chosen = [rng.choice(twins)] if twins else []
    others = [f for f in same if f not in chosen]
    chosen += rng.sample(others, min(count - len(chosen), len(others)))
    return [{"prompt": rng.choice(f.prompts), "target": f.target, "subject": f.subject} for f in chosen]


def counterfactual(fact: WorldFact, rng: random.Random) -> str:
    """Another object of the same relation, as often drawn as the world has it."""
    return rng.choice([f.target for f in world_facts() if f.relation == fact.relation and f.target != fact.target])


def edit(fact: WorldFact, pool: Sequence[WorldFact]) -> Record:
    """One counterfactual edit: a drawn prompt, the other seven phrasings, and last an untrained one."""
    rng = random.Random(draw("edit", fact.relation, fact.subject))
    prompts = list(fact.prompts)
    rng.shuffle(prompts)
    spare = sorted(fact.untrained_prompts, key=lambda prompt: prompt not in known().untrained)
    return {
        "id": f"atlas-{draw('id', fact.relation, fact.subject):016x}",
        "subject": fact.subject,
        "relation": fact.relation,
        "prompt": prompts[0],
        "target": counterfactual(fact, rng),
        "target_true": fact.target,
        "rephrases": [*prompts[1:], spare[0]],
        "locality": neighbours(fact, pool, rng),
    }


def edits(name: str, count: int, taken: frozenset[str]) -> list[Record]:
    """The edits of one part, each with probes from the part's own pool."""
    pool = of_role(f"{name} probe", taken)
    return [edit(fact, pool) for fact in spread(of_role(name, taken), count, name)]


def preserved(taken: frozenset[str]) -> list[Record]:
    """Prompts of subjects that no bundled file edits or probes, over all relations."""
    chosen = spread(of_role("preserved", taken), PRESERVED, "preserved")
    return [
        {"prompt": random.Random(draw("ask", f.relation, f.subject)).choice(f.prompts)}
        | {"subject": f.subject, "relation": f.relation}
        for f in chosen
    ]


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """One JSON object a line, in UTF-8 as it is read by people."""
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")


def main() -> None:
    """Write the bundled files, and with ``--news`` the sample streams."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(prog="python -m lifelong_edit.atlas.datasets", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=here, help="folder of the bundled files")
    parser.add_argument("--news", type=Path, default=here.parents[1] / "facts", help="folder of the sample streams")
    args = parser.parse_args()
    made = streams(known().facts)
    for name, records in made.items():
        write_lines(args.news / name, records)
    taken = news_subjects(made)
    write_lines(args.out / "edits_train.jsonl", edits("train", TRAIN, taken))
    write_lines(args.out / "edits_validation.jsonl", edits("validation", VALIDATION, taken))
    write_lines(args.out / "preserve.jsonl", preserved(taken))
    for name, text in (
        ("text_train.txt", paragraphs("train", TEXT_BYTES)),
        ("text_heldout.txt", paragraphs("heldout", HELD_BYTES)),
    ):
        (args.out / name).write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
