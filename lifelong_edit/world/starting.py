"""How several processes come together: started by torchrun or its like, or by this program itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lifelong_edit.errors import UsageError
from lifelong_edit.world.alone import ALONE, World

TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""By what torchrun and its like tell a process which of how many it is."""
THREADS = "OMP_NUM_THREADS"
_LOOPBACK = {"linux": "lo", "darwin": "lo0"}


def is_told(environment: Mapping[str, str]) -> bool:
    """Whether this process was started as one of several."""
    return all(name in environment for name in TOLD) and environment["WORLD_SIZE"] != "1"


def join(stderr: int = 2) -> World:
    """The world of the processes that torchrun or its like has started with this one; ALONE where none did so.

    stderr: the file in which the user is told of a process that has ended. Raises UsageError for processes on several
    machines, WorldError where the processes are not alike.
    """
    if not is_told(os.environ):
        return ALONE
    import torch.distributed as dist

    from lifelong_edit.world.many import SharedWorld

    size, local = os.environ["WORLD_SIZE"], os.environ["LOCAL_WORLD_SIZE"]
    if size != local:
        raise UsageError(
            f"found {size} processes, {local} of them on this machine, expected all on one: the store's database is "
            "not for network file systems; use --nproc-per-node alone"
        )
    use_card(int(os.environ["LOCAL_RANK"]))
    given: Any = dist  # does not list all that it gives
    store, rank, count = next(iter(given.rendezvous("env://")))
    forget()
    return SharedWorld(given.PrefixStore("lifelong-edit", store), rank, count, {}, stderr)


def forget() -> None:
    """Forget how this process was started: one that it starts is none of them."""
    for name in [name for name in os.environ if name in TOLD or name.startswith("TORCHELASTIC_")]:
        del os.environ[name]


def use_card(rank: int) -> None:
    """Of several cards let `cuda` mean one for each process, as far as there are."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())


class Started:
    """The other processes of a world, started by this one, which is number 0; they end with it.

    They are started anew, not forked, and meet by a file in a folder of theirs, so that nothing listens to the network.
    """

    def __init__(self, size: int, work: Callable[[World, Any], None], given: Any) -> None:
        """work: what each of them runs, with its world and what is `given`; a function of a module, and picklable."""
        import torch
        from torch.multiprocessing.spawn import start_processes

        self._folder = tempfile.mkdtemp(prefix="lifelong-edit-")
        if THREADS not in os.environ:  # so that they do not fight for the processors
            threads = max(1, (os.cpu_count() or 1) // size)
            os.environ[THREADS] = str(threads)
            torch.set_num_threads(threads)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK.get(sys.platform, "lo"))
        told = (size, self._folder, os.getpid(), work, given)
        begin: Any = start_processes  # torch does not say what it takes
        self._others = begin(_other, told, nprocs=size - 1, join=False, daemon=True, start_method="spawn")
        pids = dict(enumerate(self._others.pids(), start=1))
        use_card(0)
        self.world = _meet(size, self._folder, 0, pids, 2)

    def end(self, seconds: float = 10.0) -> None:
        """Wait for the others to end, and make them where they do not."""
        for process in self._others.processes:
            process.join(seconds)
            if process.is_alive():
                process.kill()
                process.join()
        shutil.rmtree(self._folder, ignore_errors=True)


def _meet(size: int, folder: str, rank: int, pids: Mapping[int, int], stderr: int) -> World:
    import torch.distributed as dist

    from lifelong_edit.world.many import SharedWorld

    given: Any = dist  # does not list all that it gives
    store = given.FileStore(str(Path(folder) / "meeting"), size)
    return SharedWorld(store, rank, size, pids, stderr)


def _other(number: int, size: int, folder: str, leader: int, work: Callable[[World, Any], None], given: Any) -> None:
    """What another process than number 0 runs."""
    rank = number + 1
    use_card(rank)
    work(_meet(size, folder, rank, {0: leader}, silenced()), given)


def silenced() -> int:
    """Let nothing of this process be seen from now on; the file to which its standard error went."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return kept
