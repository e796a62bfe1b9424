"""What happens where a new fact meets a live one that asks for the same thing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from lifelong_edit.facts import Fact
from lifelong_edit.policies.deciding import Action, ConflictKind, ConflictPolicy, decide, require_policy
from lifelong_edit.policies.identity import Identity, identities, normalise

Candidates = Sequence[tuple[str, float]]
"""(digest of a live fact, cosine of its conflict key and the new fact's), of one new fact."""


class Conflict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new fact, the live fact that it met, and what became of it."""

    kind: ConflictKind
    """`duplicate`: same fact, same target; `paraphrase`: the same in other words; `contradiction`: another target;
    `unrelated`: same subject and near by its key, but another relation."""
    new: str
    """Digest of the new fact."""
    old: str
    """Digest of the live fact."""
    probability: float
    """That both ask for the same fact: 1 where subject and relation or the prompt are equal, else from the cosine."""
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
        return frozenset(c.new for c in self.conflicts if c.action in ("reject", "quarantine", "outranked"))


class LiveIdentities:
    """Live facts by their identities, so that a batch is compared with all of them at once."""

    def __init__(self, live: Mapping[str, Fact]) -> None:
        self._known: dict[Identity, list[str]] = defaultdict(list)
        for digest, fact in live.items():
            self.add(digest, fact)

    def add(self, digest: str, fact: Fact) -> None:
        """Take in a further live fact."""
        for name in identities(fact):
            self._known[name].append(digest)

    def remove(self, digest: str, fact: Fact) -> None:
        """Leave out a fact that is live no longer."""
        for name in identities(fact):
            self._known[name].remove(digest)
            if not self._known[name]:
                del self._known[name]

    def same(self, fact: Fact) -> list[str]:
        """Digests of the facts that share an identity with `fact`, each once, in the order they came."""
        found = (digest for name in identities(fact) for digest in self._known.get(name, ()))
        return list(dict.fromkeys(found))


def find_conflicts(
    facts: Sequence[Fact],
    live: Mapping[str, Fact],
    *,
    candidates: Sequence[Candidates] = (),
    cosine: float = 0.9,
    policy: ConflictPolicy = "supersede",
    trusted: Sequence[str] = (),
    known: LiveIdentities | None = None,
) -> Decision:
    """Compare each new fact with the live ones, exactly by identity and then by its key's neighbours.

    facts: the new ones, none equal in content to a live one. live: by digest. candidates: one list per fact, from
    the key index; those below `cosine` do not count, nor do facts about another subject: keys of one relation lie near
    each other, and to take away a fact that nobody contradicted is worse than to keep one too many. policy: what a
    contradiction leads to, or a callable that decides. trusted: sources, the most trusted first. known: the identities
    of `live`, where they are at hand. Raises `UsageError` for an unknown policy, and for an answer of a callable that
    is none.
    """
    require_policy(policy)
    known = LiveIdentities(live) if known is None else known
    conflicts: list[Conflict] = []
    for number, fact in enumerate(facts):
        same = known.same(fact)
        conflicts += [
            _decide(fact, live[digest], digest, 1.0, policy, trusted) for digest in same if digest != fact.digest
        ]
        near = candidates[number] if candidates else ()
        conflicts += [
            _decide(fact, live[digest], digest, _probability(found, cosine), policy, trusted)
            for digest, found in near
            if found >= cosine and digest in live and digest not in same and _same_subject(fact, live[digest])
        ]
    return _gather(conflicts)


def _gather(conflicts: Sequence[Conflict]) -> Decision:
    refused = {c.new for c in conflicts if c.action in ("skip", "reject", "outranked")}
    aside = {c.new for c in conflicts if c.action == "quarantine"} - refused
    # A fact that is dropped on account of one live fact replaces no other, and is not put aside if it is refused.
    kept = tuple(
        msgspec.structs.replace(c, action="keep")
        if (c.action == "supersede" and c.new in refused | aside) or (c.action == "quarantine" and c.new in refused)
        else c
        for c in conflicts
    )
    retire = dict.fromkeys(c.old for c in kept if c.action == "supersede")
    return Decision(kept, tuple(retire), frozenset(refused | aside), frozenset(aside))


def _decide(
    new: Fact, old: Fact, digest: str, probability: float, policy: ConflictPolicy, trusted: Sequence[str]
) -> Conflict:
    kind = _kind(new, old, exact=probability == 1.0)
    action, by = decide(new, old, kind, probability, policy, trusted)
    return Conflict(kind=kind, new=new.digest, old=digest, probability=probability, action=action, by=by)


def _kind(new: Fact, old: Fact, *, exact: bool) -> ConflictKind:
    same_target = normalise(new.target) == normalise(old.target)
    if exact:
        return "duplicate" if same_target else "contradiction"
    if new.relation and old.relation and normalise(new.relation) != normalise(old.relation):
        return "unrelated"
    return "paraphrase" if same_target else "contradiction"


def _same_subject(new: Fact, old: Fact) -> bool:
    return normalise(new.subject) == normalise(old.subject)


def _probability(cosine: float, bound: float) -> float:
    """From 0.5 at the bound, linearly, to just below the certainty of an exact match. Not calibrated."""
    share = (cosine - bound) / (1 - bound) if bound < 1 else 1.0
    return min(0.5 + 0.5 * share, 0.999)
