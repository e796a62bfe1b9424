"""The record shapes that users have, each recognised by its keys and turned into facts.

The readers are in `published` (data made for editing), `everyday` (data that was not), and here (the native record,
and fields renamed by a map). Surrounding white space is cut from prompts and targets: the tokenizer's behaviour decides
what stands between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.facts import everyday, published
from lifelong_edit.facts.decoding import Value
from lifelong_edit.facts.fields import Fields, filled, make_fact
from lifelong_edit.facts.published import Read, verbalise_claim
from lifelong_edit.facts.record import Fact, Probe
from lifelong_edit.facts.relations import Relations, is_triple, read_triple
from lifelong_edit.facts.skipping import Skip

__all__ = ["QUARANTINED", "SHAPES", "Found", "Reader", "Shape", "Skip", "entry_of", "verbalise_claim"]

QUARANTINED = "quarantined"
"""The field in which a file written for review says where a record stood in quarantine."""
LISTED = ("digest", "state")
"""What `facts --json` says of a fact beside its record."""
NATIVE, MAPPED, TRIPLE, REQUEST = "native", "mapped", "triple", "request"
_LIVE = "live"
_TEXTS = ("subject", "prompt", "target", "question")


class Found(NamedTuple):
    """What a record was read as."""

    shape: str
    facts: tuple[Fact, ...] = ()
    skip: Skip | None = None
    unused: tuple[str, ...] = ()
    """Paths of the fields that its reader did not ask for."""


class Shape(NamedTuple):
    """A shape of records."""

    name: str
    keys: frozenset[str]
    """Those by which it is recognised."""
    read: Callable[[Fields], Read]
    what: str
    """Which data has it."""


def _shape(name: str, keys: str, read: Callable[[Fields], Read], what: str) -> Shape:
    return Shape(name, frozenset(keys.split()), read, what)


SHAPES: tuple[Shape, ...] = (
    _shape(REQUEST, "prompt target_new", published.read_request, "CounterFact made flat, KnowEdit, CKnowEdit, ROME"),
    _shape("rewrite", "requested_rewrite", published.read_rewrite, "CounterFact as first published, MQuAKE, AKEW"),
    _shape("zsre", "src alt", published.read_zsre, "zsRE in MEND's format"),
    _shape("fever", "claim label", published.read_claim, "FEVER, symmetric FEVER"),
    _shape("ripple", "edit", published.read_ripple, "RippleEdits"),
    _shape("big-edit", "update ans", published.read_big_edit, "WikiBigEdit"),
    _shape("blocks", "reliability", published.read_blocks, "WikiDYK"),
    _shape("blocks", "eval fact", published.read_blocks, "WikiDYK"),
    _shape("hallucination", "subject object question", published.read_hallucination, "HalluEditBench"),
    _shape("labels", "text labels", published.read_labels, "KnowEdit's WikiBio"),
    _shape("success", "success", published.read_success, "KnowEdit's Sanitation"),
    _shape("unke", "question answer para_question", published.read_unstructured, "UnKE"),
    _shape("unke", "question answer sub_question", published.read_unstructured, "UnKE"),
    *(_shape("question", f"question {a}", everyday.read_question, "questions and answers") for a in everyday.RIGHT),
    _shape("instruction", "instruction output", everyday.read_instruction, "Alpaca"),
    _shape("instruction", "instruction response", everyday.read_instruction, "Dolly"),
    *(_shape("completion", " ".join(p), everyday.read_completion, "a text and its end") for p in everyday.COMPLETIONS),
    _shape("label", "text label", everyday.read_labelled, "texts with labels"),
    _shape("conversation", "messages", everyday.read_conversation, "OpenAI's conversations"),
    _shape("conversation", "conversations", everyday.read_conversation, "ShareGPT's conversations"),
)
"""All but the native one, mzsRE's and triples, in the order in which they are looked for."""


