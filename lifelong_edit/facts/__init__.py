"""Facts: the record, and readers of every shape and source in which users have them."""

from __future__ import annotations

from lifelong_edit.facts.asking import as_question, prompt_in, question_of
from lifelong_edit.facts.following import follow_facts, require_growing
from lifelong_edit.facts.given import UnusedFieldsWarning, as_batch
from lifelong_edit.facts.mentioning import mentions, put_in
from lifelong_edit.facts.published import VERBALISED, claim_of
from lifelong_edit.facts.reading import (
    ReadReport,
    describe_unused,
    general_names,
    general_prompts,
    preserved_prompts_of,
    read_facts,
    read_prompts,
)
from lifelong_edit.facts.record import GLUE, MULTI_HOP, Fact, Probe, Record
from lifelong_edit.facts.relations import Relations, read_relations, relations_of
from lifelong_edit.facts.shapes import Reader, Skip, mapping_of, verbalise_claim
from lifelong_edit.facts.sources import can_read_twice

__all__ = [
    "GLUE",
    "MULTI_HOP",
    "VERBALISED",
    "Fact",
    "Probe",
    "ReadReport",
    "Reader",
    "Record",
    "Relations",
    "Skip",
    "UnusedFieldsWarning",
    "as_batch",
    "as_question",
    "can_read_twice",
    "claim_of",
    "describe_unused",
    "follow_facts",
    "general_names",
    "general_prompts",
    "mapping_of",
    "mentions",
    "preserved_prompts_of",
    "prompt_in",
    "put_in",
    "question_of",
    "read_facts",
    "read_prompts",
    "read_relations",
    "relations_of",
    "require_growing",
    "verbalise_claim",
]
