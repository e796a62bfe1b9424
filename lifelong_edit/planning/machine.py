"""What a machine has, and what a stretch of work takes of it."""

from __future__ import annotations

import ctypes
import gc
import resource
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

Clock = Callable[[], float]


@dataclass(frozen=True)
class Machine:
    """Bytes that are free: of memory on the device and beside it, of disk where the store will be.

    cards: how many the machine has of the kind of the device; 0 for a CPU.
    """

    device: str
    memory: int
    device_memory: int | None
    disk: int
    cores: int
    cards: int = 0


def machine_at(folder: Path, device: torch.device) -> Machine:
    """What is free now, of the disk under `folder`."""
    near = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    on_card = device.type == "cuda"
    return Machine(
        device=str(device),
        memory=free_memory(),
        device_memory=int(torch.cuda.mem_get_info(device)[0]) if on_card else None,
        disk=shutil.disk_usage(near).free,
        cores=torch.get_num_threads(),
        cards=torch.cuda.device_count() if on_card else 0,
    )


def free_memory() -> int:
    """Bytes of memory that can be had without swapping; half of all where the system does not say."""
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def peak_memory(device: torch.device) -> int:
    """The most bytes that were in use since `forget_peak`: on the device, if it has memory of its own, else here."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak(device: torch.device) -> None:
    """Count from here on. Where the system cannot, the peak is that of the whole process so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def give_back() -> None:
    """Return to the system what is free here, as far as the C library can: what comes next is another process' work."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):  # another library than glibc, or none that can be asked
        ctypes.CDLL(None).malloc_trim(0)


@dataclass(frozen=True)
class Took:
    """Of one stretch of work: seconds, and the most bytes in use while it went on."""

    seconds: float
    peak: int


class Watch:
    """Measures one stretch after the other."""

    def __init__(self, device: torch.device, clock: Clock = time.perf_counter) -> None:
        self.device, self.clock = device, clock

    def over(self, work: Callable[[], object]) -> Took:
        """Do it, and tell what it took."""
        self.settle()
        forget_peak(self.device)
        began = self.clock()
        work()
        self.settle()
        return Took(self.clock() - began, peak_memory(self.device))

    def settle(self) -> None:
        """Wait for what was begun on the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
