"""Templates of relations: how a triple of subject, relation and object becomes a fact."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.facts.fields import PLACES, Fields, make_fact
from lifelong_edit.facts.published import Read

SUBJECTS = ("subject", "sub_label", "head", "subj", "subject_label")
RELATIONS = ("relation", "predicate", "predicate_id", "relation_id", "property", "prop", "pred")
OBJECTS = ("object", "obj_label", "tail", "obj", "object_label")
"""What the three parts of a triple are called; the first that a record has."""

_PLACE = re.compile(r"\[X\]|\{subject\}|\{\}")
_OBJECT = re.compile(r"\s*(\[Y\]|\{object\})\s*\.?\s*$")


class Template(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How facts of a relation are put: beginnings of sentences with a place for the subject, up to the object."""

    prompt: str
    rephrases: tuple[str, ...] = ()
    question: str | None = None


Relations = Mapping[str, Template]
"""Templates by the relation's name, as the triples have it."""


def read_relations(path: str | Path) -> Relations:
    """The templates of a TOML file: a table of `Template`'s fields for each relation, or a list, the prompt first.

    The subject's place is `{}`, `{subject}` or ParaRel's `[X]`; a place for the object (`[Y]`, `{object}`) may stand at
    the end. Raises UsageError for a file that cannot be read, BadInputError for what is no template.
    """
    try:
        held = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {error.strerror}; expected templates of relations") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInputError(
            f"{path}: found broken TOML ({error}), expected templates of relations; correct it"
        ) from None
    return relations_of(held, str(path))


def relations_of(held: Mapping[str, object], where: str = "relations") -> Relations:
    """The templates of a mapping, as `read_relations` finds it. where: how messages call it."""
    found = {}
    for name, value in held.items():
        given = {"prompt": next(iter(value), ""), "rephrases": value[1:]} if isinstance(value, list) else value
        given = {"prompt": given} if isinstance(given, str) else given
        try:
            template = msgspec.convert(given, Template)
        except msgspec.ValidationError as error:
            raise BadInputError(
                f"{where}: found a template of {name!r} that does not fit ({error}), expected `prompt` and, if you "
                "like, `rephrases` and `question`; correct it"
            ) from None
        asked = None if template.question is None else _placed(template.question, name, where)
        rephrases = tuple(_placed(text, name, where) for text in template.rephrases)
        found[name] = Template(_placed(template.prompt, name, where), rephrases, asked)
    return found


def is_triple(fields: Fields) -> bool:
    """Whether a record has a subject, a relation and an object, whatever it calls them."""
    return all(any(name in fields for name in names) for names in (SUBJECTS, RELATIONS, OBJECTS))


def read_triple(fields: Fields, relations: Relations | None) -> Read:
    """A triple as a fact of its relation's template. Raises BadInputError where there is none."""
    subject, relation, target = (fields.require(*names) for names in (SUBJECTS, RELATIONS, OBJECTS))
    if relations is None or relation not in relations:
        known = "no templates were given" if not relations else f"there are some of {', '.join(sorted(relations)[:8])}"
        raise BadInputError(
            f"found a triple of the relation {relation[:40]!r}, expected a template for it ({known}); give one by "
            "--relations FILE"
        )
    template = relations[relation]
    return [
        make_fact(
            fields,
            subject=subject,
            prompt=template.prompt,
            target=target,
            relation=relation,
            rephrases=template.rephrases,
            question=template.question,
        )
    ]


def _placed(text: str, name: str, where: str) -> str:
    """A template with `{}` for its subject and nothing for its object."""
    begun = _OBJECT.sub("", text).strip()
    places = _PLACE.findall(begun)
    if len(places) != 1 or "[Y]" in begun or "{object}" in begun:
        raise BadInputError(
            f"{where}: found the template {text!r} of {name!r}, expected one place for the subject ({{}}, {{subject}} "
            "or [X]), and the object at the end, if it has a place; reword it"
        )
    return _PLACE.sub(PLACES[0], begun)
