"""How often a step has its ΔW in memory: peak memory of a batch on wide matrices, in multiples of ΔW.

A GPT-2 of four layers with d_in 65,536 and d_out 256 (64 MiB of ΔW each, C₀ as a factor). After two batches the peak of
a third one above what the process has at rest; the same with every matrix taken for a small one, as it was before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import write
from lifelong_edit.planning.machine import Watch
from lifelong_edit.planning.measure import sample_facts

WIDE, OUT, LAYERS = 65_536, 256, 4


def main() -> None:
    """Measures, prints and writes `results/step_memory.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inside", choices=["now", "as it was"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        print(json.dumps(one(given.inside == "now")))
        return
    command = [sys.executable, "-m", "benchmarks.bench_step_memory", "--inside"]
    found = {way: json.loads(subprocess.check_output([*command, way])) for way in ("now", "as it was")}
    print(json.dumps(found, indent=1))
    write("step_memory", found)


def one(lean: bool) -> dict[str, Any]:
    """Peaks in multiples of ΔW, and bytes that a step leaves on the disk."""
    from transformers import GPT2Config, GPT2LMHeadModel

    import lifelong_edit.editors.ridge.batch as batch
    import lifelong_edit.editors.ridge.passes as passes
    import lifelong_edit.timeline.commit as commit
    from lifelong_edit import Settings, Timeline
    from lifelong_edit.models import load_model
    from lifelong_edit.timeline.defaults import default_text

    if not lean:
        batch.LARGE = passes.LARGE = 1 << 60  # type: ignore[misc]
        commit.WHOLE_UP_TO = 1 << 60  # type: ignore[misc]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        tokenizer = load_model("atlas").tokenizer
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=len(tokenizer), n_positions=128, n_embd=OUT, n_inner=WIDE, n_layer=LAYERS, n_head=4,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        GPT2LMHeadModel(config).save_pretrained(Path(place) / "model")
        tokenizer.save_pretrained(Path(place) / "model")
        settings = Settings(
            editor="gradient", modules=("0-3",), passes=2, more_passes=0, rehearse=0, preserved=0, phrasings=0,
            text_tokens=512, gram_rank=32, micro_batch=8, gate_perplexity=1e30, gate_noise=0.0,
        )  # fmt: skip
        store, watch = Path(place) / "store", Watch(torch.device("cpu"))
        size = 4 * WIDE * OUT * LAYERS
        with Timeline.create(
            store, model=str(Path(place) / "model"), settings=settings, preserve=[], text=default_text()
        ) as timeline:
            for first in (0, 3):
                timeline.apply(sample_facts(3, first))
            rest = watch.over(lambda: None).peak
            before = timeline._log.size()
            took = watch.over(lambda: timeline.apply(sample_facts(3, 6)))
            grown = timeline._log.size() - before
            head = timeline._log.head().weights
    return {
        "delta_mib": size / 2**20,
        "peak_above_rest_in_deltas": (took.peak - rest) / size,
        "disk_of_a_step_in_deltas": grown / size,
        "head_whole": head is not None,
        "seconds": took.seconds,
    }


if __name__ == "__main__":
    main()
