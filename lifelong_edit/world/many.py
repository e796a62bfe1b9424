"""Several processes, by torch.distributed: what each found is given to all, in an order that is always the same."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from lifelong_edit.errors import LifelongEditError, UsageError, WorldError
from lifelong_edit.world.alone import World
from lifelong_edit.world.carrying import as_bytes, put_in, taken_out
from lifelong_edit.world.watching import Marks, Watch

T = TypeVar("T")
U = TypeVar("U")
FOREVER = timedelta(days=365)
"""How long a process waits for another that is alive: a batch may take hours, and standard input may say nothing."""


@dataclass(frozen=True)
class _Failed:
    """That work failed: at which unit, in which process, and by what."""

    number: int
    rank: int
    error: Exception


class SharedWorld(World):
    """One of several processes on one machine.

    Every meeting of theirs begins with the same exchange, in which each says what it has come for: processes that went
    different ways are found out there, and never wait for each other.
    """

    def __init__(self, store: Any, rank: int, size: int, pids: Mapping[int, int], stderr: int) -> None:
        """store: of torch.distributed, at hand to all of them. pids: of the processes that are known, by rank.

        stderr: the file in which the user is told of one that has ended. Raises WorldError where they are not alike.
        """
        self.rank, self.size = rank, size
        self._meetings, self._busy = 0, False
        self._meshes: dict[str, DeviceMesh] = {}
        self._watch = Watch(rank, size, Marks(store, rank), pids, stderr)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=FOREVER)
        found = self._meet("begin", os.getpid())
        self._watch.pids = {of: pid for of, pid in enumerate(found) if of != rank}
        self._require_alike()

    def _require_alike(self) -> None:
        """The same numbers come out of the same units only where libraries and processors are the same."""
        mine = {
            "release": version("lifelong-edit"),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "machine": (platform.machine(), socket.gethostname()),
        }
        for rank, other in enumerate(self._meet("alike", mine)):
            for name, found in other.items():
                if found != mine[name]:
                    raise WorldError(
                        f"process {rank} of {self.size} has {name} {found}, process {self.rank} has {mine[name]}; "
                        "expected all of them alike and on one machine, since results depend on it"
                    )

    @property
    def passes_in_step(self) -> bool:
        """See `World.passes_in_step`."""
        return bool(self._meshes)

    def each(self, units: Iterable[U], work: Callable[[U], T]) -> list[T]:
        """What `work` makes of each unit, in their order, see `World.each`. Within other work nothing is shared out."""
        return self._each(list(units), work)

    def in_turn(self, names: Iterable[str], work: Callable[[str], T]) -> Iterator[tuple[str, T]]:
        """Each name with what `work` makes of it, see `World.in_turn`."""
        names = list(names)
        for first in range(0, len(names), self.size):
            group = names[first : first + self.size]
            yield from zip(group, self._each(group, work, first), strict=True)

    def _each(self, units: Sequence[U], work: Callable[[U], T], first: int = 0) -> list[T]:
        """As `each`, of units that are numbered from `first` on, a multiple of how many processes there are."""
        if self._busy or not units:
            return [work(unit) for unit in units]
        owners = [self._owner(first + place) for place in range(len(units))]
        mine = [place for place, owner in enumerate(owners) if owner == self.rank]
        found = self._found("each", mine, lambda place: work(units[place]))
        return [found[owner][place // self.size] for place, owner in enumerate(owners)]

    def _owner(self, number: int) -> int:
        """Whose unit `number` is: to and fro, since units are often sorted by how long they take."""
        there, place = number // self.size % 2 == 0, number % self.size
        return place if there else self.size - 1 - place

    def lead(self, work: Callable[[], T], beside: Callable[[], object] | None = None) -> T:
        """What `work` gives or raises in process 0, where alone it is called, in every process, see `World.lead`."""
        if self._busy:
            return work()
        if beside is not None and not self.leads:
            beside()
        return self._found("lead", range(1) if self.leads else range(0), lambda _: work())[0][0]

    def _found(self, purpose: str, mine: Sequence[int], work: Callable[[int], T]) -> list[list[T]]:
        """What the processes made of their units, by rank. Raises in all what the first unit that failed did."""
        made, failed, own = list[T](), None, None
        self._busy = True
        try:
            for number in mine:
                made.append(work(number))
        except Exception as error:
            own, failed = error, _Failed(mine[len(made)], self.rank, self._sent(error))
        finally:
            self._busy = False
        found: list[Any] = self._meet(purpose, failed or made)
        first = min((part for part in found if isinstance(part, _Failed)), key=lambda one: one.number, default=None)
        if first is not None:
            raise own if own is not None and first.rank == self.rank else first.error
        return found

    def agree(self, what: str, digest: str) -> None:
        """Raise WorldError in every process, unless all have the same digest of `what`."""
        if self._busy:
            return
        found = self._meet("agree", digest)
        other = next((rank for rank, theirs in enumerate(found) if theirs != found[0]), None)
        if other is not None:
            raise WorldError(
                f"process 0 of {self.size} came to {what} {found[0][:12]}, process {other} to {found[other][:12]}; "
                "expected the same in all; nothing of it was committed; run it in one process, and report what differs"
            )

    def in_step(self) -> World:
        """See `World.in_step`."""
        return InStep(self)

    def mesh(self, kind: str) -> DeviceMesh:
        """All processes, by whom shards of a model are held on devices of a kind; the same one each time.

        What goes through it does not meet what is said by `each` and its kin. Raises UsageError for more processes than
        cards.
        """
        if kind not in self._meshes:
            if kind == "cuda" and torch.cuda.device_count() < self.size:
                raise UsageError(
                    f"found {self.size} processes and {torch.cuda.device_count()} CUDA devices, expected one for each "
                    "process; start as many processes as there are devices"
                )
            group = dist.new_group(backend="nccl" if kind == "cuda" else "gloo", timeout=FOREVER)
            self._meshes[kind] = DeviceMesh.from_group(group, kind)
        return self._meshes[kind]

    def meant(self, error: BaseException) -> BaseException:
        """See `World.meant`: a collective of torch's that was left alone raises RuntimeError."""
        return self._watch.lost() if isinstance(error, RuntimeError) and self._watch.has_lost() else error

    def close(self) -> None:
        """All have come to the end."""
        self._meet("end", None)
        self._watch.end()
        dist.destroy_process_group()

    def leave(self, code: int, sentence: str) -> None:
        """This process ends before the others, with an exit code: they are told, and end as well.

        Process 0 is waited for, for a while: what it says is what the user reads.
        """
        self._watch.marks.leave(code, sentence)
        with contextlib.suppress(Exception):
            dist.destroy_process_group()  # whoever waits for this process learns it so
        if not self.leads:
            self._watch.tell()
            self._watch.wait_for_leader()
        self._watch.end()

    def _sent(self, error: Exception) -> Exception:
        """An exception as the others raise it: ours and the system's are what they are, of others it is told."""
        if isinstance(error, LifelongEditError | OSError):
            return error
        return WorldError(f"process {self.rank} of {self.size}: {type(error).__name__}: {error}")

    def _meet(self, purpose: str, value: T) -> list[T]:
        """What every process has brought, by rank. Raises WorldError where one ended, or came for something else."""
        self._meetings += 1
        tensors: list[Any] = []
        head = (f"{purpose} {self._meetings}", taken_out(value, tensors))
        mine = as_bytes(tensors)
        heads: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(heads, (*head, len(mine)))
            asked = [other[0] for other in heads]
            if len(set(asked)) > 1:
                raise WorldError(
                    f"the processes went different ways ({', '.join(asked)}); expected the same way of all; nothing "
                    "of it was committed; run it in one process, and report what was run"
                )
            return [self._carried(rank, heads[rank][1], heads[rank][2], mine, value) for rank in range(self.size)]
        except RuntimeError as error:
            raise self._watch.lost() from error

    def _carried(self, rank: int, skeleton: Any, size: int, mine: torch.Tensor, value: T) -> T:
        """What process `rank` has brought."""
        buffer = mine if rank == self.rank else torch.empty(size, dtype=torch.uint8)
        if size:
            dist.broadcast(buffer, src=rank)
        found: T = value if rank == self.rank else put_in(skeleton, buffer)
        return found


