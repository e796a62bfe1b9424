"""What `init` and a batch cost on a real model beside the passes through the model that they cannot do without.

`init` beside one bare pass over its own text and preserved prompts. A batch beside its passes alone: all that it runs
(the search's, what gates are solved from, what judges it) is recorded by shape, and run again without any of what the
rule hangs into the model, backward down to the edited layer where it was so. Peak memory beside that of the model as it
was loaded. One thread; all in one process, one after the other.

    python -m benchmarks.bench_living --model FOLDER [--arm neurons] [--size 25] [--set form=plain]
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from benchmarks import common
from benchmarks.bench_real import ordinary
from benchmarks.cases import CASES, chosen
from lifelong_edit import Timeline
from lifelong_edit.editors.registry import RULES, rule_of
from lifelong_edit.facts import general_prompts
from lifelong_edit.models import BASE, LoadedModel, masked_positions
from lifelong_edit.settings import settings_of
from lifelong_edit.tasks import task_of
from lifelong_edit.tracing.preservation import in_forms


@dataclass(frozen=True)
class Pass:
    """One pass: sequences, tokens of each, tokens behind which they stand, logits made, whether back again."""

    rows: int
    tokens: int
    before: int
    logits: int
    back: bool


@dataclass
class Recorder:
    """The passes of a model within `recording`."""

    passes: list[Pass] = field(default_factory=list)

    @contextmanager
    def recording(self, model: Any) -> Iterator[None]:
        """Within the context every pass is written down."""

        def before(module: Any, arguments: Any, named: dict[str, Any]) -> None:
            cache = named.get("past_key_values")
            self._before = int(cache.get_seq_length()) if cache is not None else 0

        def after(module: Any, arguments: Any, named: dict[str, Any], out: Any) -> None:
            rows, tokens = named["input_ids"].shape
            made = out.logits
            self.passes.append(Pass(rows, tokens, self._before, made.shape[0] * made.shape[1], made.requires_grad))

        hooks = [
            model.register_forward_pre_hook(before, with_kwargs=True),
            model.register_forward_hook(after, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def bare(loaded: LoadedModel, passes: Sequence[Pass]) -> float:
    """Seconds of passes of these shapes, and nothing else; backward ones down to the lowest edited matrix's outputs."""
    model, made = loaded.model, loaded.modules[0]
    begun = time.perf_counter()
    for one in passes:
        ids = torch.randint(0, 1000, (one.rows, one.tokens))
        mask = torch.zeros(one.rows, one.tokens, dtype=torch.bool)
        mask.view(-1)[-one.logits :] = True
        given: dict[str, Any] = {"use_cache": False}
        if one.before:
            given = {"use_cache": True, "past_key_values": _cache(model, one)}
        extra = torch.zeros(made.d_out, requires_grad=one.back)

        def add(module: Any, arguments: Any, out: torch.Tensor, extra: torch.Tensor = extra) -> torch.Tensor:
            return out + extra

        hook = model.get_submodule(made.name).register_forward_hook(add)
        try:
            with torch.set_grad_enabled(one.back), masked_positions(model, mask):
                out = model(input_ids=ids, **given)
            if one.back:
                out.logits.float().logsumexp(-1).sum().backward()
        finally:
            hook.remove()
    return time.perf_counter() - begun


def _cache(model: Any, one: Pass) -> DynamicCache:
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = DynamicCache()
    for layer in range(config.num_hidden_layers):
        kept = torch.zeros(one.rows, heads, one.before, width)
        cache.update(kept, kept.clone(), layer)
    return cache


def over_its_own(loaded: LoadedModel, text: Sequence[str], tokens: int, micro_batch: int) -> list[Pass]:
    """One pass over the text and the preserved prompts of `init`."""
    task = task_of(loaded)
    windows = task.windows(loaded, "\n".join(text), tokens // 128)
    found = [Pass(len(part), part.shape[1], 0, len(part), False) for part in windows.split(micro_batch)]
    _, questions = in_forms(loaded, general_prompts())
    lengths = sorted(len(task.encode_question(loaded, question)) for question in questions)
    parts = [lengths[i : i + micro_batch] for i in range(0, len(lengths), micro_batch)]
    return found + [Pass(len(part), max(part), 0, len(part), False) for part in parts]


def main(arguments: Sequence[str] | None = None) -> None:
    """Ratios to results/living-….json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or GGUF file")
    parser.add_argument("--arm", choices=RULES, default="neurons")
    parser.add_argument("--size", type=int, default=25)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--name", help="of the result")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given = dict(pair.split("=", 1) for pair in options.set)
    settings = settings_of(rule_of(options.arm).settings, {"editor": options.arm, "micro_batch": 32, **given})
    facts = [case.fact for case in chosen(CASES["train"](0), options.size, 0)]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        timeline = Timeline.create(Path(folder) / "s", model=options.model, settings=settings, text=ordinary())
        found["init_seconds"] = time.perf_counter() - begun
        with timeline:
            loaded, recorder = timeline.bench().loaded, Recorder()
            weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
            with loaded.at(BASE):
                own = over_its_own(loaded, ordinary(), timeline.bench().settings.text_tokens, 32)
                found["init_floor"] = bare(loaded, own)
            with recorder.recording(loaded.model):
                begun = time.perf_counter()
                timeline.apply(facts)
                found["batch_seconds"] = time.perf_counter() - begun
            with loaded.at(BASE):
                found["batch_floor"] = bare(loaded, recorder.passes)
            found["passes"] = {
                "there": sum(not p.back for p in recorder.passes),
                "and back": sum(p.back for p in recorder.passes),
                "tokens": sum(p.rows * p.tokens for p in recorder.passes),
            }
    found["init_ratio"] = found["init_seconds"] / found["init_floor"]
    found["batch_ratio"] = found["batch_seconds"] / found["batch_floor"]
    found["peak_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found["memory_ratio"] = found["peak_memory"] / weights
    print(json.dumps(common.rounded(found)))
    common.write(options.name or f"living-{Path(options.model).stem.lower()}-{options.arm}", found)


if __name__ == "__main__":
    main()
