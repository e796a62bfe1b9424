"""The record shapes that users have, each recognised by its keys and turned into a `Fact`.

| shape | recognised by | prompt and target |
| --- | --- | --- |
| native | `prompt`, `target` | as they are |
| CounterFact, hallucination data | `prompt`, `target_new` | `target_new` |
| CounterFact as first published | `requested_rewrite` | its template filled with the subject |
| zsRE (MEND's format) | `src`, `alt` | the question `src`, the edit target `alt` |
| FEVER | `claim`, `label` | verbalised, see `verbalise_claim` |
| texts with labels | `text`, `label` | the text, and the label |

Surrounding white space is cut from prompts and targets: the tokenizer's behaviour decides what stands between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TypeVar

import msgspec

from lifelong_edit.errors import BadInputError
from lifelong_edit.facts.decoding import Value
from lifelong_edit.facts.record import Fact, Probe

T = TypeVar("T")

QUARANTINED = "quarantined"
"""The field in which a file written for review says where a record stood in quarantine."""


class Skip(Enum):
    """Why a sound record teaches nothing."""

    NOT_ENOUGH_INFO = "FEVER claim labelled NOT ENOUGH INFO"
    NO_TARGET = "zsRE record whose edit target `alt` is blank"


class _Answer(msgspec.Struct, frozen=True, rename={"text": "str"}):
    text: str


class _Rewrite(msgspec.Struct, frozen=True):
    prompt: str
    subject: str
    target_new: _Answer
    target_true: _Answer | None = None
    relation_id: str | None = None


class _Original(msgspec.Struct, frozen=True):
    requested_rewrite: _Rewrite
    case_id: int | str | None = None
    paraphrase_prompts: list[str] = []
    neighborhood_prompts: list[str] = []


class _CounterFact(msgspec.Struct, frozen=True):
    prompt: str
    target_new: str
    subject: str
    case_id: int | str | None = None
    ground_truth: str | None = None
    rephrase_prompt: str | None = None
    locality_prompt: str | None = None
    locality_ground_truth: str | None = None


class _Portability(msgspec.Struct, frozen=True, rename={"question": "New Question", "answer": "New Answer"}):
    question: str
    answer: str


class _ZsRE(msgspec.Struct, frozen=True):
    subject: str
    src: str
    alt: str
    rephrase: str | None = None
    answers: list[str] = []
    loc: str | None = None
    loc_ans: str | None = None
    portability: _Portability | None = None


class _Labelled(msgspec.Struct, frozen=True):
    text: str
    label: str
    id: int | str | None = None
    subject: str | None = None


class _Claim(msgspec.Struct, frozen=True):
    claim: str
    label: str
    id: int | str | None = None
    evidence: str | list[object] | None = None


def recognise(record: Value) -> Fact | Skip:
    """The fact of a record of any known shape.

    Raises `BadInputError` (without file and line) for an unknown shape, a missing or blank field or a wrong type.
    """
    for keys, reader in _SHAPES:
        if keys <= record.keys():
            return reader(record)
    raise BadInputError(_describe_unknown(record))


def entry_of(record: object) -> str | None:
    """The digest under which a record is in quarantine, if it was written for review."""
    told = record.get(QUARANTINED) if isinstance(record, dict) else None
    entry = told.get("fact") if isinstance(told, dict) else None
    return entry if isinstance(entry, str) and entry else None


def verbalise_claim(claim: str, evidence: str | None = None) -> str:
    """FEVER's claim as a prompt for a decoder model, to be answered with True (SUPPORTS) or False (REFUTES).

    `Claim: "…" Question: Is this claim true or false? Answer:`, and `Evidence: "…"` with a blank before it where the
    record brings the text of its evidence: symmetric FEVER pairs each claim with evidence for it and evidence against
    it, so that the claim alone has no label.
    """
    before = f'Evidence: "{evidence.strip()}" ' if evidence and evidence.strip() else ""
    return f'{before}Claim: "{claim.strip()}" Question: Is this claim true or false? Answer:'


def claim_of(prompt: str) -> tuple[str, str | None]:
    """The inverse of `verbalise_claim`: a claim and its evidence, if any; any other text is a claim itself."""
    found = _VERBALISED.fullmatch(prompt.strip())
    return (prompt, None) if found is None else (found["claim"], found["evidence"])


_VERBALISED = re.compile(
    '(?:Evidence: "(?P<evidence>.*)" )?Claim: "(?P<claim>.*)" Question: Is this claim true or false[?] Answer:',
    re.DOTALL,
)
VERBALISED = {"SUPPORTS": "True", "REFUTES": "False"}
"""FEVER's labels as the answers to verbalised claims."""


