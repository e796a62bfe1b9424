"""One writer and eight readers: is anything lost, is what readers see consistent, and how long does it take?

*Load.* A process edits small batches into a store on a GPT-2 of random weights, one step after another, while two
processes ask the model at the head, three report (status, live facts) and three follow the log. Each reader opens its
own read-only timeline and looks again and again; a reader fails the benchmark where a snapshot contradicts itself: the
chain of digests, the live facts against `live_digest`, a step that was acknowledged and is not there, a state that goes
back. In the end every batch must be there. Beside each commit a bare LMDB transaction of as many bytes is committed to
a database of its own, and each reader reads as many bytes from it: floors under the same load.

*Commit.* Steps of several sizes appended to a log on its own, beside the same bytes written to a file and synced.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from benchmarks import common
from lifelong_edit.stores import WEIGHTS, Edit, EditLog, Init, Part, digest_bytes, encode_tensors

READERS = {"ask": 2, "report": 3, "follow": 3}
SIZES = {"64 KiB": 1 << 16, "1 MiB": 1 << 20, "16 MiB": 1 << 24}
BARE, ACKNOWLEDGED, DONE = "bare", "acknowledged", "done"
MAP = 1 << 34
PAUSE = 0.1
"""Seconds between two looks of a reader."""
PLACES = ("Paris", "London", "Vienna", "Warsaw", "Belgrade", "Sydney", "Kenya", "Japan")


# -- a store to write to


def make_model(folder: Path) -> None:
    """A GPT-2 of two small layers with random weights, with atlas's tokenizer: for speed, not for quality."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from lifelong_edit.models import load_model

    tokenizer = load_model("atlas").tokenizer
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=2, use_cache=True)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_store(folder: Path) -> None:
    """A store on that model, at its beginning."""
    from lifelong_edit import Settings, Timeline
    from lifelong_edit.timeline.defaults import default_preserved, default_text

    make_model(folder / "model")
    settings = Settings(
        modules=("0-1",), editor="gradient", passes=1, more_passes=0, rehearse=4, preserved=4, phrasings=0,
        text_tokens=2000, gate_perplexity=1e30, snapshot_every=20,
    )  # fmt: skip
    Timeline.create(
        folder / "store", model=str(folder / "model"), settings=settings,
        preserve=default_preserved("atlas")[:40], text=default_text(),
    ).close()  # fmt: skip


def batch(number: int, size: int) -> list[Any]:
    """Facts about subjects of their own."""
    from lifelong_edit import Fact

    names = [f"{PLACES[i % 8]} {number} {i}" for i in range(size)]
    return [Fact(subject=n, prompt=f"The capital of {n} is", target=PLACES[(number + 3) % 8]) for n in names]


# -- the writer


def write(folder: Path, batches: int, size: int) -> None:
    """Edit the batches; `acknowledged` holds the last step that was, `commits.json` the seconds of each."""
    from lifelong_edit import Timeline

    bare = lmdb.open(str(folder / BARE), map_size=MAP)
    taken: dict[str, list[float]] = {"step": [], "commit": [], "bare": []}
    with Timeline.open(folder / "store") as timeline:
        commit, own = timed(timeline._log.append)
        timeline._log.append = commit  # type: ignore[method-assign]
        for number in range(batches):
            began, before = time.perf_counter(), timeline._log.size()
            step = timeline.apply(batch(number, size))
            taken["step"].append(time.perf_counter() - began)
            (folder / ACKNOWLEDGED).write_text(str(step.step))
            began = time.perf_counter()
            grown = os.urandom(max(timeline._log.size() - before, 4096))
            began = time.perf_counter()
            with bare.begin(write=True) as transaction:
                transaction.put(b"%08d" % number, grown)
                transaction.put(b"last", b"%08d" % number)
            taken["bare"].append(time.perf_counter() - began)
    taken["commit"] = own
    (folder / "commits.json").write_text(json.dumps(taken))
    (folder / DONE).touch()


