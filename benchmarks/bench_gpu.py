"""What editing takes on an accelerator: `init`, a batch of 100 facts against its bare passes, a reconsolidation.

Models are built on the spot with random weights, so that nothing has to be carried: the shape of SmolLM2-135M, that of
Llama 3 8B (bfloat16; d_in 14,336, so C₀ is a factor), or a tiny one to try the script where there is no accelerator.
Prints and writes one JSON file. `--device cuda` by default; `--shape tiny --device cpu` runs everywhere.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, write
from lifelong_edit import Fact, Settings
from lifelong_edit.bench import Bench, State, prepare
from lifelong_edit.editors.contract import Lesson, moved_by
from lifelong_edit.editors.gradient.rule import make
from lifelong_edit.facts import general_prompts
from lifelong_edit.models import LoadedModel, load_model
from lifelong_edit.models.families import family_of, find_modules
from lifelong_edit.numerics.devices import DTYPES, resolve_device, settle
from lifelong_edit.planning.machine import forget_peak, peak_memory
from lifelong_edit.planning.measure import sample_facts
from lifelong_edit.stores import WEIGHTS
from lifelong_edit.timeline.defaults import default_text
from lifelong_edit.tracing.rows import fact_rows
from lifelong_edit.tracing.trace import trace

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "dtype": "float32", "gram_rank": 32,
    },
    "smollm2": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49_152, "dtype": "float32",
    },
    "llama3-8b": {
        "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128_256, "dtype": "bfloat16",
    },
}  # fmt: skip
OURS = ("dtype", "gram_rank")


def main() -> None:
    """Measures, prints and writes `gpu.json` into `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), nargs="+", default=["smollm2", "llama3-8b"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--facts", type=int, default=100, help="of the batch")
    parser.add_argument("--preserved", type=int, default=150)
    parser.add_argument("--tokens", type=int, default=20_000, help="of text that init reads")
    parser.add_argument("--passes", type=int, default=3, help="of the reconsolidation that is measured")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    device = resolve_device(given.device)
    settle(device)
    found: dict[str, Any] = {"device": str(device), "shapes": {}}
    for shape in given.shape:
        found["shapes"][shape] = on(shape, device, given)
        print(json.dumps({shape: found["shapes"][shape]}, indent=1), flush=True)
        write("gpu", found, given.out)


def built(shape: str, device: torch.device) -> LoadedModel:
    """A Llama of that shape with random weights on the device, with atlas's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_model("atlas").tokenizer
    tokenizer.model_max_length = 256
    sizes = {name: value for name, value in SHAPES[shape].items() if name not in OURS}
    config = LlamaConfig(**{"vocab_size": len(tokenizer), "max_position_embeddings": 256, **sizes})
    dtype = DTYPES[SHAPES[shape]["dtype"]]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            torch.manual_seed(0)
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    family = family_of(config, None)
    modules = find_modules(model, family, None)
    # No digest of the weights: they were drawn a moment ago, and nothing is stored.
    return LoadedModel(model, tokenizer, family, modules, shape, dtype, device, fingerprint="random")


def on(shape: str, device: torch.device, given: argparse.Namespace) -> dict[str, Any]:
    """All figures of one shape."""

    def took(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
        wait(device)
        forget_peak(device)
        began = time.perf_counter()
        made = work()
        wait(device)
        return made, {"seconds": time.perf_counter() - began, "peak_gib": peak_memory(device) / 2**30}

    found: dict[str, Any] = {}
    loaded, found["build"] = took(lambda: built(shape, device))
    found["parameters"] = sum(p.numel() for p in loaded.model.parameters())
    found["modules"] = {m.name: [m.d_in, m.d_out] for m in loaded.modules}
    settings = Settings(
        editor="gradient", device=str(device), dtype=SHAPES[shape]["dtype"], text_tokens=given.tokens,
        gram_rank=SHAPES[shape].get("gram_rank"), preserved=given.preserved, more_passes=0,
        reconsolidation_passes=given.passes, reconsolidation_gain=0.0,
    )  # fmt: skip
    probes = general_prompts()[: given.preserved]
    fixed, found["init"] = took(lambda: prepare(loaded, settings, text=default_text(), preserve=probes))
    bench, found["bench"] = took(lambda: Bench(loaded, settings, fixed))
    editor, facts = make(bench), sample_facts(given.facts, 0)
    took(lambda: editor.learn(State(), Lesson(sample_facts(2, 10_000))))  # kernels are chosen, memory is got
    change, found["batch"] = took(lambda: editor.learn(State(), Lesson(facts)))
    found["batch"] |= {"rows": change.report["rows"], "phases": change.report["seconds"]}
    _, found["bare_passes"] = took(lambda: bare(bench, facts, settings.passes))
    found["batch_to_bare_passes"] = found["batch"]["seconds"] / found["bare_passes"]["seconds"]
    again, found["the_same_again"] = took(lambda: editor.learn(State(), Lesson(facts)))
    found["same_bits"] = all(same(change.shift, again.shift, name) for name in bench.names)
    state = moved_by(State(), change, facts)
    live: list[Fact] = list(state.live.values())
    whole, found["reconsolidation"] = took(lambda: editor.relearn(live))
    found["reconsolidation"] |= {"facts": len(live), "passes": whole.report["passes"]}
    assert WEIGHTS in whole.parts
    return found


def bare(bench: Bench, facts: list[Fact], passes: int) -> None:
    """What a batch cannot do without: its rows forwards and backwards, once at the base and once in each pass."""
    own = fact_rows(bench.loaded, facts, 3)
    kept = [bench.preserved.row(i, 1.0) for i in range(len(bench.preserved.probes))]
    rows = own + [replace(row, weight=1.5) for row in kept]
    trace(bench.loaded, own, bench.settings.micro_batch)
    for _ in range(passes):
        trace(bench.loaded, rows, bench.settings.micro_batch)
    trace(bench.loaded, own, bench.settings.micro_batch, gradients=False)


def same(one: Any, other: Any, name: str) -> bool:
    """Whether two shifts of a module are the same bytes."""
    from lifelong_edit.stores import encode_shifts

    return encode_shifts({name: one[name]}) == encode_shifts({name: other[name]})


def wait(device: torch.device) -> None:
    """For what was begun on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
