"""Language models to be edited: families, loading, tokens, generation."""

from __future__ import annotations

from lifelong_edit.models.alone import without_hooks
from lifelong_edit.models.chat import encode_reply, encode_turn, end_of_turn, has_template, require_template, turn_span
from lifelong_edit.models.encoding import (
    Encoded,
    TokenBatch,
    by_length,
    encode,
    encode_prompt,
    encode_whole,
    pad,
    separator,
    special_front,
    subject_span,
    whole_span,
)
from lifelong_edit.models.families import FAMILIES, EditableModule, Family, Outlined
from lifelong_edit.models.fingerprint import fingerprint_of, tokenizer_fingerprint
from lifelong_edit.models.forms import PLAIN, Form, Forms, Question, Turn
from lifelong_edit.models.forward import head_input, last_position, masked_positions
from lifelong_edit.models.generation import Generation, Tell, end_ids, generate, generate_from_ids, generate_greedy
from lifelong_edit.models.loaded import LoadedModel, compose, require_fingerprint
from lifelong_edit.models.loading import load_model
from lifelong_edit.models.overlay import BASE, Overlay, Shifts
from lifelong_edit.models.passes import Passes

__all__ = [
    "BASE",
    "FAMILIES",
    "PLAIN",
    "EditableModule",
    "Encoded",
    "Family",
    "Form",
    "Forms",
    "Generation",
    "LoadedModel",
    "Outlined",
    "Overlay",
    "Passes",
    "Question",
    "Shifts",
    "Tell",
    "TokenBatch",
    "Turn",
    "by_length",
    "compose",
    "encode",
    "encode_prompt",
    "encode_reply",
    "encode_turn",
    "encode_whole",
    "end_ids",
    "end_of_turn",
    "fingerprint_of",
    "generate",
    "generate_from_ids",
    "generate_greedy",
    "has_template",
    "head_input",
    "last_position",
    "load_model",
    "masked_positions",
    "pad",
    "require_fingerprint",
    "require_template",
    "separator",
    "special_front",
    "subject_span",
    "tokenizer_fingerprint",
    "turn_span",
    "whole_span",
    "without_hooks",
]