@dataclass(frozen=True)
class Reader:
    """How records are read. mapping: of native fields, which of a record's fields holds each; see `mapping_of`.

    A record that has none of the fields that a map names is read by its own shape.
    """

    mapping: Mapping[str, str] = field(default_factory=dict)
    relations: Relations | None = None

    def __call__(self, record: Value) -> Found:
        """The facts of a record of any known shape.

        Raises `BadInputError` (without file and line) for an unknown shape, a missing or blank field or a wrong type.
        """
        value = without_null(record)
        if paths := _paths_in(value, self.mapping):
            _require_mapped(value, self.mapping, paths)
            found = _found(MAPPED, Fields(_renamed(value, self.mapping, paths)), _read_mapped)
            # The record may have a field of its own under a name that the map gives to another.
            shadowed = [name for name, source in self.mapping.items() if name in value and name != source]
            return found._replace(unused=(*found.unused, *shadowed))
        if {"prompt", "target"} <= value.keys():
            return _read_native(value)
        fields = Fields(value)
        for shape in SHAPES:
            if shape.keys <= value.keys():
                return _found(shape.name, fields, shape.read)
        if value and all(isinstance(part, dict) and {"src", "alt"} <= part.keys() for part in value.values()):
            return _found("languages", fields, published.read_languages)
        if is_triple(fields):
            return _found(TRIPLE, fields, lambda fields: read_triple(fields, self.relations))
        raise BadInputError(_describe_unknown(record, self.mapping))


def mapping_of(text: str | Iterable[str]) -> dict[str, str]:
    """A map from text, as in "prompt=question,target=answer": of native fields, which field of the records holds each.

    A field within an object is named with its path (`answer.value`). Raises UsageError for a field that the native
    record has not, for one that is named twice, and for a map without a prompt or a target.
    """
    known = Fact.__struct_fields__
    found: dict[str, str] = {}
    for pair in text.split(",") if isinstance(text, str) else [part for one in text for part in one.split(",")]:
        name, equals, source = (part.strip() for part in pair.partition("="))
        if not equals or not source or name not in known:
            raise UsageError(f"found --map {pair.strip()!r}, expected FIELD=NAME with one of {', '.join(known)}")
        if name in found:
            raise UsageError(f"found {name!r} twice in --map, expected each field once; leave one out")
        found[name] = source
    if missing := {"prompt", "target"} - found.keys():
        raise UsageError(f"found --map without {min(missing)!r}, expected prompt and target; add {min(missing)}=NAME")
    return found


def entry_of(record: object) -> str | None:
    """The digest under which a record is in quarantine, if it was written for review."""
    told = record.get(QUARANTINED) if isinstance(record, dict) else None
    entry = told.get("fact") if isinstance(told, dict) else None
    return entry if isinstance(entry, str) and entry else None


def without_null(value: Value) -> Value:
    """An object without its fields that are null, and those of the objects in it: null means absent."""
    return {name: _without_null(part) for name, part in value.items() if part is not None}


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return without_null(value)
    return [_without_null(part) for part in value] if isinstance(value, list) else value


def _found(shape: str, fields: Fields, read: Callable[[Fields], Read]) -> Found:
    found = read(fields)
    if isinstance(found, Skip):
        return Found(shape, skip=found)
    return Found(shape, tuple(found), unused=tuple(fields.left()))


# -- the native record


def _read_native(record: Value) -> Found:
    listed = LISTED if "digest" in record else ()
    given = {name: value for name, value in record.items() if name not in listed}
    if given.pop(QUARANTINED, None) is not None and entry_of(record) is None:
        raise BadInputError(
            f"found a `{QUARANTINED}` without the `fact` in it, expected what `lifelong-edit conflicts --out` wrote; "
            "put it back, or take the line out"
        )
    if "queries" in given:  # FastEdit's: they ask something, but nobody says what is right
        queries = Fields({"queries": given.pop("queries")}).texts("queries")
        given["portability"] = [*_list(given, "portability"), *({"prompt": text, "kind": "query"} for text in queries)]
    if listed:
        return _listed(record, given)
    for name in _TEXTS:
        if isinstance(text := given.get(name), str):
            given[name] = text.strip()
    if isinstance(given.get("id"), int):
        given["id"] = str(given["id"])
    fact = _convert(given)
    # What comes back from review as it was put aside was filled before.
    return Found(NATIVE, (fact if entry_of(record) == fact.digest else _filled(fact),))


