"""What a state has no use for in a batch, told from the log alone. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lifelong_edit.errors import BadInputError
from lifelong_edit.facts import Fact, Record
from lifelong_edit.policies import ConflictPolicy, identities, normalise, prevails
from lifelong_edit.settings import StoreSettings
from lifelong_edit.stores import Place
from lifelong_edit.timeline.history import FilePlace, Fold, History

SkipReason = Literal[
    "consumed",
    "live",
    "repeated",
    "contradicted",
    "rolled-back",
    "retracted",
    "purged",
    "dismissed",
    "conflict",
    "quarantined",
    "reviewed",
    "never-quarantined",
]
TURNED_DOWN: tuple[SkipReason, ...] = ("retracted", "purged", "dismissed")
"""Somebody's decision stands in the log, against this very fact."""
NEED_AGAIN: tuple[SkipReason, ...] = ("rolled-back", *TURNED_DOWN)
"""What `again` applies all the same: so the record's place is not consumed."""
_NOT_IN_QUARANTINE: tuple[SkipReason, ...] = ("reviewed", "never-quarantined")


@dataclass(frozen=True, kw_only=True)
class Handling:
    """How a batch is to be handled: made once where a caller says it, and handed on whole from there."""

    again: bool = False
    """Also what is known only from steps that were rolled back, and what was turned down."""
    reviewed: bool = False
    """The batch comes back from review: what is in quarantine is edited, all else is skipped."""
    conflicts: ConflictPolicy | None = None
    """A policy's name or a callable that decides, instead of the store's setting."""

    def policy(self, setting: ConflictPolicy) -> ConflictPolicy:
        """What decides conflicts in a store with a setting: what comes back from review supersedes by itself."""
        return self.conflicts or ("supersede" if self.reviewed else setting)


@dataclass(frozen=True)
class Skip:
    """A record of a batch that is not applied, and why."""

    fact: str
    reason: SkipReason
    by: int | None = None
    """The step with the decision, of what was turned down."""


@dataclass
class Sieved:
    """A batch after what design calls skipping: what is left of it, what was skipped, what it consumes."""

    facts: list[Fact]
    skips: list[Skip]
    places: list[Place]
    handling: Handling
    """As it was sieved, and is to be handled further."""
    batch: Sequence[Fact | Record]
    """What was sieved."""
    at: int
    """The head then."""
    reviewed: list[str] = field(default_factory=list)
    """What leaves quarantine with this batch, whatever becomes of it."""

    @property
    def left(self) -> bool:
        """Whether there is anything to do or to note."""
        return bool(self.facts or self.reviewed)

    def become(self, other: Sieved) -> None:
        """Be what the same batch is by now: whoever holds this one sees it."""
        vars(self).update(vars(other))

    @property
    def turned_down(self) -> tuple[Skip, ...]:
        """What was skipped because of a decision that stands in the log."""
        return tuple(skip for skip in self.skips if skip.reason in TURNED_DOWN)

    def drop(self, digests: frozenset[str], reason: SkipReason) -> None:
        """Skip further facts, in the order of the batch."""
        self.skips += [Skip(fact.digest, reason) for fact in self.facts if fact.digest in digests]
        self.facts = [fact for fact in self.facts if fact.digest not in digests]

    def counts(self) -> dict[str, int]:
        """How many were skipped for each reason."""
        counts: dict[str, int] = {}
        for skip in self.skips:
            counts[skip.reason] = counts.get(skip.reason, 0) + 1
        return counts


