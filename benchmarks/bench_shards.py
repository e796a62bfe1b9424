"""A model in shards against a whole one: what each process holds, its peak in loading and in passes, and their time.

The model is a decoder with random weights, made on the spot. The time of passes is taken by the clock and as the
processor time of the busiest process, all of whose processes make the same passes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.bench_world import ENVIRONMENT
from benchmarks.common import REPOSITORY, median, write

LAYERS, WIDTH, MICRO_BATCH = 16, 512, 64


def main() -> None:
    """Measures, prints and writes `results/shards.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", default="1,2", help="how many, by comma")
    parser.add_argument("--facts", type=int, default=32, help="that are traced")
    parser.add_argument("--repeats", type=int, default=3, help="of the trace")
    parser.add_argument("--part", nargs=2, metavar=("N", "MODEL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(in_processes(int(given.part[0]), given.part[1], given.facts, given.repeats)))
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        for count in map(int, given.processes.split(",")):
            command = [sys.executable, "-m", "benchmarks.bench_shards", "--part", str(count), folder]
            command += ["--facts", str(given.facts), "--repeats", str(given.repeats)]
            told = subprocess.run(
                command, cwd=REPOSITORY, env=ENVIRONMENT, stdout=subprocess.PIPE, check=True, text=True
            )
            found[count] = json.loads(told.stdout.splitlines()[-1])
            print(count, found[count], flush=True)
    write("shards", {"shards": found, "digests_equal": len({one.pop("digest") for one in found.values()}) == 1})


def make(folder: Path) -> None:
    """A decoder of Llama's architecture with random weights, with the tokenizer of `atlas`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lifelong_edit.models.loading import load_tokenizer

    tokenizer = load_tokenizer("atlas")
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=8,
        num_key_value_heads=8, vocab_size=len(tokenizer), max_position_embeddings=256, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def in_processes(count: int, model: str, facts: int, repeats: int) -> dict[str, Any]:
    """The figures of so many processes; of one it is a whole model."""
    from lifelong_edit.world import ALONE
    from lifelong_edit.world.starting import Started

    told = (model, facts, repeats)
    if count == 1:
        return measured(ALONE, told)
    started = Started(count, measured, told)
    found = measured(started.world, told)
    started.end()
    return found


def measured(world: Any, given: tuple[str, int, int]) -> dict[str, Any]:
    """What one of the processes does, and what number 0 gives back: bytes are those of the process that has most."""
    from lifelong_edit.facts import read_facts
    from lifelong_edit.models import load_model
    from lifelong_edit.stores import digest_bytes
    from lifelong_edit.tracing.rows import fact_rows
    from lifelong_edit.tracing.trace import trace

    load_model("atlas")  # whatever is imported for a model
    before = anonymous()
    with peak() as loading:
        loaded = load_model(given[0], modules=["12-15"], device="sharded", world=world)
    read = [record.fact for record in read_facts([str(REPOSITORY / "lifelong_edit/atlas/edits_train.jsonl")])]
    rows = fact_rows(loaded, read[: given[1]], 1)
    trace(loaded, rows, MICRO_BATCH)  # the first one warms up
    clock, busy = [], []
    with peak() as passing:
        for _ in range(given[2]):
            world.each(range(world.size), lambda _: None)
            began, spent = time.perf_counter(), time.process_time()
            traced = trace(loaded, rows, MICRO_BATCH)
            busy.append(time.process_time() - spent)
            clock.append(time.perf_counter() - began)
    tensors = [traced.keys[m.name] for m in loaded.modules] + [traced.gradients[m.name] for m in loaded.modules]
    local = [p.to_local() if hasattr(p, "to_local") else p for p in loaded.model.parameters()]
    own = {
        "weights": sum(part.untyped_storage().nbytes() for part in local),
        "peak_of_loading": loading[0] - before,
        "peak_of_passes": passing[0] - before,
        "seconds": median(clock),
        "busiest": median(busy),
    }
    most = world.each(range(world.size), lambda _: own)
    found = {name: max(one[name] for one in most) for name in own}
    digest = digest_bytes(*(tensor.numpy().tobytes() for tensor in tensors))
    world.close()
    return {**found, "rows": len(rows), "digest": digest}


def anonymous() -> int:
    """Bytes of this process that are in memory, without those of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


@contextmanager
def peak() -> Iterator[list[int]]:
    """A list with the most that `anonymous` was within the context, looked at a hundred times a second."""
    found, ended = [anonymous()], threading.Event()

    def look() -> None:
        while not ended.wait(0.01):
            found[0] = max(found[0], anonymous())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    main()
