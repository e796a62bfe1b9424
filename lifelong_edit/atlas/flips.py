"""Make the files that go with atlas-check: ``python -m lifelong_edit.atlas.flips [--out DIR] [--news DIR]``.

Claims that it tells right, with the other label: half of them true ones that are to be refuted. Subjects have the roles
that they have for atlas, so no file asks about a subject that another one edits.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from lifelong_edit.atlas import check_model_dir
from lifelong_edit.atlas.claims import REFUTES, SUPPORTS, Claim, claims_of
from lifelong_edit.atlas.datasets import PROBES, Record, role, spread, write_lines
from lifelong_edit.atlas.world_tables import WorldFact, draw, world_facts

EDITS, STREAM, PRESERVED = 200, 32, 400
REPHRASES = 3  # trained phrasings beside the prompt; an untrained one comes last


@cache
def told() -> dict[tuple[str, str], dict[str, tuple[Claim, ...]]]:
    """By relation and subject, where all are told right, its true and its false claims in all ten phrasings."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    from lifelong_edit.atlas.checking import Encoder, right

    tokenizer = AutoTokenizer.from_pretrained(check_model_dir())
    model = BertForSequenceClassification.from_pretrained(check_model_dir(), dtype=torch.float32).eval()
    false = {(c.fact.relation, c.fact.subject): c.said for c in _firsts() if not c.true}
    claims = [
        Claim(fact, prompt, said)
        for fact in world_facts()
        if (fact.relation, fact.subject) in false
        for said in (fact.target, false[fact.relation, fact.subject])
        for prompt in (*fact.prompts, *fact.untrained_prompts)
    ]
    found: dict[tuple[str, str], dict[str, list[Claim]]] = {}
    wrong = set()
    for claim, good in zip(claims, right(model, Encoder(tokenizer), claims), strict=True):
        key = (claim.fact.relation, claim.fact.subject)
        found.setdefault(key, {}).setdefault(claim.label, []).append(claim)
        wrong |= set() if good else {key}
    return {key: {label: tuple(own) for label, own in of.items()} for key, of in found.items() if key not in wrong}


def _firsts() -> list[Claim]:
    """A true and a false claim about each fact."""
    return claims_of([(fact, fact.prompts[0]) for fact in world_facts()], "flips")


def facts_of(name: str, count: int) -> list[WorldFact]:
    """So many facts of the subjects of a role of which every claim is told right, over all relations."""
    return spread(
        [f for f in world_facts() if (f.relation, f.subject) in told() and role(f.subject) == name], count, name
    )


def probe(fact: WorldFact, label: str) -> Record:
    """A claim about a fact as a probe, with its label."""
    claims = told()[fact.relation, fact.subject][label]
    claim = claims[draw("probe", fact.relation, fact.subject, label) % len(claims)]
    return {"prompt": claim.text, "target": label, "subject": fact.subject}


def flip(fact: WorldFact, label: str, pool: Sequence[WorldFact]) -> Record:
    """A claim about a fact that has a label, and is to have the other, in a drawn phrasing and four others.

    The last is an untrained one. Beside it claims about other facts of the relation, one true and one false.
    """
    rng = random.Random(draw("flip", fact.relation, fact.subject))
    claims = told()[fact.relation, fact.subject][label]
    trained, untrained = list(claims[:-2]), claims[-2]
    rng.shuffle(trained)
    near = [f for f in pool if f.relation == fact.relation and f.subject != fact.subject]
    beside = rng.sample(near, min(PROBES, len(near)))
    return {
        "id": f"check-{draw('check', fact.relation, fact.subject):016x}",
        "subject": fact.subject,
        "relation": fact.relation,
        "prompt": trained[0].text,
        "target": REFUTES if label == SUPPORTS else SUPPORTS,
        "target_true": label,
        "rephrases": [claim.text for claim in (*trained[1 : 1 + REPHRASES], untrained)],
        "locality": [probe(f, name) for f, name in zip(beside, (SUPPORTS, REFUTES), strict=False)],
    }


def flips(name: str, count: int) -> list[Record]:
    """Flips of a role's subjects, true claims and false ones in turn."""
    pool = facts_of(f"{name} probe", 10_000)
    return [flip(fact, (SUPPORTS, REFUTES)[i % 2], pool) for i, fact in enumerate(facts_of(name, count))]


def preserved() -> list[Record]:
    """Claims of subjects that nobody edits or probes, true ones and false ones in turn."""
    found = []
    for i, fact in enumerate(facts_of("preserved", PRESERVED)):
        asked = probe(fact, (SUPPORTS, REFUTES)[i % 2])
        found.append({"prompt": asked["prompt"], "subject": fact.subject, "relation": fact.relation})
    return found


def main() -> None:
    """Write the bundled files, and the sample stream."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(prog="python -m lifelong_edit.atlas.flips", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=here, help="folder of the bundled files")
    parser.add_argument("--news", type=Path, default=here.parents[1] / "facts", help="folder of the sample streams")
    args = parser.parse_args()
    write_lines(args.out / "check_edits.jsonl", flips("train", EDITS))
    write_lines(args.out / "check_preserve.jsonl", preserved())
    (args.news / "check").mkdir(parents=True, exist_ok=True)
    write_lines(args.news / "check" / "flips.jsonl", flips("validation", STREAM))


if __name__ == "__main__":
    main()
