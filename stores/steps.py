"""What every step of the log says of itself, and how the fields read that most kinds lack."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from lifelong_edit.stores.figures import AsBase, Forecast, Gate, Guard, Met, Staleness
from lifelong_edit.stores.parts import KEYS, MOMENTS, WEIGHTS, Part

StepKind = Literal[
    "init", "edit", "rollback", "reconsolidate", "refused", "retract", "decide", "tag", "branch", "switch",
    "compact", "restore", "purge",
]  # fmt: skip
STILL: tuple[StepKind, ...] = ("rollback", "refused", "tag", "branch", "switch", "compact", "restore", "purge")
"""Kinds of steps that make no state of their own: they stand at their parent's."""


class Place(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a record was read: the digest of the file's content, the record's number in it, and its fact."""

    file_digest: str
    number: int
    fact: str


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """One committed entry of the log. Its digest in the chain is the digest of its encoded bytes.

    It holds `previous` and the digests of its payloads, so payloads can be dropped without breaking the chain. Fields
    that a kind lacks read as empty.
    """

    step: int
    parent: int
    """The step whose state this one starts from; −1 for `init`. A rollback's state *is* its parent's, and so is that of
    a tag, a branch or a switch."""
    previous: str
    """Chain digest of the preceding step in the log; empty for `init`."""
    time: str
    """UTC, ISO 8601."""
    reason: str | None = None
    author: str | None = None
    """Who made the step."""
    weights_digest: str
    """`tensors_digest` of ΔW at this step's state."""
    live_digest: str
    """Digest of the sorted digests of the facts live at this step's state."""
    seconds: float | None = None
    """By the clock, to make it; None where that was not looked at."""
    notes: dict[str, Any] = {}
    """What an editor or a measurement tells: passes, losses, rows. Nothing is derived from it."""
    provenance: dict[str, Any] = {}
    """Code version, model fingerprint, settings digest, seed, environment; in step 0 the settings themselves."""

    @property
    def kind(self) -> StepKind:
        """What it did."""
        found: StepKind = self.__struct_config__.tag  # type: ignore[assignment]
        return found

    # -- what most kinds lack

    @property
    def parts(self) -> dict[str, Part]:
        """What the step brings to the parts of the state that it leads to, by name."""
        return {}

    @property
    def added(self) -> tuple[str, ...]:
        """Digests of the facts that became live, in the order of the batch."""
        return ()

    @property
    def superseded(self) -> tuple[str, ...]:
        """Digests of live facts that a fact of this step replaced, or that were retracted."""
        return ()

    @property
    def skipped(self) -> tuple[str, ...]:
        """Digests of the batch's records that were not applied, in the order of the batch."""
        return ()

    @property
    def places(self) -> tuple[Place, ...]:
        """Every record that the batch consumed, skipped ones included."""
        return ()

    @property
    def conflicts(self) -> tuple[Met, ...]:
        """New facts that met live ones, and what became of them."""
        return ()

    @property
    def reviewed(self) -> tuple[str, ...]:
        """Digests of the records that left quarantine with this step."""
        return ()

    @property
    def aside(self) -> tuple[str, ...]:
        """Digests of the records that this step put into quarantine, each once."""
        return tuple(dict.fromkeys(met.new for met in self.conflicts if met.action == "quarantine"))

    @property
    def in_words_of(self) -> dict[str, tuple[str, ...]]:
        """For a fact that took the place of others: digests of those whose words it was taught in too."""
        return {}

    @property
    def gate(self) -> Gate | None:
        """What was measured before the commit."""
        return None

    @property
    def forecast(self) -> Forecast | None:
        """What it was expected to make forgotten."""
        return None

    @property
    def start(self) -> float | None:
        """Of a solve over all live facts: from so much of the ΔW before; 0 is canonical, from the base weights."""
        return None

    @property
    def guard(self) -> Guard | None:
        """What the guard of such a solve measured."""
        return None

    @property
    def objections(self) -> tuple[str, ...]:
        """Why the guard would not have it committed."""
        return ()

    @property
    def staleness(self) -> Staleness | None:
        """How stale the keys were at the state before."""
        return None

    @property
    def as_base(self) -> dict[str, AsBase]:
        """Of a retraction: how many retracted and unedited facts are answered as by the base model."""
        return {}

    @property
    def backup_head(self) -> int | None:
        """Of a restoration: the step at which the backup ended."""
        return None

    @property
    def left_out(self) -> dict[str, int]:
        """How many records of a batch were not applied, by reason."""
        return {}

    @property
    def fixed(self) -> str | None:
        """Of `init`: digest of the blob with all arrays that it fixed."""
        return None

    @property
    def name(self) -> str | None:
        """Of a tag, branch or switch: the name that it is about."""
        return None

    @property
    def named(self) -> int | None:
        """The step whose state that name stands for from here on; None where the name is taken away."""
        return None

    @property
    def dropped(self) -> tuple[str, ...]:
        """Of `compact` and `purge`: digests of the blobs that went; no state that is kept needs them."""
        return ()

    @property
    def out_of_reach(self) -> tuple[int, ...]:
        """Of `compact` and `purge`: the steps whose states cannot be gone back to any more."""
        return ()

    @property
    def purged(self) -> tuple[str, ...]:
        """Of `purge`: digests of the facts whose text went with this step."""
        return ()

    @property
    def wholes(self) -> dict[int, str]:
        """Of `compact`: ΔW whole of states that earlier steps made, by step, so that shifts before them could go."""
        return {}

    # -- its blobs

    @property
    def blobs(self) -> tuple[str, ...]:
        """Digests of the blobs that this record refers to, each once."""
        of_parts = (blob for part in self.parts.values() for blob in part.blobs)
        named = (*of_parts, self.fixed, *self.wholes.values())
        return tuple(dict.fromkeys(digest for digest in named if digest is not None))

    @property
    def shift(self) -> str | None:
        """The blob with the shift of this step, where it brings one."""
        return self._change(WEIGHTS)

    @property
    def snapshot(self) -> str | None:
        """The blob with ΔW whole, where this step brings it."""
        return self.parts[WEIGHTS].whole if WEIGHTS in self.parts else None

    @property
    def keys(self) -> str | None:
        """The first blob with keys of the facts that this step traced."""
        return self._change(KEYS)

    @property
    def further_keys(self) -> tuple[str, ...]:
        """The other ones, where it traced more facts than one holds."""
        return self.key_blobs[1:]

    @property
    def key_blobs(self) -> tuple[str, ...]:
        """Digests of the blobs with the keys of the facts that this step traced."""
        return self.parts[KEYS].change if KEYS in self.parts else ()

    @property
    def editor_state(self) -> str | None:
        """The blob with the editor's own state after this step."""
        return self._change(MOMENTS)

    def _change(self, part: str) -> str | None:
        return next(iter(self.parts[part].change), None) if part in self.parts else None

    # -- for people

    @property
    def report(self) -> dict[str, Any]:
        """What the step found, as one mapping; made for `show`, `log` and scripts. Nothing in here derives from it."""
        found = self._told() | self.notes
        return found if self.seconds is None else found | {"seconds": self.seconds}

    def _told(self) -> dict[str, Any]:
        """What has fields of its own, as a mapping."""
        return {}
