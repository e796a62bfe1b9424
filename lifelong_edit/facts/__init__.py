"""Facts: the record, and readers of every shape and source in which users have them."""

from __future__ import annotations

from lifelong_edit.facts.following import follow_facts, require_growing
from lifelong_edit.facts.mentioning import mentions, put_in
from lifelong_edit.facts.reading import ReadReport, preserved_prompts_of, read_facts, read_prompts
from lifelong_edit.facts.record import GLUE, Fact, Probe, Record
from lifelong_edit.facts.shapes import Skip, verbalise_claim
from lifelong_edit.facts.sources import can_read_twice

__all__ = [
    "GLUE",
    "Fact",
    "Probe",
    "ReadReport",
    "Record",
    "Skip",
    "can_read_twice",
    "follow_facts",
    "mentions",
    "preserved_prompts_of",
    "put_in",
    "read_facts",
    "read_prompts",
    "require_growing",
    "verbalise_claim",
]
