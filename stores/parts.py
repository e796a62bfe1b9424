"""What a step brings to the state that it leads to, part by part; and the one way to a state: replay.

A state is made of parts: the weights' shift ΔW, the live facts' keys, whatever else an editing rule keeps. Each step
declares the parts that it brings, and how each joins what earlier steps brought:

| fold      | a change                                       | a part at a state               |
| --------- | ---------------------------------------------- | ------------------------------- |
| `sum`     | one blob of shifts (`tensors.encode_shifts`)   | matrices by module, float32     |
| `replace` | one blob of arrays                             | arrays by name                  |
| `upsert`  | blobs of entries (`entries.encode_entries`)    | entries by the facts' digests   |

`replay` goes along a line of parts, oldest first; `advance` by one of them. Whoever appended a step moves on by
`advance`, of which `replay` is made: there is no second way to the state after a step. Only that whoever holds a state
alone may have entries put into it where they are, by `upsert`, of which both are made: of 100,000 facts a copy takes
longer than a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, Literal

import msgspec
import numpy as np

from lifelong_edit.errors import StoreDamagedError
from lifelong_edit.stores.digests import digest_bytes
from lifelong_edit.stores.entries import decode_entries
from lifelong_edit.stores.folding import add_shifts, decode_whole
from lifelong_edit.stores.tensors import decode_shifts, decode_tensors

Fold = Literal["sum", "replace", "upsert"]
Content = dict[str, Any]
"""A part at a state, by name: arrays, or an `Entry` of each fact where its fold is `upsert`."""
Read = Callable[[str], bytes]
"""The blob of a digest."""
Names = Container[str] | None

WEIGHTS, KEYS, MOMENTS = "weights", "keys", "moments"
"""Names of parts: ΔW by module; keys of live facts; an editing rule's own running figures."""


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one step brings to one part of the state that it leads to."""

    fold: Fold
    change: tuple[str, ...] = ()
    """Digests of the blobs that the step brings; none where it leaves the part as it is, or brings it whole."""
    whole: str | None = None
    """Digest of a blob that holds the part whole at the step's state, whatever came before."""
    digest: str
    """Of the part after this step: `tensors_digest` of its matrices or arrays.

    Of an `upsert` over the digests of the blobs alone that the step brings. Empty where the release that made the step
    logged none.
    """

    @property
    def blobs(self) -> tuple[str, ...]:
        """Digests of its blobs."""
        return self.change if self.whole is None else (*self.change, self.whole)

    @property
    def begins(self) -> bool:
        """Whether the part at this step's state needs nothing of what came before."""
        return self.whole is not None or (self.fold == "replace" and bool(self.change))


def upsert_digest(change: Iterable[str]) -> str:
    """The `digest` of a part whose fold is `upsert`, by the digests of the blobs that it brings."""
    return digest_bytes("\n".join(change).encode())


def replay(line: Iterable[Part], read: Read, start: Mapping[str, Any] | None = None, only: Names = None) -> Content:
    """A part at the end of a line of what steps brought to it, oldest first.

    Begins at the last step that brings it whole, else from `start` (for weights: zeros). Sums are left folds in
    float32, one step at a time; of entries and arrays the later replace the earlier. only: names of the entries that
    are wanted; None: all. Raises StoreDamagedError where a blob is missing or is not what the fold says.
    """
    parts = list(line)
    begun = next((at for at in reversed(range(len(parts))) if parts[at].begins), 0)
    found: Content = {} if start is None else dict(start)
    for part in parts[begun:]:
        if part.fold == "upsert":
            upsert(found, part, read, only)  # what was made here may be written to: a long line would copy all entries
        else:
            found = advance(found, part, read, only)
    return found


def advance(before: Mapping[str, Any], part: Part, read: Read, only: Names = None) -> Content:
    """A part after one step more. What the step does not touch stays the same objects. Arguments as of `replay`."""
    if part.fold == "sum":
        return _summed(before, part, read)
    if part.fold == "replace":
        return _replaced(before, part, read)
    found: Content = {name: entry for name, entry in before.items() if only is None or name in only}
    upsert(found, part, read, only)
    return found


def _summed(before: Mapping[str, Any], part: Part, read: Read) -> Content:
    if part.whole is not None:
        return dict(decode_whole(read(part.whole), f"weights, blob {part.whole}"))
    found = dict(before)
    for blob in part.change:
        shifts = decode_shifts(read(blob), f"shift, blob {blob}")
        shapes = {name: shift.shape for name, shift in shifts.items()}
        if not shapes.items() <= (expected := {name: np.shape(array) for name, array in found.items()}).items():
            raise StoreDamagedError(f"shift, blob {blob}: found {shapes}, expected matrices of {expected}")
        found = dict(add_shifts(found, shifts))
    return found


def _replaced(before: Mapping[str, Any], part: Part, read: Read) -> Content:
    if not part.begins:
        return dict(before)
    blob = part.whole or part.change[-1]
    # A copy: what is decoded are views of the blob's bytes, which nobody may write to.
    return {name: array.copy() for name, array in decode_tensors(read(blob), f"arrays, blob {blob}").items()}


def upsert(found: Content, part: Part, read: Read, only: Names = None) -> None:
    """Put the entries of a part whose fold is `upsert` in the place of earlier ones. Arguments as of `replay`."""
    if part.whole is not None:
        found.clear()
    for blob in (part.whole, *part.change):
        if blob is not None:
            entries = decode_entries(read(blob), f"keys, blob {blob}").items()
            found.update((name, entry) for name, entry in entries if only is None or name in only)
