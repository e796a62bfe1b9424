"""What a fact is: one record to teach, and where in the input it stood."""

from __future__ import annotations

import hashlib
from functools import cached_property

import msgspec

from lifelong_edit.errors import BadInputError
from lifelong_edit.facts.dates import span_of


class Probe(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A prompt to ask the model, with the answer that is expected of it where one is known."""

    prompt: str
    target: str | None = None
    subject: str | None = None
    relation: str | None = None

    def __post_init__(self) -> None:
        _refuse_blank("probe with a blank `prompt`", self.prompt)


class Fact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, dict=True):
    """One record to teach: after `prompt`, the model shall answer `target`.

    Raises `BadInputError` where subject, prompt, target or a phrasing is blank, or `date` is not ISO 8601.
    """

    subject: str
    prompt: str
    target: str
    id: str | None = None
    relation: str | None = None
    rephrases: tuple[str, ...] = ()
    """Other phrasings of the prompt; some of them become rows of the solve."""
    locality: tuple[Probe, ...] = ()
    """Neighbours whose answers must stay as they are."""
    portability: tuple[Probe, ...] = ()
    """Questions whose answers follow from the fact."""
    target_true: str | None = None
    """What was the answer before."""
    counterfact_rephrase: str | None = None
    """CounterFact's own rephrase, which wraps the prompt into a sentence; never a row."""
    date: str | None = None
    """When the fact came into force, ISO 8601; a year, or a year and a month, will do (`facts.dates`)."""
    source: str | None = None
    author: str | None = None

    def __post_init__(self) -> None:
        for name in ("subject", "prompt", "target"):
            _refuse_blank(f"fact with a blank `{name}`", getattr(self, name))
        for rephrase in self.rephrases:
            _refuse_blank("fact with a blank text in its `rephrases`", rephrase)
        if self.date is not None:
            span_of(self.date)

    @cached_property
    def digest(self) -> str:
        """32 hex digits: BLAKE2b of the canonical JSON (sorted keys, defaults left out) of every field."""
        return hashlib.blake2b(msgspec.json.encode(self, order="sorted"), digest_size=16).hexdigest()


class Record(msgspec.Struct, frozen=True):
    """A fact at its place in the input; the place is (`file_digest`, `number`), see `places`."""

    fact: Fact
    file: str
    """The file's name as messages show it."""
    line: int
    """1-based line on which the record starts (of a data set: its 1-based number)."""
    file_digest: str
    """32 hex digits: BLAKE2b of the file's bytes when it was read, a torn last line and blanks at the end left out."""
    number: int
    """0-based number of the record in its file, bad records included."""
    earlier: tuple[str, ...] = ()
    """Digests that the file had when it was shorter and held this record already, of those that the reader was told:
    at (one of them, `number`) the record stood at the same place."""
    quarantined: str | None = None
    """Of a record that was put aside, and comes from a file written for review: the digest of the fact put aside."""

    @property
    def entry(self) -> str:
        """The digest under which a reviewed record is in quarantine: it may have been corrected since."""
        return self.quarantined or self.fact.digest

    @property
    def places(self) -> tuple[tuple[str, int], ...]:
        """The record's place, and what it was before the file grew."""
        return tuple((digest, self.number) for digest in (self.file_digest, *self.earlier))


def _refuse_blank(what: str, text: str) -> None:
    if not text.strip():
        raise BadInputError(f"found a {what}, expected text; fill it in or drop the record")
