"""The codebook as mathematics: which keys there are, how far each reaches, what it gives. No model.

What is stored of a fact is what was asked and found: the key of each of its prompts, the value that answers it, the
label of its answer, and when it came. How far keys reach, and which prompts share one, is not stored but follows from
these in their order. So where a fact is gone, the codebook is what it would be had it never come but for the values,
each of which was found where the one before it ended if its prompt shared a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lifelong_edit.stores import Entry

GAP = 1e-5
"""By how much the earlier of two keys that are split reaches less far than halfway, as published."""
SAME = 1e-4
"""Nearer than this, relative to its length, a key is the same question again: rounding moves it by less."""
Array = npt.NDArray[Any]


@dataclass
class Codebook:
    """n keys, each (d_in,), with values (d_out,), radii and labels, in the order in which they came.

    radius: that of a new key.
    """

    radius: float
    keys: list[Array] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)
    radii: list[float] = field(default_factory=list)
    labels: list[bytes] = field(default_factory=list)
    _room: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def copy(self) -> Codebook:
        """Another one with the same content."""
        lists = (list(self.keys), list(self.values), list(self.radii), list(self.labels))
        return Codebook(self.radius, *lists, self._room.copy())

    def nearest(self, key: Array) -> tuple[int, float]:
        """The number of the nearest key and its Euclidean distance; −1 of an empty codebook."""
        if not self.keys:
            return -1, np.inf
        squares = np.square(self._room[: len(self.keys)] - key).sum(1, dtype=np.float64)
        found = int(squares.argmin())
        return found, float(np.sqrt(squares[found]))

    def put(self, key: Array, label: bytes, value: Array) -> tuple[int, bool]:
        """One prompt more: the number of the key by which it is answered, and whether its value begins anew.

        Far from all keys it has one of its own. Near one with another label too, and both reach half the way; near one
        with its own label it shares that one, which reaches as far as it. The same question with another answer takes
        the place of the earlier one.
        """
        near, distance = self.nearest(key)
        if near < 0 or distance > self.radius + self.radii[near]:
            return self._add(key, label, value, self.radius), True
        same = label == self.labels[near]
        if not same and distance > SAME * float(np.linalg.norm(key)):
            self.radii[near] = distance / 2 - GAP
            return self._add(key, label, value, distance / 2), True
        self.radii[near] = max(self.radii[near], distance)
        self.values[near], self.labels[near] = value, label
        return near, not same

    def _add(self, key: Array, label: bytes, value: Array, radius: float) -> int:
        if len(self.keys) == len(self._room):  # twice as much, so that keys are seldom copied
            rows = [*self.keys, *[np.zeros_like(key)] * max(8, len(self.keys))]
            self._room = np.stack(rows)
        self._room[len(self.keys)] = key
        self.keys.append(key)
        self.values.append(value)
        self.radii.append(radius)
        self.labels.append(label)
        return len(self.keys) - 1


def in_order(entries: Sequence[Entry]) -> list[tuple[Entry, int]]:
    """The prompts of entries in the order in which they came, each as its entry and its number in it."""
    found = [(entry, number) for entry in entries for number in range(len(entry.rows["order"]))]
    return sorted(found, key=lambda one: int(one[0].rows["order"][one[1]]))


def entry_of(keys: Array, values: Array, labels: Sequence[bytes], orders: Sequence[int]) -> Entry:
    """What is kept of a fact with n prompts. keys: (n, d_in), values: (n, d_out); labels: 16 bytes each."""
    label = np.frombuffer(b"".join(labels), np.uint8).reshape(-1, 16)
    rows = {"key": keys, "value": values, "label": label, "order": np.array(orders, np.int64)}
    return Entry(rows)


class Folding:
    """Codebooks of entries, made one prompt at a time; what was made last is gone on from where that can be."""

    def __init__(self, radius: float) -> None:
        self._radius = radius
        self._done: list[tuple[Entry, int]] = []
        self._book = Codebook(radius)

    def of(self, entries: Sequence[Entry]) -> Codebook:
        """The codebook of entries, in the order in which they came."""
        wanted = in_order(entries)
        known = len(self._done)
        if len(wanted) < known or any(
            one[0] is not two[0] or one[1] != two[1] for one, two in zip(self._done, wanted, strict=False)
        ):
            self._book, known = Codebook(self._radius), 0
        for entry, number in wanted[known:]:
            rows = entry.rows
            self._book.put(rows["key"][number], rows["label"][number].tobytes(), rows["value"][number])
        self._done = wanted
        return self._book.copy()