class InStep(World):
    """The processes of a world with a model of which each holds a shard: every pass is made by all of them.

    So micro-batches are not shared out, and each process finds all by itself. Matrices are: no pass is needed there.
    """

    def __init__(self, world: SharedWorld) -> None:
        self.world, self.rank, self.size = world, world.rank, world.size

    @property
    def at_once(self) -> int:
        """One unit after the other."""
        return 1

    @property
    def passes_in_step(self) -> bool:
        """They are."""
        return True

    def named(self, names: Iterable[str], work: Callable[[str], T]) -> dict[str, T]:
        """See `World.named`; `work` makes no pass."""
        return self.world.named(names, work)

    def kept(self, names: Iterable[str], work: Callable[[str], T]) -> dict[str, T]:
        """See `World.kept`; `work` makes no pass."""
        return self.world.kept(names, work)

    def in_turn(self, names: Iterable[str], work: Callable[[str], T]) -> Iterator[tuple[str, T]]:
        """See `World.in_turn`; `work` makes no pass."""
        return self.world.in_turn(names, work)

    def lead(self, work: Callable[[], T], beside: Callable[[], object] | None = None) -> T:
        """See `World.lead`; `work` makes no pass, unless those `beside` it make the same ones."""
        return self.world.lead(work, beside)

    def agree(self, what: str, digest: str) -> None:
        """See `World.agree`."""
        self.world.agree(what, digest)
