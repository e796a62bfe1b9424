"""What a fact is: one record to teach, and where in the input it stood."""

from __future__ import annotations

import hashlib
from functools import cached_property

import msgspec

from lifelong_edit.errors import BadInputError
from lifelong_edit.facts.checks import require_filled, require_probes, require_texts
from lifelong_edit.facts.dates import span_of

MULTI_HOP = "multi-hop"
"""The `kind` of a probe whose answer takes the fact and at least one other."""
GLUE = "\u2060"
"""In front of an answer: nothing stands between it and its prompt. Unicode's word joiner, which has no width."""


class Probe(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A prompt to ask the model, with the answer that is expected of it where one is known.

    Raises `BadInputError` where a field is no text, or `prompt` is blank.
    """

    prompt: str
    target: str | None = None
    subject: str | None = None
    relation: str | None = None
    question: str | None = None
    """The prompt as a turn of a conversation, see `facts.asking`."""
    aliases: tuple[str, ...] = ()
    """Other answers that are as right as the target."""
    kind: str | None = None
    """What it tests, in the words of the data it comes from; `MULTI_HOP` where the fact is one of several links."""

    def __post_init__(self) -> None:
        require_texts(self)
        require_filled(self, "question")

    @property
    def answers(self) -> tuple[str, ...]:
        """All that is right to say: the target, where there is one, and its aliases, each once."""
        return tuple(dict.fromkeys(((self.target,) if self.target else ()) + self.aliases))


class Fact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, dict=True):
    """One record to teach: after `prompt`, the model shall answer `target`.

    Raises `BadInputError`, naming the field, where one is not of its type or no Unicode text without NUL, where
    prompt, target, a phrasing or a subject that is given is blank, and where `date` is not ISO 8601: all that a record
    of a file may not hold either. A list is taken for a tuple, a mapping for a probe.
    """

    subject: str | None = None
    """What the fact is about. None: nobody said; rules that edit at the subject cannot take it then."""
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
    question: str | None = None
    """The prompt as a turn of a conversation ("What is the capital of France?"), for models that are asked through a
    chat template; None: made of the prompt, see `facts.asking`."""
    date: str | None = None
    """When the fact came into force, ISO 8601; a year, or a year and a month, will do (`facts.dates`)."""
    source: str | None = None
    author: str | None = None
    join: str | None = None
    """What stands between a prompt and the target: white space, or nothing (""). By default what the script needs."""

    def __post_init__(self) -> None:
        require_texts(self)
        require_filled(self, "subject")
        require_filled(self, "question")
        require_probes(self, Probe)
        if self.join is not None and self.join.strip():
            raise BadInputError(
                f"found {self.join!r} as `join` of a fact, expected white space or nothing; put it into the prompt"
            )
        if self.date is not None:
            span_of(self.date)

    @property
    def about(self) -> str:
        """What the fact is told apart by from those about something else: its subject, else its whole prompt."""
        return self.prompt if self.subject is None else self.subject

    @property
    def answer(self) -> str:
        """The target as models are taught and asked for it; see `joined`."""
        return self.joined(self.target)

    def joined(self, answer: str) -> str:
        """An answer with what the record says stands before it, as `models.encode` takes it."""
        return answer if self.join is None else (self.join or GLUE) + answer

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
    """32 hex digits: BLAKE2b of the file's bytes when it was read, a torn last line and blanks at the end left out.
    Empty where the record comes from no file: it has no place then."""
    number: int
    """0-based number of the fact in its file. A record of which none comes, a bad one among them, counts as one."""
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
        return tuple((digest, self.number) for digest in (self.file_digest, *self.earlier) if digest)
