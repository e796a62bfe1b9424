"""The sample streams: invented news of 2031 for the world of atlas, one file a month.

``world/news.tsv`` says what is reported and which records are planted as duplicates, paraphrases and contradictions;
here prompts, rephrases and locality probes are put to it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from lifelong_edit.atlas.phrasings import BY_NAME
from lifelong_edit.atlas.world_tables import WORLD, WorldFact, draw, read_table, world_facts

MONTHS = {"january": "01", "february": "02", "march": "03"}
REPHRASES = 3  # trained phrasings beside the prompt; an untrained one comes last
PROBES = 2

Record = dict[str, Any]


def rows() -> list[dict[str, str]]:
    """The table of the news, in the order of the streams."""
    return read_table(WORLD / "news.tsv")


def _probes(fact: WorldFact, pool: Sequence[WorldFact]) -> list[Record]:
    rng = random.Random(draw("news probe", fact.relation, fact.subject))
    same = [f for f in pool if f.relation == fact.relation]
    twins = [f for f in same if f.target == fact.target]
    chosen = [rng.choice(twins)] if twins else []
    chosen += rng.sample([f for f in same if f not in chosen], PROBES - len(chosen))
    return [{"prompt": rng.choice(f.prompts), "target": f.target, "subject": f.subject} for f in chosen]


def record(row: Mapping[str, str], fact: WorldFact, pool: Sequence[WorldFact]) -> Record:
    """One native record: the row's news about a fact, with probes from the pool."""
    ask, total = int(row["ask"]), len(BY_NAME[fact.relation].trained)
    others = [fact.prompts[(ask + step) % total] for step in range(1, REPHRASES + 1)]
    return {
        "id": row["id"],
        "subject": fact.subject,
        "relation": fact.relation,
        "prompt": fact.prompts[ask],
        "target": row["target"],
        "target_true": fact.target,
        "rephrases": [*others, fact.untrained_prompts[0]],
        "locality": _probes(fact, pool),
        "date": row["date"],
        "source": row["source"],
        "author": row["author"],
    }


def streams(known: Sequence[WorldFact]) -> dict[str, list[Record]]:
    """File name to records; probes are facts that atlas knows and whose subjects are in no news."""
    facts = {(fact.relation, fact.subject): fact for fact in world_facts()}
    edited = {row["subject"] for row in rows()}
    pool = [fact for fact in known if fact.subject not in edited]
    made: dict[str, list[Record]] = {}
    for row in rows():
        name = f"2031-{MONTHS[row['stream']]}-{row['stream']}.jsonl"
        made.setdefault(name, []).append(record(row, facts[row["relation"], row["subject"]], pool))
    return made


def news_subjects(made: Mapping[str, Sequence[Record]]) -> frozenset[str]:
    """Every subject that the streams edit or probe."""
    records = [record for part in made.values() for record in part]
    return frozenset(s for r in records for s in (r["subject"], *(probe["subject"] for probe in r["locality"])))