def sieve(
    batch: Sequence[Fact | Record],
    history: History,
    step: int,
    handling: Handling,
    settings: StoreSettings,
) -> Sieved:
    """Take out of a batch what the state at `step` has no use for.

    Skipped are records consumed at the same place (that of a file before it grew included), facts equal to a live one
    or in quarantine, repetitions within the batch, and, unless `again`, records known only from steps of the current
    branch that were rolled back (what other branches were given does not count) and facts that were turned down:
    retracted or dismissed on the line of `step`, or purged from the store. A fact that was superseded is news when
    it comes from a new place; a bare fact has no place and counts as new each time. Of a batch that comes back from
    review, what is not in quarantine, any more or at all, is skipped, wherever it stands. settings: the store's, for
    its trusted sources and its conflict policy.
    """
    fold, result, kept = history.fold(step), Sieved([], [], [], handling, batch, history.head), set[str]()
    for item in batch:
        fact = item.fact if isinstance(item, Record) else item
        places = item.places if isinstance(item, Record) else ()
        entry = (item.entry if isinstance(item, Record) else item.digest) if handling.reviewed else None
        if isinstance(item, Record) and entry not in (None, fact.digest) and fact.digest in fold.quarantined:
            raise BadInputError(
                f"{item.file}:{item.line}: found a record that is in quarantine itself, with the `quarantined.fact` of "
                f"another ({item.entry[:12]}), expected its own; correct it"
            )
        reason = _reason(fact.digest, places, entry, fold, history, kept, handling.again)
        if reason not in ("consumed", *NEED_AGAIN, *_NOT_IN_QUARANTINE):
            result.places += [Place(*place, fact.digest) for place in places[:1]]
            result.reviewed += [] if entry is None else [entry]
        if reason is not None:
            by = _turned_down(fact.digest, fold, history)[1] if reason in TURNED_DOWN else None
            result.skips.append(Skip(fact.digest, reason, by))
        else:
            kept.add(fact.digest)
            result.facts.append(fact)
    policy = handling.policy(settings.conflict_policy)
    result.drop(_contradicted(result.facts, policy, settings.trusted_sources), "contradicted")
    return result


def _reason(
    digest: str,
    places: Sequence[FilePlace],
    entry: str | None,
    fold: Fold,
    history: History,
    kept: set[str],
    again: bool,
) -> SkipReason | None:
    """entry: of a record that comes back from review, the digest under which it is in quarantine."""
    if entry is not None and entry not in fold.quarantined:
        return "reviewed" if entry in fold.aside else "never-quarantined"
    consumed = any(place in fold.places for place in places)
    if consumed and entry is None:
        return "consumed"
    if digest in fold.live:
        return "live"
    if digest in kept:
        return "repeated"
    if entry is None and digest in fold.quarantined:
        return "quarantined"
    elsewhere = not consumed and any(history.seen_at(place) for place in places)
    if again:
        return None
    if (reason := _turned_down(digest, fold, history)[0]) is not None:
        return reason
    return "rolled-back" if elsewhere or (history.added(digest) and digest not in fold.ever) else None


def _turned_down(digest: str, fold: Fold, history: History) -> tuple[SkipReason | None, int | None]:
    """Why a fact was turned down, and by which step."""
    decisions: tuple[tuple[SkipReason, Mapping[str, int]], ...] = (
        ("purged", history.purged),
        ("retracted", fold.retracted),
        ("dismissed", fold.dismissed),
    )
    return next(((reason, held[digest]) for reason, held in decisions if digest in held), (None, None))


def _contradicted(facts: Sequence[Fact], policy: ConflictPolicy, trusted: Sequence[str]) -> frozenset[str]:
    """The facts that lose against another one of the same batch: one solve cannot ask for two answers at once.

    Under `reject` that is the later one, as if it had come in a batch of its own.
    """
    held: dict[tuple[str, ...], list[Fact]] = defaultdict(list)
    lost: set[str] = set()
    for fact in facts:
        names, target = identities(fact), normalise(fact.target)
        rivals = [f for name in names for f in held[name] if f.digest not in lost and normalise(f.target) != target]
        if rivals and (policy == "reject" or not all(prevails(fact, rival, trusted)[0] for rival in rivals)):
            lost.add(fact.digest)
            continue
        lost.update(rival.digest for rival in rivals)
        for name in names:
            held[name].append(fact)
    return frozenset(lost)
