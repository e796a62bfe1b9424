"""Looking after a store whose states are known: what can be dropped, and which older state is put back. No torch."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from lifelong_edit.atomic import remove_leftovers, replace_dir_atomic
from lifelong_edit.errors import StoreError, UsageError
from lifelong_edit.stores import (
    KEYS,
    Compact,
    EditLog,
    Restore,
    Weights,
    digest_bytes,
    encode_tensors,
    entry_names,
    require_followable,
    require_sound,
    tensors_digest,
)
from lifelong_edit.stores.copying import copy_store, ids_at, replace_keeping, shrink
from lifelong_edit.stores.identity import read_acknowledged, read_marker
from lifelong_edit.timeline.commit import UNMADE, Draft, write_step
from lifelong_edit.timeline.config import Config, author_of
from lifelong_edit.timeline.history import History
from lifelong_edit.timeline.states import weights_at

WORTH = 0.1
"""Share of free pages from which a store is written anew though nothing is to be dropped."""


class Compaction(msgspec.Struct, kw_only=True):
    """What a compaction drops, or would drop."""

    kept: dict[int, list[str]]
    """The states that stay within reach by the step that made each, and what names it."""
    out_of_reach: list[int]
    """Steps whose states go."""
    wholes: list[int]
    """States that are stored whole from now on, because that takes less than the shifts that lead to them."""
    blobs: int
    bytes: int
    """Of the blobs that are dropped."""
    free: int
    """Bytes of free pages before it."""
    step: int | None = None
    """The step that records it; None for a dry run, and where nothing was dropped."""
    given_back: int = 0
    """By how many bytes the file has become smaller."""


class Plan:
    """Which blobs the states that have to stay within reach need, and which nobody needs."""

    def __init__(
        self, log: EditLog, history: History, config: Config, kept: Mapping[int, list[str]] | None = None
    ) -> None:
        """kept: the states that have to stay, as they are stored; None: those that have a name, as takes least."""
        self.log, self.history, self.shapes = log, history, config.model.modules
        self.sizes = log.blob_sizes()
        self._traced: dict[str, tuple[str, ...]] = {}
        self.kept = history.protected() if kept is None else dict(kept)
        self.wholes = self._choose_wholes() if kept is None else {}
        needed = {digest for state in self.kept for digest in self.needs(state)}
        self.needed = needed.union([str(log.head().weights)], history.record(0).blobs, self.wholes.values())
        self.dropped = sorted(self.sizes.keys() - self.needed)
        states = [r.step for r in history.records if history.state_of(r.step) == r.step]
        gone = [state for state in states if history.dropped_by(state) is None and not self._stays(state)]
        self.out_of_reach = gone

    def needs(self, state: int) -> set[str]:
        """The blobs that a state needs, to be asked and to be edited further."""
        return self._weights(state, self.wholes) | self._entries(state, KEYS) | self._others(state)

    def _stays(self, state: int) -> bool:
        # Most states fail by their weights, for which a few steps have to be looked at.
        return self._weights(state, self.wholes) <= self.needed and self.needs(state) <= self.needed

    def _weights(self, state: int, wholes: Mapping[int, str]) -> set[str]:
        """The state that is stored whole before it, and the shifts since then."""
        found: set[str] = set()
        at = state
        while at >= 0:
            record = self.history.record(self.history.state_of(at))
            whole = wholes.get(record.step) or self.history.whole(record)
            if whole is not None:
                return found | {whole}
            found.update(() if record.shift is None else (record.shift,))
            at = record.parent
        return found

    def _entries(self, state: int, name: str) -> set[str]:
        """Of each live fact the blob with what a part holds of it, as it was brought last."""
        live, last = self.history.fold(state).live, dict[str, str]()
        for part in self.history.parts(state, name):
            if part.whole is not None:
                last = {"": part.whole}  # all there is, be it nothing
            for blob in part.blobs:
                last.update((fact, blob) for fact in self._facts_of(blob) if fact in live)
        return set(last.values())

    def _facts_of(self, blob: str) -> tuple[str, ...]:
        if blob not in self._traced:
            self._traced[blob] = entry_names(self.log.blob(blob), f"keys, blob {blob}")
        return self._traced[blob]

    def _others(self, state: int) -> set[str]:
        """Of each other part what `replay` reads: from the last step that brings it whole."""
        found = set[str]()
        for name in self.history.further_parts(state):
            parts = self.history.parts(state, name)
            if any(part.fold == "upsert" for part in parts):
                found |= self._entries(state, name)
                continue
            for part in reversed(parts):
                found.update(part.blobs)
                if part.begins:
                    break
        return found

    # -- states that are stored whole from now on

    def _choose_wholes(self) -> dict[int, str]:
        """The states that take fewer bytes whole than the shifts that nobody else needs, with the digests of ΔW whole.

        Only what is rebuilt bit for bit as it was logged is stored so.
        """
        wholes: dict[int, str] = {}
        for state in sorted(self.kept):
            if state == 0 or self.history.whole(self.history.record(state)) is not None:
                continue
            tried = {**wholes, state: f"ΔW of {state}"}
            if self._cost(tried) < self._cost(wholes) and (digest := self._whole_digest(state)) is not None:
                wholes[state] = digest
        return wholes

    def _cost(self, wholes: Mapping[int, str]) -> int:
        """Bytes of ΔW that the kept states take."""
        head = str(self.log.head().weights)
        dense = 4 * sum(d_in * d_out for d_in, d_out in self.shapes.values())  # of a head that is read by its shifts
        whole = self.sizes.get(head, dense)  # all are of one size
        head_state = self.history.state_of(self.history.head)
        digests = {digest for state in self.kept for digest in self._weights(state, wholes)}
        here = {wholes[head_state]} if head_state in wholes else set()
        return sum(self.sizes.get(digest, whole) for digest in digests - here - {head}) + whole

    def _whole_digest(self, state: int) -> str | None:
        weights = self.whole(state)
        exact = tensors_digest(weights) == self.history.record(state).weights_digest
        return digest_bytes(encode_tensors(weights)) if exact else None

    def whole(self, state: int) -> Weights:
        """ΔW at a state."""
        return weights_at(self.log, self.history, state, self.shapes)

    def further(self) -> dict[str, Callable[[], bytes]]:
        """What makes the blobs of the states that are stored whole from now on."""
        return {d: self._maker(state) for state, d in self.wholes.items() if d not in self.sizes}

    def _maker(self, state: int) -> Callable[[], bytes]:
        return lambda: encode_tensors(self.whole(state))


def compact(
    path: str | Path,
    *,
    dry_run: bool = False,
    reason: str | None = None,
    author: str | None = None,
    timeout: float = 5.0,
) -> Compaction:
    """Drop what no head, branch or tag reaches, as a step of the log, and give its pages back to the file system.

    Every step stays in the log with its facts; states that nothing names are out of reach from then on. Handles that
    are open on the store meanwhile have to be opened again. dry_run: only say what would go. Raises StoreDamagedError
    where the store is not sound, StoreLockedError, and StoreError where nothing could be written.
    """
    path = Path(path).absolute()
    if not dry_run:
        require_sound(path, "`fsck --repair` it first")
    free, size = require_followable(path), (path / "data.mdb").stat().st_size
    with EditLog.open(path, read_only=dry_run, timeout=timeout) as log:
        history = History(log.steps(), log.idle())
        config = Config.of(history.record(0))
        plan = Plan(log, history, config)
        found = Compaction(
            kept=plan.kept,
            out_of_reach=plan.out_of_reach,
            wholes=sorted(plan.wholes),
            blobs=len(plan.dropped),
            bytes=sum(plan.sizes[digest] for digest in plan.dropped),
            free=free,
        )
        if dry_run:
            return found
        remove_leftovers(path)
        if plan.dropped:
            found.step = write_step(log, history, config, _draft(plan, reason, author_of(author))).step
        if plan.dropped or free > WORTH * size:
            shrink(log)
            found.given_back = size - (path / "data.mdb").stat().st_size
    return found


def _draft(plan: Plan, reason: str | None, author: str | None) -> Draft:
    history = plan.history
    target = history.record(history.state_of(history.head))
    record = Compact(
        **UNMADE,
        parent=target.step,
        dropped=tuple(plan.dropped),
        out_of_reach=tuple(plan.out_of_reach),
        wholes=plan.wholes,
        kept={str(state): tuple(names) for state, names in plan.kept.items()},
        bytes=sum(plan.sizes[digest] for digest in plan.dropped),
        reason=reason,
        author=author,
    )
    return Draft(record=record, weights=None, target=target, further=plan.further())


# -- an older state of the whole store


class Restored(msgspec.Struct, kw_only=True):
    """What was put back."""

    step: int
    """The step that records it, and the head from here on."""
    backup_head: int
    """The step at which the backup ended."""
    replaced_head: int | None
    """The step that was acknowledged last before; None where there was no store, or nothing says so."""
    kept_at: str | None
    """Where the former store is now."""


def restore(
    backup: str | Path,
    path: str | Path,
    *,
    discard: bool = False,
    reason: str | None = None,
    author: str | None = None,
    timeout: float = 5.0,
) -> Restored:
    """Put a backup of a store in its place on purpose, as a step of the log; or make a store of it where there is none.

    The step follows the last one of the backup, so `HEAD` acknowledges a history that no other copy has: an older or a
    newer database swapped in is still told. The former store, damaged as it may be, is kept beside the new one, as
    `NAME.replaced-N`, unless `discard`. Raises StoreDamagedError where the backup is not sound, UsageError where
    something at `path` is not the same store, StoreLockedError, and StoreError where nothing can be written: the store
    is then as it was.
    """
    backup, path = Path(backup).absolute(), Path(path).absolute()
    require_sound(backup, "restore another backup")
    if backup.resolve().is_relative_to(path.resolve()) or path.resolve().is_relative_to(backup.resolve()):
        raise UsageError(f"{backup} and {path} lie in one another; expected two folders apart")
    made: list[Restored] = []

    def fill(folder: Path) -> None:
        copy_store(backup, folder)
        made.append(_note(folder, replaced_head, reason, author_of(author)))

    replaced_head = None
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        try:
            with replace_dir_atomic(path, only_new=True) as building:
                fill(building)
        except OSError as error:
            raise StoreError(f"cannot make a store at {path}: {error.strerror}; choose another folder") from error
        return made[0]
    _require_same(backup, path)
    with contextlib.suppress(StoreError, OSError):
        replaced_head = read_acknowledged(path).step
    kept = replace_keeping(path, fill, timeout)
    if discard:
        shutil.rmtree(kept)
    return msgspec.structs.replace(made[0], kept_at=None if discard else str(kept))


def _note(folder: Path, replaced_head: int | None, reason: str | None, author: str | None) -> Restored:
    """Commit the step that says that the copy in a folder was put back."""
    with EditLog.open(folder) as log:
        history = History(log.steps(), log.idle())
        target = history.record(history.state_of(history.head))
        ended = history.head
        record = Restore(
            **UNMADE,
            parent=target.step,
            backup_head=ended,
            replaced_head=replaced_head,
            reason=reason,
            author=author,
        )
        draft = Draft(record=record, weights=None, target=target)
        step = write_step(log, history, Config.of(history.record(0)), draft).step
    return Restored(step=step, backup_head=ended, replaced_head=replaced_head, kept_at=None)


def _require_same(backup: Path, path: Path) -> None:
    """Raise UsageError unless what is at `path` is the store that the backup is of."""
    wanted, found = read_marker(backup).store_id, ids_at(path)
    if not found:
        raise UsageError(
            f"nothing at {path} says which store it was; expected {wanted}; move it away and restore to a free place"
        )
    if found != {wanted}:
        raise UsageError(f"{path} is of the store {', '.join(sorted(found))}; expected {wanted}, that of the backup")