def _read_native(record: Value) -> Fact:
    trimmed = dict(record)
    if trimmed.pop(QUARANTINED, None) is not None and entry_of(record) is None:
        raise BadInputError(
            f"found a `{QUARANTINED}` without the `fact` in it, expected what `lifelong-edit conflicts --out` wrote; "
            "put it back, or take the line out"
        )
    for name in ("subject", "prompt", "target", "question"):
        if isinstance(text := trimmed.get(name), str):
            trimmed[name] = text.strip()
    if isinstance(trimmed.get("id"), int):
        trimmed["id"] = str(trimmed["id"])
    return _convert(trimmed, Fact)


def _read_counterfact(record: Value) -> Fact:
    found = _convert(record, _CounterFact)
    return _make_fact(
        subject=found.subject,
        prompt=found.prompt,
        target=found.target_new,
        id=None if found.case_id is None else f"counterfact-{found.case_id}",
        target_true=_text(found.ground_truth),
        counterfact_rephrase=_text(found.rephrase_prompt),
        locality=_probes((found.locality_prompt, found.locality_ground_truth)),
    )


def _read_original(record: Value) -> Fact:
    found = _convert(record, _Original)
    rewrite = found.requested_rewrite
    true = rewrite.target_true.text if rewrite.target_true else None
    return _make_fact(
        subject=rewrite.subject,
        prompt=rewrite.prompt.replace("{}", rewrite.subject),
        target=rewrite.target_new.text,
        id=None if found.case_id is None else f"counterfact-{found.case_id}",
        relation=rewrite.relation_id,
        target_true=_text(true),
        counterfact_rephrase=_text(next(iter(found.paraphrase_prompts), None)),
        locality=_probes(*((prompt, true) for prompt in found.neighborhood_prompts)),
    )


def _read_zsre(record: Value) -> Fact | Skip:
    found = _convert(record, _ZsRE)
    if not found.alt.strip():
        return Skip.NO_TARGET
    port = found.portability
    return _make_fact(
        subject=found.subject,
        prompt=found.src,
        target=found.alt,
        target_true=_text(next(iter(found.answers), None)),
        rephrases=tuple(text for text in [_text(found.rephrase)] if text),
        locality=_probes((found.loc, found.loc_ans)),
        portability=_probes((port.question, port.answer)) if port else (),
    )


def _read_claim(record: Value) -> Fact | Skip:
    found = _convert(record, _Claim)
    if found.label == "NOT ENOUGH INFO":
        return Skip.NOT_ENOUGH_INFO
    if found.label not in VERBALISED:
        raise BadInputError(
            f"found the label {found.label[:40]!r}, expected SUPPORTS, REFUTES or NOT ENOUGH INFO; correct it"
        )
    evidence = found.evidence if isinstance(found.evidence, str) else None
    return _make_fact(
        subject=found.claim,
        # A blank claim has to stay blank for the check of Fact to find it.
        prompt=verbalise_claim(found.claim, evidence) if found.claim.strip() else "",
        target=VERBALISED[found.label],
        id=None if found.id is None else f"fever-{found.id}",
    )


def _read_labelled(record: Value) -> Fact:
    found = _convert(record, _Labelled)
    return _make_fact(
        subject=_text(found.subject) or found.text,
        prompt=found.text,
        target=found.label,
        id=None if found.id is None else str(found.id),
    )


_SHAPES: tuple[tuple[frozenset[str], Callable[[Value], Fact | Skip]], ...] = (
    (frozenset({"prompt", "target"}), _read_native),
    (frozenset({"prompt", "target_new"}), _read_counterfact),
    (frozenset({"requested_rewrite"}), _read_original),
    (frozenset({"src", "alt"}), _read_zsre),
    (frozenset({"claim", "label"}), _read_claim),
    (frozenset({"text", "label"}), _read_labelled),
)


def _make_fact(**fields: object) -> Fact:
    given = {name: value.strip() if isinstance(value, str) else value for name, value in fields.items()}
    return Fact(**given)  # type: ignore[arg-type]


def _probes(*pairs: tuple[str | None, str | None]) -> tuple[Probe, ...]:
    found = ((_text(prompt), _text(target)) for prompt, target in pairs)
    return tuple(Probe(prompt, target) for prompt, target in found if prompt is not None)


def _text(text: str | None) -> str | None:
    """Trimmed text; None where there is none, for fields that may be left blank."""
    return text.strip() or None if text is not None else None


def _convert(record: Mapping[str, object], kind: type[T]) -> T:
    try:
        return msgspec.convert(record, kind)
    except msgspec.ValidationError as error:
        raise BadInputError(
            f"found a record that does not fit ({error}), expected the fields listed by `stream --help`; correct it"
        ) from None


def _describe_unknown(record: Value) -> str:
    keys = [repr(key[:40]) for key in list(record)[:8]]
    told = f"the key{'s' * (len(keys) > 1)} {', '.join(keys)}" if keys else "no keys"
    return (
        f"found a record with {told}, expected `subject`, `prompt` and `target` "
        "(or CounterFact's `prompt` and `target_new`, zsRE's `src` and `alt`, FEVER's `claim` and `label`, "
        "`text` and `label`); "
        "rename the fields"
    )
