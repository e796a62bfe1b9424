"""What happens where a new fact meets a live one that asks for the same thing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.policies.deciding import Action, ConflictKind, ConflictPolicy, decide, require_policy
from lifelong_edit.policies.identity import Identity, identities, normalise
from lifelong_edit.policies.scoring import Scorer, same_subject

TURNED_AWAY: tuple[Action, ...] = ("reject", "outranked", "quarantine")
"""What becomes of facts that had something to say and are not edited."""
DROPPING: tuple[Action, ...] = ("skip", *TURNED_AWAY)
"""What leaves the new fact untaught."""
LISTED = 0.01
"""What is less probable than this is not worth a line of the log."""

Candidates = Sequence[tuple[str, float]]
"""(digest of a live fact, or of an earlier one of the batch, cosine of its conflict key and the new fact's), of one new
fact."""


class Conflict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new fact, the live fact that it met, and what became of it."""

    kind: ConflictKind
    """`duplicate`: same fact, same target; `paraphrase`: the same in other words; `contradiction`: another target;
    `unrelated`: about the same subject, but another question, by its relation or since it is too improbable a pair."""
    new: str
    """Digest of the new fact."""
    old: str
    """Digest of the live fact, or of an earlier one of the same batch."""
    probability: float
    """That both ask for the same thing, where as many such pairs do as do not: 1 where subject and relation or a
    phrasing are equal, else a scorer's."""
    action: Action
    """`supersede`: the old one is replaced; `skip`: the new one brings nothing; `reject`: the new one is refused;
    `keep`: both are in force; `quarantine`: the new one is put aside until somebody has looked at it; `outranked`: the
    old one is newer by its date, or comes from a more trusted source."""
    by: str = "kind"
    """What decided: "kind", "source", "date", the policy's name, or "callable NAME"."""


@dataclass(frozen=True)
class Decision:
    """What a batch may do, after its conflicts have been decided."""

    conflicts: tuple[Conflict, ...]
    retire: tuple[str, ...]
    """Digests of the live facts that leave before the batch is solved, each once, in the order found."""
    drop: frozenset[str]
    """Digests of the new facts that are not edited."""
    quarantine: frozenset[str] = frozenset()
    """Those of them that are put aside for review."""

    @property
    def turned_away(self) -> frozenset[str]:
        """Those of them that had something to say: dropped for other reasons than that they bring nothing."""
        return frozenset(c.new for c in self.conflicts if c.action in TURNED_AWAY)

    @property
    def repeats(self) -> frozenset[str]:
        """Those of them that say what is in force already, in the same words or in others."""
        return frozenset(c.new for c in self.conflicts if c.action == "skip") - self.turned_away


class LiveIdentities:
    """Live facts by identity and subject, so that a batch is compared with all of them at once."""

    def __init__(self, live: Mapping[str, Fact]) -> None:
        self._known: dict[Identity, list[str]] = defaultdict(list)
        self._subjects: dict[str, list[str]] = defaultdict(list)
        for digest, fact in live.items():
            self.add(digest, fact)

    def add(self, digest: str, fact: Fact) -> None:
        """Take in a further live fact."""
        for name in identities(fact):
            self._known[name].append(digest)
        self._subjects[normalise(fact.about)].append(digest)

    def remove(self, digest: str, fact: Fact) -> None:
        """Leave out a fact that is live no longer."""
        for name in identities(fact):
            self._known[name].remove(digest)
            if not self._known[name]:
                del self._known[name]
        subject = normalise(fact.about)
        self._subjects[subject].remove(digest)
        if not self._subjects[subject]:
            del self._subjects[subject]

    def same(self, fact: Fact) -> list[str]:
        """Digests of the facts that share an identity with `fact`, each once, in the order they came."""
        found = (digest for name in identities(fact) for digest in self._known.get(name, ()))
        return list(dict.fromkeys(found))

    def about(self, fact: Fact) -> Sequence[str]:
        """Digests of the facts about the subject of `fact`, or about one that its prompt names, each once.

        A subject goes by more names than one; see `scoring.same_subject`.
        """
        words = normalise(fact.prompt).split()
        spans = (" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1))
        names = dict.fromkeys((normalise(fact.about), *(name for span in spans for name in (span, _bare(span)))))
        return [digest for name in names for digest in self._subjects.get(name, ())]


def _bare(text: str) -> str:
    """A text without the marks around it."""
    marks = [not character.isalnum() for character in text]
    first = marks.index(False) if False in marks else len(text)
    return text[first : len(text) - marks[::-1].index(False)] if first < len(text) else ""


def find_conflicts(
    facts: Sequence[Fact],
    live: Mapping[str, Fact],
    *,
    scorer: Scorer | None = None,
    candidates: Sequence[Candidates] = (),
    cosine: float = -1.0,
    threshold: float | None = None,
    policy: ConflictPolicy = "supersede",
    trusted: Sequence[str] = (),
    known: LiveIdentities | None = None,
) -> Decision:
    """Compare each new fact with the live ones, exactly by identity and then by its key's neighbours.

    facts: the new ones, none equal in content to a live one. live: by digest. candidates: one list per fact, scored by
    `scorer`; those below `cosine` do not count, nor do facts about another subject: keys of one relation lie near each
    other, and to take away a fact that nobody contradicted is worse than to keep one too many. They may name earlier
    facts of the batch, which count as live ones do unless they were dropped themselves. threshold: the probability from
    which on a pair asks for the same thing; None: the scorer's own. policy: what a contradiction leads to, or a
    callable that decides. trusted: sources, the most trusted first. known: the live facts by identity, where they are
    at hand. Raises `UsageError` for an unknown policy, an answer of a callable that is none, and candidates without a
    scorer.
    """
    require_policy(policy)
    if scorer is None and any(candidates):
        raise UsageError("found candidates for conflicts without a scorer, expected one to tell what they are")
    known = LiveIdentities(live) if known is None else known
    conflicts: list[Conflict] = []
    earlier: dict[str, Fact] = {}
    for number, fact in enumerate(facts):
        same = known.same(fact)
        own = [_decide(fact, live[digest], digest, 1.0, policy, trusted) for digest in same if digest != fact.digest]
        for digest, found in candidates[number] if candidates else ():
            old = live.get(digest) or earlier.get(digest)
            if scorer and old and digest not in same and found >= cosine and same_subject(fact, old):
                probability = scorer.probability(fact, old, found)
                likely = probability >= (scorer.threshold if threshold is None else threshold)
                # What its relation tells from the other is no news, however near it is.
                if likely or (probability >= LISTED and not _told_apart(fact, old)):
                    own.append(_decide(fact, old, digest, probability, policy, trusted, likely=likely))
        conflicts += own
        if not any(conflict.action in DROPPING for conflict in own):
            earlier[fact.digest] = fact
    return _gather(conflicts, earlier.keys() - live.keys())


def _gather(conflicts: Sequence[Conflict], batch: Collection[str]) -> Decision:
    """batch: digests of the new facts; one of them that is superseded is not edited, where a live one is retired."""
    refused = {c.new for c in conflicts if c.action in ("skip", "reject", "outranked")}
    aside = {c.new for c in conflicts if c.action == "quarantine"} - refused
    # A fact that is dropped on account of one other replaces none, and is not put aside if it is refused; one that a
    # later one replaces has done so before.
    kept = tuple(
        msgspec.structs.replace(c, action="keep")
        if (c.action == "supersede" and c.new in refused | aside) or (c.action == "quarantine" and c.new in refused)
        else c
        for c in conflicts
    )
    gone = dict.fromkeys(c.old for c in kept if c.action == "supersede")
    retire = tuple(digest for digest in gone if digest not in batch)
    return Decision(kept, retire, frozenset({*refused, *aside, *gone} - {*retire}), frozenset(aside))


def _decide(
    new: Fact,
    old: Fact,
    digest: str,
    probability: float,
    policy: ConflictPolicy,
    trusted: Sequence[str],
    *,
    likely: bool = True,
) -> Conflict:
    kind = _kind(new, old, exact=probability == 1.0) if likely else "unrelated"
    action, by = decide(new, old, kind, probability, policy, trusted)
    return Conflict(kind=kind, new=new.digest, old=digest, probability=probability, action=action, by=by)


def _kind(new: Fact, old: Fact, *, exact: bool) -> ConflictKind:
    same_target = normalise(new.target) == normalise(old.target)
    if exact:
        return "duplicate" if same_target else "contradiction"
    if _told_apart(new, old):
        return "unrelated"
    return "paraphrase" if same_target else "contradiction"


def _told_apart(new: Fact, old: Fact) -> bool:
    """Whether both name a relation, and not the same."""
    return bool(new.relation and old.relation) and normalise(new.relation or "") != normalise(old.relation or "")
