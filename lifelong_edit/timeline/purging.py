"""Facts that are to leave no trace: their text, and the payloads of every state that held something of them. No torch.

`retract` makes a model that never had them. What the log still holds then is history: the facts as they came, and the
shifts and keys of the steps between. Purging drops those and keeps the headers, so that the chain of digests holds and
the log says that something was taken out, when, by whom and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from lifelong_edit.errors import UsageError
from lifelong_edit.facts.given import Given, Item, as_digests
from lifelong_edit.stores import EditLog, require_sound
from lifelong_edit.stores import Purge as PurgeStep
from lifelong_edit.stores.copying import shrink
from lifelong_edit.timeline.commit import UNMADE, Draft, write_step
from lifelong_edit.timeline.config import Config, author_of
from lifelong_edit.timeline.history import History, named
from lifelong_edit.timeline.keeping import Plan


class Purged(msgspec.Struct, kw_only=True):
    """What was dropped."""

    step: int
    """The step that records it."""
    facts: list[str]
    """Digests of the facts whose text is gone."""
    out_of_reach: list[int]
    """Steps whose states are gone, because they held something of the facts."""
    blobs: int
    """Shifts, keys and states stored whole that went with them."""
    bytes: int


def purge(
    path: str | Path,
    facts: Given | str | Iterable[Item | str],
    *,
    reason: str | None = None,
    author: str | None = None,
    timeout: float = 5.0,
) -> Purged:
    """Drop facts that are not in force, and all that states made with them need, and overwrite what they took.

    facts: digests, beginnings of them that name one fact of the log, or facts as `Timeline.apply` takes them. Committed
    as one step, of the kind `purge`; the database is then written anew without free pages, and the old file filled with
    zeros before it is let go of. Handles that are open on the store have to be opened again. Backups and exports are
    not reached. Raises UsageError where a name is of no fact or of several, where a fact is in force or in quarantine,
    and where the head, a tag or a branch stands at a state that holds something of one; StoreDamagedError where the
    store is not sound, StoreLockedError, and StoreError where nothing could be written.
    """
    path = Path(path).absolute()
    require_sound(path, "`fsck --repair` it first")
    with EditLog.open(path, timeout=timeout) as log:
        history = History(log.steps(), log.idle())
        digests = find_purgeable(history, as_digests(facts))
        held = history.holding(digests)
        require_unheld(history, held)
        config = Config.of(history.record(0))
        states = [r.step for r in history.records if history.state_of(r.step) == r.step]
        kept = {state: [""] for state in states if state not in held and history.dropped_by(state) is None}
        plan = Plan(log, history, config, kept)
        gone = sorted(state for state in held if history.dropped_by(state) is None)
        target = history.record(history.state_of(history.head))
        size = sum(plan.sizes[digest] for digest in plan.dropped)
        record = PurgeStep(
            **UNMADE,
            parent=target.step,
            dropped=tuple(plan.dropped),
            out_of_reach=tuple(gone),
            purged=tuple(digests),
            bytes=size,
            reason=reason,
            author=author_of(author),
        )
        step = write_step(log, history, config, Draft(record=record, weights=None, target=target)).step
        shrink(log, overwrite=True)
    return Purged(step=step, facts=digests, out_of_reach=gone, blobs=len(plan.dropped), bytes=size)


def find_purgeable(history: History, names: Sequence[str]) -> list[str]:
    """The digests of the facts that names, or their beginnings, are of. Raises UsageError as `purge` says."""
    fold = history.fold(history.head)
    aside = {digest for record in history.records for digest in record.aside}
    known = {digest for record in history.records for digest in record.added} | aside
    found = []
    for name in dict.fromkeys(names):
        own = named(name, known, "fact", "of the log", "facts --state all")
        if own in history.purged:
            raise UsageError(f"the fact {own[:12]} is purged already; leave it out")
        if own in fold.live:
            raise UsageError(f"the fact {own[:12]} is in force; retract it first, or with `retract --purge`")
        if own in fold.quarantined:
            raise UsageError(f"the fact {own[:12]} is in quarantine; `lifelong-edit dismiss` it first")
        found.append(own)
    return list(dict.fromkeys(found))


def require_unheld(history: History, held: set[int], *, without_head: bool = False) -> None:
    """Raise UsageError, naming it, where a name stands at a state that holds something of the facts.

    held: as of `History.holding`. without_head: the head and its branch are about to be solved for anew.
    """
    moving = {"head", history.names.current} if without_head else set[str]()
    for state, names in history.protected().items():
        if state in held and (standing := [name for name in names if name not in moving]):
            what = ", ".join(standing)
            raise UsageError(
                f"the state of step {state}, at which {what} stands, holds something of what is to be purged; "
                + ("reconsolidate, or retract it, first" if "head" in standing else f"delete {what} first, or move it")
            )
