"""A record as its reader sees it: each field that was asked for is used, and what is left over can be named."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from lifelong_edit.errors import BadInputError
from lifelong_edit.facts.checks import shown
from lifelong_edit.facts.mentioning import mentions
from lifelong_edit.facts.record import MULTI_HOP, Fact, Probe

ASKED = ("prompt", "question", "New Question", "query", "cloze")
"""What a probe's prompt is called."""
ANSWERED = ("target", "answer", "ground_truth", "answers", "New Answer", "target_new", "label", "labels")
"""What its answer is called."""
PLACES = ("{}", "{subject}")
"""What stands in a template for its subject."""

_PLACE = re.compile(r"\{\{(subject)?\}\}|\{(subject)?\}")
_HOPS = re.compile(r"(multi|two|three|four|\d+)[\s_-]*hops?|m[\s_-]?hop", re.IGNORECASE)
_PLAIN = ("relation", "date", "source", "author", "question", "target_true", "counterfact_rephrase")
_NAMES = ("id", "case_id")


class Fields:
    """The fields of an object. What is read by none of the methods is left over.

    Fields without a value (null, blank text, an empty list or object) are absent. Errors are `BadInputError`s without
    file and line.
    """

    def __init__(self, value: Mapping[str, object], path: str = "") -> None:
        self._value = {name: part for name, part in value.items() if not _is_empty(part)}
        self._path = path
        self._blank = value.keys() - self._value.keys()
        self._read: set[str] = set()
        self._inner: list[Fields] = []
        self._rest: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._value and name not in self._read

    @property
    def names(self) -> list[str]:
        """The fields with a value, in their order."""
        return list(self._value)

    def peek(self, name: str) -> object:
        """A field's value, which stays unread; None where there is none."""
        return self._value.get(name)

    def take(self, name: str) -> object:
        """A field's value as it is; None where there is none."""
        self._read.add(name)
        return self._value.get(name)

    def text(self, *names: str) -> str | None:
        """The trimmed text of the first of some fields that has a value; None where none has."""
        for name in names:
            if name in self:
                return _text(self.take(name), self._at(name))
        return None

    def require(self, *names: str) -> str:
        """As `text`, of a record that must have it; a blank field is read as blank, for `Fact` to refuse."""
        found = self.text(*names)
        if found is not None:
            return found
        if self._blank.intersection(names):
            return ""
        told = " or ".join(f"`{self._at(name)}`" for name in names)
        raise BadInputError(f"found a record without {told}, expected text; fill it in or drop the record")

    def name(self, *names: str) -> str | None:
        """An identifier, which may be a number."""
        for name in names:
            if name in self:
                found = self.take(name)
                plain = isinstance(found, int) and not isinstance(found, bool)
                return str(found) if plain else _text(found, self._at(name))
        return None

    def texts(self, *names: str) -> tuple[str, ...]:
        """The texts of the first of some fields that has any: a list of them, lists in it, or one by itself."""
        for name in names:
            if name in self:
                return tuple(_flat(self.take(name), self._at(name)))
        return ()

    def first(self, *names: str) -> str | None:
        """The first text of a list, of which the others are left over."""
        found = next((name for name in names if name in self), None)
        if found is None:
            return None
        texts = self.texts(found)
        if len(texts) > 1:
            self.spare(found)
        return texts[0] if texts else None

    def inner(self, name: str) -> Fields | None:
        """A field that is an object."""
        if name not in self:
            return None
        found = self.take(name)
        if not isinstance(found, dict):
            raise BadInputError(f"found {shown(found)} as `{self._at(name)}`, expected an object; correct it")
        return self._opened(found, self._at(name))

    def each(self, name: str) -> list[Fields]:
        """A field that is a list of objects, or one of them."""
        if name not in self:
            return []
        found = self.take(name)
        parts = found if isinstance(found, list) else [found]
        path = f"{self._at(name)}[]" if isinstance(found, list) else self._at(name)
        opened = []
        for part in parts:
            if not isinstance(part, dict):
                raise BadInputError(f"found {shown(part)} in `{self._at(name)}`, expected objects; correct it")
            opened.append(self._opened(part, path))
        return opened

    def answers(self, *names: str) -> tuple[str, ...]:
        """All right answers that a field gives: text, lists of texts, objects of a `value` and its `aliases`."""
        for name in names:
            if name in self:
                return tuple(dict.fromkeys(self._said(self.take(name), self._at(name))))
        return ()

    def spare(self, name: str) -> None:
        """Say that of a field's values not all are used."""
        self._rest.append(f"{self._at(name)}[1:]")

    def left(self) -> list[str]:
        """The paths of the fields that nobody asked for, each once."""
        own = [self._at(name) for name in self._value if name not in self._read]
        return list(dict.fromkeys([*own, *self._rest, *(path for inner in self._inner for path in inner.left())]))

    def probes(self, *names: str, kind: str | None = None) -> tuple[Probe, ...]:
        """The probes of the first of some fields that has any, in any of the forms in which they are written.

        A list of prompts or of objects with a prompt and its answers (`ASKED`, `ANSWERED`); one such object, which may
        hold lists of both; or an object of such by what they test, which becomes their `kind`.
        """
        for name in names:
            if name in self:
                return tuple(self._probes(self.take(name), self._at(name), kind))
        return ()

    def as_probes(self, kind: str | None) -> list[Probe]:
        """The probes of an object with a prompt, or a list of them, and the answers."""
        prompts = self.texts(*ASKED)
        given = next((name for name in ANSWERED if name in self), None)
        raw = None if given is None else self.peek(given)
        answers: Sequence[Sequence[str]]
        if isinstance(raw, list) and len(prompts) > 1 and len(raw) == len(prompts):
            self.take(given or "")
            answers = [tuple(self._said(part, self._at(given or ""))) for part in raw]
        else:
            answers = [self.answers(*ANSWERED)] * len(prompts)
        further = self.texts("aliases", "answer_alias", "answer_aliases")
        subject, relation, own = self.text("subject"), self.text("relation", "relation_id"), self.text("kind")
        turn = self.text("question")
        return [
            probe_of(prompt, (*said, *further), own or kind, subject, relation, turn if turn != prompt else None)
            for prompt, said in zip(prompts, answers, strict=True)
        ]

    def _probes(self, value: object, path: str, kind: str | None) -> Iterator[Probe]:
        if isinstance(value, str):
            yield probe_of(value, (), kind)
        elif isinstance(value, list):
            for part in value:
                yield from self._probes(part, f"{path}[]", kind)
        elif isinstance(value, dict):
            held: dict[str, object] = value
            if any(not _is_empty(held.get(name)) for name in ASKED):
                yield from self._opened(held, path).as_probes(kind)
                return
            for name, part in held.items():
                if not _is_empty(part):
                    yield from self._probes(part, f"{path}.{name}", kind_of(name))
        elif value is not None:
            raise BadInputError(f"found {shown(value)} as `{path}`, expected prompts with their answers; correct it")

    def _said(self, value: object, path: str) -> Iterator[str]:
        if isinstance(value, dict):
            held = self._opened(value, path)
            for name in ("value", "str", "text", "target", "aliases"):
                yield from held.answers(name)
        elif isinstance(value, list):
            for part in value:
                yield from self._said(part, f"{path}[]")
        elif not _is_empty(value):
            yield _text(value, path)

    def _opened(self, value: Mapping[str, object], path: str) -> Fields:
        self._inner.append(Fields(value, path))
        return self._inner[-1]

    def _at(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name


def kind_of(name: str) -> str:
    """What a group of probes tests, by the name that it has: `MULTI_HOP` for every way to write that."""
    return MULTI_HOP if _HOPS.search(name) else name


def probe_of(
    prompt: str,
    answers: Sequence[str],
    kind: str | None = None,
    subject: str | None = None,
    relation: str | None = None,
    question: str | None = None,
) -> Probe:
    """A probe with the first answer as its target and the others as its aliases; places in it are filled."""
    target, *aliases = tuple(dict.fromkeys(answers)) or (None,)
    text = filled(prompt.strip(), subject)
    return Probe(text, target, subject, relation, question, tuple(a for a in aliases if a is not None), kind)


def filled(text: str, subject: str | None) -> str:
    """A text with the subject in its places (`PLACES`); doubled braces stand for braces that are meant.

    Raises BadInputError where there is no subject to be put in, or where the text names it already.
    """
    if "{" not in text:
        return text
    places = [match[0] for match in _PLACE.finditer(text) if match[0].count("{") == 1]
    if places and subject is None:
        raise BadInputError(
            f"found {places[0]} in {text[:80]!r} of a record without a subject, expected one to put there; give "
            f"`subject`, or write {{{places[0]}}} for braces that are meant"
        )
    if places and mentions(text, subject):
        raise BadInputError(
            f"found {places[0]} in {text[:80]!r}, which names its subject already, expected one of them; write "
            f"{{{places[0]}}} for braces that are meant"
        )
    return _PLACE.sub(lambda match: match[0][1:-1] if match[0].count("{") == 2 else str(subject), text)


def require_filled_in(fact: Fact) -> None:
    """Raise BadInputError for a fact, made by hand, whose prompt or phrasings still have a place for its subject."""
    for text in (fact.prompt, *fact.rephrases):
        place = next((place for place in PLACES if place in text), None)
        if place is not None and not mentions(text, fact.subject):
            raise BadInputError(
                f"found {place} in {text[:80]!r} of a fact, expected its subject there; put it in, or give a dict, of "
                "which it is filled"
            )


def make_fact(fields: Fields, shape: str | None = None, **given: object) -> Fact:
    """A fact of what a reader found, and of fields that the record has under the native record's names besides.

    Where a reader gives rephrases or probes, those of the record come after them. shape: stands before the number or
    name that the record has. Places in the prompt and its rephrases are filled with the subject.
    """
    found = {name: value for name, value in given.items() if value is not None}
    if "id" not in found and (name := fields.name(*_NAMES)) is not None:
        found["id"] = name if shape is None else f"{shape}-{name}"
    for name in _PLAIN:
        if name not in found and isinstance(fields.peek(name), str) and name in fields:
            found[name] = fields.text(name)
    if "join" not in found and isinstance(join := fields.peek("join"), str):
        fields.take("join")
        found["join"] = join
    rephrases = (*_given(given, "rephrases"), *fields.texts("rephrases"))
    subject, prompt = found.get("subject"), str(found["prompt"])
    about = subject if isinstance(subject, str) and subject else None
    found["prompt"] = filled(prompt, about)
    if isinstance(question := found.get("question"), str):
        found["question"] = filled(question, about)
    if rephrases:
        found["rephrases"] = tuple(dict.fromkeys(filled(str(text), about) for text in rephrases))
    for name in ("locality", "portability"):
        if probes := (*_given(given, name), *fields.probes(name)):
            found[name] = probes
    return Fact(**found)  # type: ignore[arg-type]


def _given(given: Mapping[str, object], name: str) -> tuple[object, ...]:
    value = given.get(name)
    return value if isinstance(value, tuple) else ()


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise BadInputError(f"found {shown(value)} as `{path}`, expected text; write it as text")
    return value.strip()


def _flat(value: object, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for part in value:
            yield from _flat(part, path)
    elif not _is_empty(value):
        yield _text(value, path)


def _is_empty(value: object) -> bool:
    return value is None or value in ([], {}) or (isinstance(value, str) and (not value or value.isspace()))
