"""The records of the log, a type for each kind of step. What is not in here is not kept.

Everything that anything is derived from has a field of its own. `notes` is for whatever an editor or a measurement
wants to tell; nothing reads it but people.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lifelong_edit.stores.figures import AsBase, Forecast, Gate, Guard, Met, Staleness
from lifelong_edit.stores.parts import Part
from lifelong_edit.stores.steps import Place, Step


class Init(Step, frozen=True, kw_only=True, tag="init"):
    """The beginning: the base model, and all that is fixed for the life of the store."""

    parts: dict[str, Part] = msgspec.field(default_factory=dict)
    fixed: str | None = None


class Batch(Step, frozen=True, kw_only=True):
    """What became of a batch of facts."""

    skipped: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()
    parts: dict[str, Part] = msgspec.field(default_factory=dict)
    conflicts: tuple[Met, ...] = ()
    reviewed: tuple[str, ...] = ()
    left_out: dict[str, int] = msgspec.field(default_factory=dict)
    """How many records were not applied, by reason."""
    forecast: Forecast | None = None

    def _decided(self, batch: bool) -> dict[str, Any]:
        """batch: records came, and were not only taken out of quarantine."""
        found: dict[str, Any] = {}
        if batch:
            found = {"conflicts": [met.told() for met in self.conflicts], "skipped": dict(self.left_out)}
        return found | ({"reviewed": list(self.reviewed)} if self.reviewed else {})

    def _forecast(self) -> dict[str, Any]:
        return {} if self.forecast is None else {"forecast": self.forecast.told()}


class Edit(Batch, frozen=True, kw_only=True, tag="edit"):
    """A batch of facts was edited into the weights."""

    added: tuple[str, ...] = ()
    superseded: tuple[str, ...] = ()
    in_words_of: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    gate: Gate | None = None

    def _told(self) -> dict[str, Any]:
        found: dict[str, Any] = {} if self.gate is None else {"gate": self.gate.told()}
        found |= self._decided(bool(self.gate is not None or self.conflicts or self.left_out))
        if self.in_words_of:
            found["in_words_of"] = {new: list(old) for new, old in self.in_words_of.items()}
        return found | self._forecast()


class Decide(Batch, frozen=True, kw_only=True, tag="decide"):
    """Nothing was edited, and there was something to say of conflicts. Weights and facts are the parent's."""

    def _told(self) -> dict[str, Any]:
        return self._decided(bool(self.conflicts or self.left_out)) | self._forecast()


class Resolving(Step, frozen=True, kw_only=True):
    """A solve over all live facts together."""

    start: float | None = None
    guard: Guard | None = None
    objections: tuple[str, ...] = ()
    staleness: Staleness | None = None

    def _told(self) -> dict[str, Any]:
        found: dict[str, Any] = {} if self.start is None else {"start": self.start}
        found |= {} if self.staleness is None else {"staleness": self.staleness.told()}
        if self.guard is not None:
            found |= {"guard": self.guard.told(), "objections": list(self.objections)}
        return found


class Reconsolidate(Resolving, frozen=True, kw_only=True, tag="reconsolidate"):
    """Solved again over all live facts; the live set stays. It brings ΔW whole, and all keys."""

    parts: dict[str, Part] = msgspec.field(default_factory=dict)


class Refused(Resolving, frozen=True, kw_only=True, tag="refused"):
    """A reconsolidation to which the guard objected. Its state is its parent's."""


class Retract(Resolving, frozen=True, kw_only=True, tag="retract"):
    """Took facts back, and solved again for those that remain."""

    parts: dict[str, Part] = msgspec.field(default_factory=dict)
    added: tuple[str, ...] = ()
    """Those that came back in the place of what was retracted."""
    superseded: tuple[str, ...] = ()
    as_base: dict[str, AsBase] = msgspec.field(default_factory=dict)
    """Of retracted and of unedited facts: how many are answered as by the base model."""

    def _told(self) -> dict[str, Any]:
        found: dict[str, Any] = {} if self.start is None else {"start": self.start}
        asked = {name: {"asked": one.asked, "same": one.same} for name, one in self.as_base.items()}
        return found | ({"as_base": asked} if asked else {}) | super()._told()


class Rollback(Step, frozen=True, kw_only=True, tag="rollback"):
    """Went back to the state of its parent."""


class Naming(Step, frozen=True, kw_only=True):
    """Is about a name."""

    name: str | None = None
    named: int | None = None


class Tag(Naming, frozen=True, kw_only=True, tag="tag"):
    """Named the state of a step, or took that name away."""


class Branch(Naming, frozen=True, kw_only=True, tag="branch"):
    """Began a branch at its parent's state, or took one away."""


class Switch(Naming, frozen=True, kw_only=True, tag="switch"):
    """Went to the tip of a branch."""


class Compact(Step, frozen=True, kw_only=True, tag="compact"):
    """Dropped payloads that nothing named needs."""

    dropped: tuple[str, ...] = ()
    out_of_reach: tuple[int, ...] = ()
    wholes: dict[int, str] = msgspec.field(default_factory=dict)
    kept: dict[str, tuple[str, ...]] | None = None
    """The states that stayed within reach, by step, and what names each."""
    bytes: int | None = None
    """Of the blobs that went."""

    def _told(self) -> dict[str, Any]:
        kept = {} if self.kept is None else {"kept": {state: list(names) for state, names in self.kept.items()}}
        return kept | ({} if self.bytes is None else {"bytes": self.bytes})


class Restore(Step, frozen=True, kw_only=True, tag="restore"):
    """An older copy of the store was put back."""

    backup_head: int | None = None
    """The step at which the backup ended."""
    replaced_head: int | None = None
    """The step that was acknowledged last before; None where there was no store, or nothing says so."""

    def _told(self) -> dict[str, Any]:
        if self.backup_head is None:
            return {}
        return {"backup_head": self.backup_head, "replaced_head": self.replaced_head}


class Purge(Step, frozen=True, kw_only=True, tag="purge"):
    """Dropped the text of facts, and the payloads of every state that held something of them."""

    dropped: tuple[str, ...] = ()
    out_of_reach: tuple[int, ...] = ()
    purged: tuple[str, ...] = ()
    bytes: int | None = None
    """Of the blobs that went."""

    def _told(self) -> dict[str, Any]:
        return {} if self.bytes is None else {"bytes": self.bytes}


StepRecord = (
    Init | Edit | Reconsolidate | Refused | Retract | Decide | Rollback | Tag | Branch | Switch
    | Compact | Restore | Purge
)  # fmt: skip
"""Any of them, told apart by `kind`."""
KINDS: dict[str, type[StepRecord]] = {
    str(kind.__struct_config__.tag): kind
    for kind in (
        Init, Edit, Reconsolidate, Refused, Retract, Decide, Rollback, Tag, Branch, Switch, Compact, Restore, Purge,
    )
}  # fmt: skip