def timed(what: Callable[..., Any]) -> tuple[Callable[..., Any], list[float]]:
    """The same function, and the seconds of each of its calls."""
    seconds: list[float] = []

    def call(*given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return what(*given, **named)
        finally:
            seconds.append(time.perf_counter() - began)

    return call, seconds


# -- the readers


def read(kind: str, number: int, folder: Path) -> None:
    """Look again and again until the writer is done; leaves the seconds of each look, and what was wrong."""
    look = {"ask": ask, "report": report, "follow": follow}[kind]
    bare = lmdb.open(str(folder / BARE), map_size=MAP, readonly=True, lock=True)
    seconds, floors, wrong, last, size = list[float](), list[float](), list[str](), 0, 0
    ended = False
    while not ended:
        ended = (folder / DONE).exists()
        acknowledged = int((folder / ACKNOWLEDGED).read_text() or 0)
        began = time.perf_counter()
        try:
            step, size = look(folder / "store", last)
        except Exception as error:  # what a reader meets is what is measured
            wrong.append(f"{kind}: {type(error).__name__}: {error}")
            continue
        seconds.append(time.perf_counter() - began)
        if step < max(acknowledged, last):
            wrong.append(f"{kind}: saw step {step}, after {acknowledged} was acknowledged and {last} seen")
        last = step
        began = time.perf_counter()
        with bare.begin() as transaction:
            found = transaction.get(b"last")
            rows = transaction.cursor()
            left = size if found is not None and rows.last() and rows.prev() else 0
            while left > 0:
                left -= len(rows.value())
                if not rows.prev():
                    break
        floors.append(time.perf_counter() - began)
        time.sleep(PAUSE)
    told = {"kind": kind, "looks": len(seconds), "seconds": seconds, "bare": floors, "wrong": wrong, "last": last}
    (folder / f"reader-{number}.json").write_text(json.dumps(told))


def ask(store: Path, last: int) -> tuple[int, int]:
    """Open the store, and ask its model at the head."""
    from lifelong_edit import Timeline

    with Timeline.open(store, read_only=True) as timeline:
        head = timeline.head
        timeline.at(head).ask("The capital of Paris 0 0 is")
        weights = timeline._log.head().weights
        return head, len(timeline._log.blob(weights)) if weights else 0


def report(store: Path, last: int) -> tuple[int, int]:
    """Status and live facts of one snapshot, checked against the digest that the step logged."""
    from lifelong_edit import Timeline

    with Timeline.open(store, read_only=True) as timeline:
        head = timeline.head
        record = timeline.show(head)
        facts = timeline.facts(at=head)
        live = digest_bytes("\n".join(sorted(fact.digest for fact in facts)).encode())
        if live != record.live_digest:
            raise AssertionError(f"the live facts of step {head} have the digest {live}, not {record.live_digest}")
        return head, sum(len(fact.prompt) for fact in facts)


def follow(store: Path, last: int) -> tuple[int, int]:
    """The steps since the last look, with their chain verified, and the shift of the newest."""
    with EditLog.open(store, read_only=True) as log:
        steps = log.steps(last)
        shift = steps[-1].shift
        return steps[-1].step, len(log.blob(shift)) if shift else 0


# -- the load, and commits alone


def load(folder: Path, batches: int, size: int) -> dict[str, Any]:
    """Run writer and readers, and add up what they left."""
    make_store(folder)
    lmdb.open(str(folder / BARE), map_size=MAP).close()
    (folder / ACKNOWLEDGED).write_text("0")
    spawn = multiprocessing.get_context("spawn")
    kinds = [kind for kind, count in READERS.items() for _ in range(count)]
    readers = [spawn.Process(target=read, args=(kind, i, folder)) for i, kind in enumerate(kinds)]
    writer = spawn.Process(target=write, args=(folder, batches, size))
    began = time.perf_counter()
    for process in (writer, *readers):
        process.start()
    writer.join()
    if writer.exitcode != 0:
        (folder / DONE).touch()
    for process in readers:
        process.join()
    if any(process.exitcode != 0 for process in (writer, *readers)):
        raise SystemExit("a process of the load ended with an error; see above")
    told = [json.loads((folder / f"reader-{i}.json").read_text()) for i in range(len(kinds))]
    commits = json.loads((folder / "commits.json").read_text())
    return {
        "batches": batches,
        "facts in a batch": size,
        "seconds": time.perf_counter() - began,
        **held(folder / "store", batches, size),
        "writer": {name: spread(values) for name, values in commits.items()},
        "commit to bare": common.median(commits["commit"]) / common.median(commits["bare"]),
        "readers": {kind: summed([t for t in told if t["kind"] == kind]) for kind in READERS},
        "wrong": [line for t in told for line in t["wrong"]],
    }


def held(store: Path, batches: int, size: int) -> dict[str, int]:
    """What the store has in the end, against what was written."""
    from lifelong_edit import Timeline

    with Timeline.open(store, read_only=True) as timeline:
        facts = {fact.digest for fact in timeline.facts()}
        wanted = {fact.digest for number in range(batches) for fact in batch(number, size)}
        return {"steps": timeline.head, "facts live": len(facts), "facts lost": len(wanted - facts)}


def summed(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Looks of the readers of one kind."""
    seconds = [second for one in told for second in one["seconds"]]
    floors = [second for one in told for second in one["bare"]]
    return {"looks": len(seconds), "seconds": spread(seconds), "bare": spread(floors)}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and largest."""
    if not values:
        return {}
    return {"median": float(np.median(values)), "p99": float(np.percentile(values, 99)), "most": max(values)}


def commits(folder: Path, repeats: int) -> dict[str, Any]:
    """Per size the seconds of a step's commit and of the same bytes written and synced, turn about."""
    found = {}
    for name, size in SIZES.items():
        first = encode_tensors({"m": np.zeros(1, np.float32)})
        record = Init(
            step=0, parent=-1, previous="", time="t", fixed=digest_bytes(first), weights_digest="w",
            live_digest="l",
        )  # fmt: skip
        ours, floor = list[float](), list[float]()
        with EditLog.create(folder / name.replace(" ", ""), record, blobs={digest_bytes(first): first}) as log:
            for number in range(1, repeats + 1):
                data, head = os.urandom(size), log.head()
                digest = digest_bytes(data)
                step = Edit(
                    step=number, parent=head.step, previous=head.chain, time="t", weights_digest="w", live_digest="l",
                    parts={WEIGHTS: Part(fold="sum", change=(digest,), digest="w")},
                )  # fmt: skip
                began = time.perf_counter()
                log.append(step, facts={}, blobs={digest: data})
                ours.append(time.perf_counter() - began)
                began = time.perf_counter()
                with (folder / f"bare-{number}").open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                floor.append(time.perf_counter() - began)
                (folder / f"bare-{number}").unlink()
            grown = log.size()
        ratio = common.median(floor) / common.median(ours)
        found[name] = {"append": spread(ours), "bare write": spread(floor), "throughput to bare": ratio}
        found[name]["bytes to bare"] = grown / (size * repeats)
    return found


def main() -> None:
    """Both measurements; figures to results/load.json. Ends with 1 where something was lost or inconsistent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--size", type=int, default=2, help="facts in a batch")
    parser.add_argument("--repeats", type=int, default=20, help="commits of each size")
    parser.add_argument("--quick", action="store_true", help="6 batches, 2 commits of each size; writes nothing")
    options = parser.parse_args()
    if options.quick:
        options.batches, options.repeats = 6, 2
    folder = Path(tempfile.mkdtemp(prefix="load-", dir=common.REPOSITORY))  # on a disk, not in memory
    try:
        results = {"commit": commits(folder, options.repeats), "load": load(folder, options.batches, options.size)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(common.rounded(results), indent=1))
    if not options.quick:
        common.write("load", results)
    if results["load"]["wrong"] or results["load"]["facts lost"]:
        raise SystemExit("readers saw what contradicts itself, or facts were lost; see above")


if __name__ == "__main__":
    main()