def _listed(record: Value, given: Value) -> Found:
    """A fact as `facts --json` lists it: exactly that one again, or none, where it was not in force."""
    fact = _convert(given)
    if fact.digest != record["digest"]:
        raise BadInputError(
            f"found a record of the digest {str(record['digest'])[:40]!r} that holds another fact ({fact.digest}), "
            "expected it as `lifelong-edit facts --json` lists it; take `digest` out if it was changed on purpose"
        )
    if record.get("state", _LIVE) != _LIVE:
        return Found(NATIVE, skip=Skip.NOT_IN_FORCE)
    return Found(NATIVE, (fact,))


def _list(given: Value, name: str) -> list[object]:
    value = given.get(name, [])
    return value if isinstance(value, list) else [value]


def _filled(fact: Fact) -> Fact:
    """A native fact with its subject in its places."""
    changes: dict[str, Any] = {"prompt": filled(fact.prompt, fact.subject)}
    changes["rephrases"] = tuple(filled(text, fact.subject) for text in fact.rephrases)
    if fact.question is not None:
        changes["question"] = filled(fact.question, fact.subject)
    for name in ("locality", "portability"):
        changes[name] = tuple(_filled_probe(probe) for probe in getattr(fact, name))
    changed = {name: value for name, value in changes.items() if value != getattr(fact, name)}
    return msgspec.structs.replace(fact, **changed) if changed else fact


def _filled_probe(probe: Probe) -> Probe:
    prompt = filled(probe.prompt, probe.subject)
    return probe if prompt == probe.prompt else msgspec.structs.replace(probe, prompt=prompt)


def _convert(record: Mapping[str, object]) -> Fact:
    try:
        return msgspec.convert(record, Fact)
    except msgspec.ValidationError as error:
        raise BadInputError(
            f"found a record that does not fit ({error}), expected the fields listed by `stream --help`; correct it"
        ) from None


# -- records with other names


def _paths_in(record: Value, mapping: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """By native field the path at which a record has the field that a map names for it; without those it has not."""
    found = {}
    for name, source in mapping.items():
        path = (source,) if source in record else tuple(source.split("."))
        if _at(record, path) is not None:
            found[name] = path
    return found


def _at(record: Value, path: Sequence[str]) -> Any:
    value: Any = record
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _require_mapped(record: Value, mapping: Mapping[str, str], paths: Mapping[str, Sequence[str]]) -> None:
    for name in ("prompt", "target"):
        if name not in paths:
            raise BadInputError(
                f"found a record without {mapping[name]!r}, which --map calls its {name}, expected it beside "
                f"{_keys_of(record)}; fill it in, or name another field"
            )


def _renamed(record: Value, mapping: Mapping[str, str], paths: Mapping[str, tuple[str, ...]]) -> Value:
    """A record with what a map names under the names of the native record, and all else as it was."""
    rest = dict(record)
    for path in paths.values():
        rest = _without(rest, path)
    found = {name: _at(record, path) for name, path in paths.items()}
    return {name: value for name, value in rest.items() if name not in mapping} | found


def _without(value: Value, path: tuple[str, ...]) -> Value:
    """An object without what stands at a path."""
    name, *further = path
    inner = value.get(name)
    rest = {other: part for other, part in value.items() if other != name}
    return rest | {name: _without(inner, tuple(further))} if further and isinstance(inner, dict) else rest


def _read_mapped(fields: Fields) -> Read:
    said = fields.answers("target")
    if len(said) > 1:
        fields.spare("target")
    return [
        make_fact(
            fields,
            subject=fields.text("subject"),
            prompt=fields.require("prompt"),
            target=said[0] if said else fields.require("target"),
            target_true=fields.first("target_true"),
        )
    ]


def _keys_of(record: Value) -> str:
    return ", ".join(repr(key[:40]) for key in list(record)[:8])


def _describe_unknown(record: Value, mapping: Mapping[str, str]) -> str:
    told = f"the key{'s' * (len(record) > 1)} {_keys_of(record)}" if record else "no keys"
    if mapping:
        named = ", ".join(repr(source) for source in mapping.values())
        return f"found a record with {told}, expected those that --map names ({named}); correct the map"
    return (
        f"found a record with {told}, expected `prompt` and `target` (or the fields of another known shape, see "
        "docs/facts-format.md); rename the fields, or say which is which by --map prompt=NAME,target=NAME, with "
        "subject=NAME and rephrases=NAME where there are any"
    )
