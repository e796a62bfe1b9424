"""What becomes of a new fact and of the live one that it met, once it is known how they are related."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.facts.dates import is_later
from lifelong_edit.policies.identity import normalise

ConflictKind = Literal["duplicate", "paraphrase", "contradiction", "unrelated"]
Action = Literal["supersede", "skip", "reject", "keep", "quarantine", "outranked"]
PolicyName = Literal["supersede", "reject", "keep", "quarantine"]
POLICIES: tuple[PolicyName, ...] = ("supersede", "reject", "keep", "quarantine")
ANSWERS: tuple[Action, ...] = ("supersede", "skip", "reject", "keep", "quarantine")
"""What a callable may answer beside None."""

Asked = Callable[[Fact, Fact, ConflictKind, float], str | None]
"""Decides itself: (new fact, live fact, kind, probability) → one of ANSWERS; None: as `supersede` would decide."""
ConflictPolicy = str | Asked
"""A name of POLICIES, for contradictions, or a callable that is asked whatever the kind."""


def require_policy(policy: ConflictPolicy) -> None:
    """Raise `UsageError` for a policy that is neither a name of POLICIES nor callable."""
    if not callable(policy) and policy not in POLICIES:
        raise UsageError(f"found the conflict policy {policy!r}, expected one of {', '.join(POLICIES)}")


def prevails(new: Fact, old: Fact, trusted: Sequence[str] = ()) -> tuple[bool, str | None]:
    """Whether the later arrival has the last word over an earlier one, and what says so: "source", "date" or None.

    trusted: sources, the most trusted first, with `*` for any text; those that are not named come after them, all
    alike. A source decides before a date, a date before the order of arrival, which decides (None) where neither tells
    the two apart.
    """
    new_rank, old_rank = _rank(new, trusted), _rank(old, trusted)
    if new_rank != old_rank:
        return new_rank < old_rank, "source"
    if new.date is not None and old.date is not None:
        if is_later(new.date, old.date):
            return True, "date"
        if is_later(old.date, new.date):
            return False, "date"
    return True, None


def decide(
    new: Fact, old: Fact, kind: ConflictKind, probability: float, policy: ConflictPolicy, trusted: Sequence[str] = ()
) -> tuple[Action, str]:
    """The action, and what decided it: "kind", "source", "date", the policy's name, or "callable NAME".

    Raises `UsageError` where a callable answers anything but one of ANSWERS or None.
    """
    if callable(policy):
        answer, name = policy(new, old, kind, probability), f"callable {_name(policy)}"
        if answer is not None:
            if answer not in ANSWERS:
                raise UsageError(
                    f"found the answer {answer!r} of the {name} to a {kind}, expected one of {', '.join(ANSWERS)}, or "
                    "None to decide as `supersede` does; correct it"
                )
            return answer, name
        policy = "supersede"
    if kind == "duplicate":
        return _decide_duplicate(new, old, trusted)
    if kind != "contradiction":
        return "keep", "kind"
    if policy in ("supersede", "quarantine"):
        wins, by = prevails(new, old, trusted)
        if not wins:
            return "outranked", str(by)
        return policy, by if by is not None and policy == "supersede" else policy  # type: ignore[return-value]
    return policy, policy  # type: ignore[return-value]


def _rank(fact: Fact, trusted: Sequence[str]) -> int:
    """Where the fact's source stands among the trusted ones: 0 for the most trusted, their number for all others."""
    source, names = normalise(fact.source or ""), [normalise(name) for name in trusted]
    found = (rank for rank, name in enumerate(names) if source and (source == name or fnmatchcase(source, name)))
    return next(found, len(names))


def _decide_duplicate(new: Fact, old: Fact, trusted: Sequence[str]) -> tuple[Action, str]:
    """It takes the old one's place if it is newer, or brings phrasings that were not taught yet.

    One that is newer says that the answer still held then: without it, what arrives late from in between would win.
    Neither phrasings nor the newer date or the better source may leave with the one that is replaced: both stay then.
    """
    wins, by = prevails(new, old, trusted)
    taught, brought = {old.prompt, *old.rephrases}, {new.prompt, *new.rephrases}
    if wins and by is not None:
        return ("supersede", by) if taught <= brought else ("keep", "kind")
    if brought <= taught:
        return "skip", "kind"
    return ("supersede" if wins and (new.date is not None or old.date is None) else "keep"), "kind"


def _name(policy: object) -> str:
    return str(getattr(policy, "__qualname__", type(policy).__qualname__))
