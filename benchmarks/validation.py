"""Streams of the training facts, to choose settings on: what is edited, what is probed and what is preserved."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec

from benchmarks.bench_streams import Stream, make_stream
from lifelong_edit.facts import Fact, Probe, preserved_prompts_of
from lifelong_edit.tracing.rows import subjects_of

CHOSEN: dict[str, Any] = {"modules": ["0-2@subject", "3-5"], "passes": 6, "preserved_keys": 0.5}
"""What these facts chose for trex-gpt2-mini, beside the defaults."""
NEAR = 330
"""At most so many facts are set aside that share relation and true answer with an edited one."""
FAR = 60
"""So many others are set aside."""


def validation(facts: Sequence[Fact], count: int, seed: int) -> tuple[Stream, list[Probe]]:
    """A stream of about `count` facts drawn by seed, and the preserved prompts.

    Facts are set aside by subject: no subject is edited and probed, or probed and preserved. Most neighbours that
    these facts come with are facts among them, so locality is asked on facts that are set aside instead.
    """
    generator = random.Random(seed)
    subjects = sorted(subjects_of(facts))
    generator.shuffle(subjects)
    place = {subject: i for i, subject in enumerate(subjects)}
    order = sorted(facts, key=lambda fact: (place[fact.subject.casefold()], fact.digest))
    taught, rest = order[:count], order[count:]
    edited = subjects_of(taught)
    rest = [fact for fact in rest if fact.subject.casefold() not in edited]
    answers = {(fact.relation, fact.target_true) for fact in taught}
    near = [fact for fact in rest if (fact.relation, fact.target_true) in answers][:NEAR]
    far = [fact for fact in rest if fact not in near][:FAR]
    probed = subjects_of([*near, *far])
    stream = make_stream([_beside(fact, near) for fact in taught], count, seed)
    stream.unedited = far
    kept = [fact for fact in rest if fact.subject.casefold() not in probed]
    return stream, [probe for fact in kept for probe in preserved_prompts_of(fact)]


def _beside(fact: Fact, near: Sequence[Fact]) -> Fact:
    """The fact with those neighbours that were set aside."""
    own = [f for f in near if (f.relation, f.target_true) == (fact.relation, fact.target_true)]
    return msgspec.structs.replace(fact, locality=tuple(Probe(f.prompt, f.target_true, f.subject) for f in own))
