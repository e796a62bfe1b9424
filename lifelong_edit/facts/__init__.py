"""Facts: the record, and readers of every shape and source in which users have them."""

from __future__ import annotations

from lifelong_edit.facts.asking import as_question, prompt_in, question_of
from lifelong_edit.facts.following import follow_facts, require_growing
from lifelong_edit.facts.mentioning import mentions, put_in
from lifelong_edit.facts.reading import (
    ReadReport,
    general_names,
    general_prompts,
    preserved_prompts_of,
    read_facts,
    read_prompts,
)
from lifelong_edit.facts.record import GLUE, Fact, Probe, Record
from lifelong_edit.facts.shapes import VERBALISED, Skip, claim_of, verbalise_claim
from lifelong_edit.facts.sources import can_read_twice

__all__ = [
    "GLUE",
    "VERBALISED",
    "Fact",
    "Probe",
    "ReadReport",
    "Record",
    "Skip",
    "as_question",
    "can_read_twice",
    "claim_of",
    "follow_facts",
    "general_names",
    "general_prompts",
    "mentions",
    "preserved_prompts_of",
    "prompt_in",
    "put_in",
    "question_of",
    "read_facts",
    "read_prompts",
    "require_growing",
    "verbalise_claim",
]
