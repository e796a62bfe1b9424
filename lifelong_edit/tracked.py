"""Dictionaries that are followed by what changed in them: what is derived of all facts is not made anew for a few."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

Value = TypeVar("Value")
_MISSING: Any = object()


class Tracked(dict[str, Value]):
    """A dictionary that notes which of its names were set or taken out."""

    def __init__(self, *given: Mapping[str, Value] | Iterable[tuple[str, Value]]) -> None:
        super().__init__(*given)
        self.touched: list[str] = []
        """The names that were set or taken out since it was made, in that order, some more than once."""
        self._sorted: list[str] | None = None

    def in_order(self) -> Sequence[str]:
        """Its names, sorted; kept so from the first call on. For reading, and only until the next change."""
        if self._sorted is None:
            self._sorted = sorted(self)
        return self._sorted

    def __setitem__(self, name: str, value: Value) -> None:
        if self._sorted is not None and name not in self:
            insort(self._sorted, name)
        super().__setitem__(name, value)
        self.touched.append(name)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self.touched.append(name)
        if self._sorted is not None:
            del self._sorted[bisect_left(self._sorted, name)]

    # the other ways in which a dictionary changes, by these two

    def pop(self, name: str, default: Any = _MISSING) -> Any:
        """See `dict.pop`."""
        found = self[name] if default is _MISSING else self.get(name, default)
        if name in self:
            del self[name]
        return found

    def popitem(self) -> tuple[str, Value]:
        """See `dict.popitem`."""
        name = next(reversed(self), None)
        if name is None:
            raise KeyError("popitem(): dictionary is empty")
        return name, self.pop(name)

    def clear(self) -> None:
        """See `dict.clear`."""
        for name in list(self):
            del self[name]

    def setdefault(self, name: str, default: Any = None) -> Any:
        """See `dict.setdefault`."""
        if name not in self:
            self[name] = default
        return self[name]

    def update(self, *given: Any, **named: Value) -> None:
        """See `dict.update`."""
        for name, value in dict(*given, **named).items():
            self[name] = value

    def __ior__(self, other: Any) -> Tracked[Value]:  # type: ignore[override, misc]
        self.update(other)
        return self


class Without(Mapping[str, Value]):
    """A mapping without some of its names, as it is when it is asked: nothing is copied."""

    def __init__(self, whole: Mapping[str, Value], without: Collection[str]) -> None:
        self.whole, self.without = whole, without

    def __getitem__(self, name: str) -> Value:
        if name in self.without:
            raise KeyError(name)
        return self.whole[name]

    def __contains__(self, name: object) -> bool:
        return name not in self.without and name in self.whole

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.whole if name not in self.without)

    def __len__(self) -> int:
        return len(self.whole) - sum(name in self.whole for name in self.without)


class Follower:
    """How far somebody has followed a mapping."""

    def __init__(self) -> None:
        self._of: Tracked[Any] | None = None
        self._seen = 0
        self._without: Collection[str] = ()

    def changed(self, of: Mapping[str, Any]) -> Collection[str] | None:
        """The names that were set or taken out since the last call.

        None where all may be others: at the first call, with another dictionary than at the last, and with one that
        notes nothing. Of a mapping without some names, also those that are left out now or were at the last call.
        """
        whole, without = (of.whole, of.without) if isinstance(of, Without) else (of, ())
        if not isinstance(whole, Tracked):
            self._of = None
            return None
        found = {*whole.touched[self._seen :], *self._without, *without} if whole is self._of else None
        self._of, self._seen, self._without = whole, len(whole.touched), frozenset(without)
        return found


def in_order(names: Mapping[str, Any]) -> Sequence[str]:
    """The names of a mapping, sorted; for reading, and only until the mapping changes."""
    if isinstance(names, Without):
        found = in_order(names.whole)
        gone = [name for name in names.without if name in names.whole]
        if gone:
            found = list(found)
            for name in gone:
                del found[bisect_left(found, name)]
        return found
    return names.in_order() if isinstance(names, Tracked) else sorted(names)
