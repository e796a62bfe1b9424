"""One process against several: equal digests, the speed-up of tracing with one thread each, and runs that are killed.

With `--training` steps of training a network in place of tracing. Either is timed in two ways. By the clock, which says
something where as many processors are free as there are processes. And by the processor time of the busiest process,
its share of packing and unpacking in it: what the clock would say there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY, median, write

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
NEWS = REPOSITORY / "facts"
SMALL = ("--set", "text_tokens=4000", "--set", "preserved=20")


def main() -> None:
    """Measures, prints and writes `results/world.json`, or with other work another file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", default="1,2,4", help="how many, by comma")
    parser.add_argument("--facts", type=int, default=128, help="that are traced")
    parser.add_argument("--repeats", type=int, default=3, help="of the trace")
    parser.add_argument("--kills", type=int, default=0, help="that alone: so many at random, over a stream")
    parser.add_argument("--training", action="store_true", help="steps of training atlas' network, in batches of 50")
    for work in WORK:
        parser.add_argument(f"--{work}", metavar="N", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    for work in WORK:
        if getattr(given, work):
            print(json.dumps(in_processes(getattr(given, work), WORK[work], (given.facts, given.repeats))))
            return
    counts = [int(part) for part in given.processes.split(",")]
    if given.kills:
        for so_far in killed(given.kills, max(counts)):
            write("world-kills", so_far)
        return
    work = "trained" if given.training else "traced"
    figures = {count: asked(count, work, given.facts, given.repeats) for count in counts}
    for found in figures.values():
        found |= {"speed_up": figures[counts[0]]["busiest"] / found["busiest"]}
        found |= {"speed_up_by_the_clock": figures[counts[0]]["clock"] / found["clock"]}
    equal = len({found["digest"] for found in figures.values()}) == 1
    name, what = ("world-training", "training") if given.training else ("world", "tracing")
    write(name, {what: figures, "digests_equal": equal})


def asked(count: int, work: str, facts: int, repeats: int) -> dict[str, Any]:
    """The figures of so many processes, measured from a process that has not begun anything yet.

    Beside them the floor, `apart`: as many processes that do a share each and know nothing of one another. What that is
    more than a share is what a machine of few processors takes from each.
    """
    found: dict[str, Any] = _told(_measured(count, work, facts, repeats))
    if work == "traced":
        beside = [_measured(1, work, facts // count, repeats) for _ in range(count)]
        found["apart"] = max(_told(process)["busiest"] for process in beside)
        found["of_apart"] = found["busiest"] / found["apart"]
    print(count, found, flush=True)
    return found


def _measured(count: int, work: str, facts: int, repeats: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.bench_world", f"--{work}", str(count)]
    command += ["--facts", str(facts), "--repeats", str(repeats)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)


def _told(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a measuring process has printed. Raises CalledProcessError where it failed."""
    out, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def in_processes(count: int, work: Any, given: tuple[int, int]) -> dict[str, Any]:
    """Work, of WORK, in so many processes: seconds by the clock, those of the busiest, bytes, the digest."""
    from lifelong_edit.world import ALONE
    from lifelong_edit.world.starting import Started

    started = None if count == 1 else Started(count, work, given)
    found: dict[str, Any] = work(ALONE if started is None else started.world, given)
    if started is not None:
        started.end()
    return found


def timed(world: Any, repeats: int, work: Callable[[], object]) -> dict[str, float]:
    """Seconds of work by the clock, and of processor time of the busiest process: the middle of so many repeats."""
    clock, busy = [], []
    for _ in range(repeats + 1):  # the first one warms up
        world.each(range(world.size), lambda _: None)
        began, spent = time.perf_counter(), time.process_time()
        work()
        own = time.process_time() - spent
        clock.append(time.perf_counter() - began)
        busy.append(max(world.each(range(world.size), lambda _, own=own: own)))
    return {"clock": median(clock[1:]), "busiest": median(busy[1:])}


def trace_in(world: Any, given: tuple[int, int]) -> dict[str, Any]:
    """What one of the processes does, and what number 0 gives back.

    Its `exchange` is the same time of the giving alone, which makes no pass: of as many tensors of that size.
    """
    import torch

    from lifelong_edit.models import load_model
    from lifelong_edit.stores import digest_bytes
    from lifelong_edit.tracing.rows import fact_rows
    from lifelong_edit.tracing.trace import trace

    def in_order(found: list[Any]) -> list[Any]:
        return [torch.cat(column) for column in zip(*found, strict=True)]

    loaded = load_model("atlas")
    loaded.world = world
    rows = fact_rows(loaded, train_facts()[: given[0]], 3)
    took = timed(world, given[1], lambda: trace(loaded, rows, 64))
    traced = trace(loaded, rows, 64)
    tensors = [traced.keys[m.name] for m in loaded.modules] + [traced.gradients[m.name] for m in loaded.modules]
    digest = digest_bytes(*(tensor.numpy().tobytes() for tensor in tensors))
    parts = list(zip(*(tensor.chunk(-(-len(rows) // 64)) for tensor in tensors), strict=True))
    exchange = timed(world, given[1], lambda: in_order(world.each(range(len(parts)), parts.__getitem__)))["busiest"]
    world.close()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return {"rows": len(rows), **took, "exchange": exchange, "bytes": size, "digest": digest}


def train_in(world: Any, given: tuple[int, int]) -> dict[str, Any]:
    """What one of the processes does of a training, in episodes of two batches of 50; seconds are those of a step.

    given: of it the repeats. Facts are those by which atlas' own network was trained.
    """
    from lifelong_edit.models import load_model
    from lifelong_edit.stores import tensors_digest
    from lifelong_edit.timeline.defaults import default_text, start_of
    from lifelong_edit.training.episodes import TrainSettings
    from lifelong_edit.training.run import Run

    settings, _ = start_of("atlas", None, None)
    loaded = load_model("atlas", modules=settings.modules or None)
    loaded.world = world
    with tempfile.TemporaryDirectory() as place:
        train = TrainSettings(batches=2, validation_share=0.1)
        run = Run(loaded, train_facts(), default_text(), Path(place), settings, train, lambda _: None)
        took = timed(world, given[1], lambda: run.trainer.run_episode(run.facts))
        digest = tensors_digest(run.networks.tensors())
        world.close()
    steps = run.trainer.steps // (given[1] + 1)
    return {"steps": steps, **{name: seconds / steps for name, seconds in took.items()}, "digest": digest}


def train_facts() -> list[Any]:
    """Facts that atlas knows, with counterfactual answers."""
    from lifelong_edit.facts import read_facts

    return [record.fact for record in read_facts([str(REPOSITORY / "lifelong_edit/atlas/edits_train.jsonl")])]


WORK: dict[str, Callable[[Any, tuple[int, int]], dict[str, Any]]] = {"traced": trace_in, "trained": train_in}
"""What is timed, by the option that has a process do it; it takes the processes, and how many facts and repeats."""


def killed(kills: int, processes: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """A stream in several processes, one of which is killed at random, and begun again; from anew when it is through.

    The command that goes on is always the same one. Each stream that came through is compared with one that nobody
    killed and that ran in one process. What was found until then is told whenever one came through.
    """
    draw, files = random.Random(seed), [str(path) for path in sorted(NEWS.glob("*.jsonl"))[:1]]
    ends, codes, same, after = list[float](), list[int](), list[bool](), Counter[int]()
    with tempfile.TemporaryDirectory() as folder:
        begun, alone, shared = (Path(folder) / name for name in ("begun", "alone", "shared"))
        made = [sys.executable, "-m", "lifelong_edit", "init", "--store", str(begun), *SMALL]
        subprocess.run(made, env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=True)
        shutil.copytree(begun, alone)
        run(1, alone, files).wait()
        shutil.copytree(begun, shared)
        process = run(processes, shared, files)
        seconds = _spent_until(process, float("inf"))
        codes.append(process.returncode)
        same.append(digests(alone) == digests(shared))
        shutil.rmtree(shared)
        while len(ends) < kills or shared.exists():
            if not shared.exists():
                shutil.copytree(begun, shared)
            process = run(processes, shared, files)
            if (ended := killed_once(process, draw, draw.uniform(0, seconds))) is not None:
                ends.append(ended)
                after[len(digests(shared)) - 1] += 1
                print(f"{len(ends)} kills, after {dict(after)} steps", flush=True)
                continue
            codes.append(process.returncode)
            same.append(digests(alone) == digests(shared))
            shutil.rmtree(shared)
            print(f"{len(ends)} kills, {len(codes)} streams, equal: {all(same)}", flush=True)
            yield {
                "processes": processes,
                "kills": len(ends),
                "slowest_end": max(ends, default=0.0),
                "processor_seconds_of_a_stream": seconds,
                "steps_committed_at_kills": dict(sorted(after.items())),
                "streams_through": len(codes),
                "exit_codes": sorted(set(codes)),
                "digests_equal": all(same),
            }


def killed_once(process: subprocess.Popen[bytes], draw: random.Random, spent: float) -> float | None:
    """Seconds until a team has ended of which one was killed; None if it was through by itself.

    spent: seconds of processor time of all of it before the kill, which say how far it has come whatever else the
    machine has to do.
    """
    _spent_until(process, spent)
    if process.poll() is not None:
        return None
    team = [process.pid, *children(process.pid)]
    killing = time.perf_counter()
    with contextlib.suppress(ProcessLookupError):
        os.kill(draw.choice(team), signal.SIGKILL)
    if process.wait() == 0:
        return None  # what was killed had nothing left to do
    while any(Path(f"/proc/{pid}").exists() for pid in team[1:]):
        time.sleep(0.05)
    return time.perf_counter() - killing


def _spent_until(process: subprocess.Popen[bytes], limit: float) -> float:
    """Processor seconds of a team when they come to `limit`, or when it ends."""
    spent = 0.0
    while process.poll() is None and spent < limit:
        spent = max(spent, sum(_spent(pid) for pid in (process.pid, *children(process.pid))))
        time.sleep(0.02)
    return spent


def _spent(pid: int) -> float:
    """Processor seconds of a process; 0 where it has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def run(processes: int, store: Path, files: Sequence[str]) -> subprocess.Popen[bytes]:
    """A stream that has begun."""
    command = [sys.executable, "-m", "lifelong_edit", "--processes", str(processes), "stream", "--store", str(store)]
    silence = subprocess.DEVNULL
    return subprocess.Popen(
        [*command, "--batch-size", "6", "--measure", "0", *files], env=ENVIRONMENT, stdout=silence, stderr=silence
    )


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(part) for part in listed.read_text().split()] if listed.exists() else []


def digests(store: Path) -> list[tuple[str, str]]:
    """Kind and weights of each step."""
    from lifelong_edit import Timeline

    with Timeline.open(store, read_only=True) as timeline:
        return [(record.kind, record.weights_digest) for record in timeline.log()]


if __name__ == "__main__":
    main()
