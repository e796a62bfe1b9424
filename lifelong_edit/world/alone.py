"""What is asked of a world. One process is a world as well: it does all the work, and needs no torch for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


class World:
    """The processes that run one command together, of which this is number `rank` of `size`; here the only one.

    All of them run the same code on the same data. What is worth it they share out by whole units (micro-batches,
    matrices) and give each other what they found, so that each has all of it. A unit is worked on by one process, in
    the same way whichever it is: how many there are changes no bit.
    """

    rank: int = 0
    size: int = 1

    def __repr__(self) -> str:
        return f"World(rank={self.rank}, size={self.size})"

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes: to the store, to files, to the user."""
        return self.rank == 0

    @property
    def at_once(self) -> int:
        """How many units of work are worked on at a time."""
        return self.size

    @property
    def passes_in_step(self) -> bool:
        """Whether a model is in shards among them, so that a pass of one is a pass of all."""
        return False

    def each(self, units: Iterable[U], work: Callable[[U], T]) -> list[T]:
        """What `work` makes of each unit, in their order, in every process.

        Whose a unit is depends on its number alone. Results are plain values, arrays and tensors, in dicts, lists and
        tuples. `work` is a function of its unit and of what all processes have alike; it draws nothing. Raises what it
        raised of the first unit of which it did.
        """
        return [work(unit) for unit in units]

    def named(self, names: Iterable[str], work: Callable[[str], T]) -> dict[str, T]:
        """What `work` makes of each name, see `each`."""
        names = list(names)
        return dict(zip(names, self.each(names, work), strict=True))

    def kept(self, names: Iterable[str], work: Callable[[str], T]) -> dict[str, T]:
        """What `work` makes of those names that are this process's, and stays with it: the owner's of each matrix.

        Of the same names in the same order it is always the same process's. Raises as `each` does.
        """
        found: dict[str, T] = {}

        def keep(name: str) -> None:
            found[name] = work(name)

        self.each(names, keep)
        return found

    def in_turn(self, names: Iterable[str], work: Callable[[str], T]) -> Iterator[tuple[str, T]]:
        """Each name with what `work` makes of it, see `named`, one after the other, so that not all of it is held.

        Each name is the same process's as in `kept`. They meet as it is taken: all of them take all of it.
        """
        return ((name, work(name)) for name in names)

    def across(
        self,
        batches: Iterable[list[int]],
        work: Callable[[list[int]], Sequence[T]],
        tell: Callable[[int], None] | None = None,
    ) -> list[T]:
        """What `work` makes of items that are handed to it in batches: of each item, in the order of their numbers.

        batches: numbers of items, each number from 0 on in one batch. work: gives what it made of each of them. tell:
        told about how many are done.
        """
        units, done = list(batches), 0
        total = sum(map(len, units))

        def told(numbers: list[int]) -> Sequence[T]:
            nonlocal done
            found = work(numbers)
            done = min(total, done + self.at_once * len(numbers))
            if tell is not None:
                tell(done)
            return found

        found = dict(zip(chain(*units), chain(*self.each(units, told)), strict=True))
        return [found[number] for number in range(total)]

    def lead(self, work: Callable[[], T], beside: Callable[[], object] | None = None) -> T:
        """What `work` gives or raises in process 0, where alone it is called, in every process.

        beside: what the others do meanwhile.
        """
        return work()

    def led(self, items: Iterable[T]) -> Iterator[T]:
        """The items as process 0 meets them, one by one, in every process; the others' own are never looked at."""
        iterator = iter(items)
        while item := self.lead(lambda: tuple(islice(iterator, 1))):
            yield item[0]

    def in_step(self) -> World:
        """The same processes where each works on every unit, since no pass through the model is possible without all.

        Matrices are still solved for by their owners.
        """
        return self

    def agree(self, what: str, digest: str) -> None:
        """Raise WorldError in every process, unless all have the same digest of `what`."""

    def meant(self, error: BaseException) -> BaseException:
        """What is to be said of an error: that another process has ended, where it comes of that."""
        return error

    def close(self) -> None:
        """All have come to the end."""

    def leave(self, code: int, sentence: str) -> None:
        """This process ends before its time, with an exit code, and has said so."""


ALONE = World()
"""One process."""
