"""How well forgetting is forecast: areas under the curve on streams of facts that nothing was fitted on.

Streams of `facts_stream.jsonl` into trex-gpt2-mini, 50 facts a batch. A row is a live fact that is known before a
batch; it is forgotten where an answer that was right before is wrong after it. Judged are the forecasters that the
package brings, fitted on the forgetting of its own small model, and those fitted on streams of `facts_train.jsonl`
into this one, each from keys alone and from the proposed change; beside them the single largest cosine between a
fact's key and the batch's. `--solve bare` has neither rehearsal nor preserved prompts, so that more is forgotten.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from benchmarks import common
from lifelong_edit.batchstep import Bench, prepare
from lifelong_edit.facts import Fact, Probe, read_facts
from lifelong_edit.forecast import FEATURES, Forecaster, Kind, fit_forecaster
from lifelong_edit.forecast_measuring import Measured, measure_stream, merge
from lifelong_edit.models import LoadedModel, load_model
from lifelong_edit.settings import Settings
from lifelong_edit.timeline_defaults import default_forecasters

MODEL, TEXT, BATCH = "models/trex-gpt2-mini", "data/wikitext2", 50
KINDS: tuple[Kind, ...] = ("keys", "change")
SOLVES = {
    "default": Settings(more_passes=0),
    "bare": Settings(more_passes=0, passes=2, rehearse=0, preserved=0, preserved_keys=0),
}


def measure(
    loaded: LoadedModel, settings: Settings, facts: Sequence[Fact], others: Sequence[Fact], text: str, seed: int
) -> Measured:
    """What a stream of facts made forgotten, from the base."""
    started = time.perf_counter()
    preserve = [Probe(f.prompt, f.target_true, f.subject, f.relation) for f in others]
    fixed = prepare(loaded, settings.replace(seed=seed), text=[text], preserve=preserve if settings.preserved else ())
    bench = Bench(loaded, settings.replace(seed=seed), fixed)
    found = measure_stream(bench, [facts[i : i + BATCH] for i in range(0, len(facts), BATCH)])
    seconds = time.perf_counter() - started
    print(f"{len(found.forgotten)} rows, {found.forgotten.sum()} forgotten, {seconds:.0f} s", flush=True)
    return found


def shuffled(facts: Sequence[Fact], seed: int) -> list[Fact]:
    """The facts in a seeded order."""
    order = list(facts)
    random.Random(seed).shuffle(order)
    return order


def judge(forecasters: dict[str, dict[Kind, Forecaster]], measured: Measured) -> dict[str, Any]:
    """Areas under the curve, and how many facts were expected to be forgotten."""
    from sklearn.metrics import roc_auc_score

    truth = measured.forgotten
    found: dict[str, Any] = {
        "rows": len(truth),
        "forgotten": int(truth.sum()),
        "forgotten in their own prompt": int(measured.prompts.sum()),
    }
    if not 0 < truth.sum() < len(truth):
        return found
    found["largest cosine"] = {"auc": float(roc_auc_score(truth, measured.features["keys"][:, 0]))}
    for name, both in forecasters.items():
        for kind in KINDS:
            expected = both[kind].probabilities(measured.features[kind])
            auc = float(roc_auc_score(truth, expected))
            found[f"{name}, {kind}"] = {"auc": auc, "expected": float(expected.sum())}
    return found


def main() -> None:
    """Fit on training facts, judge on those of the streams, leave one result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solve", default="bare", choices=list(SOLVES))
    parser.add_argument("--facts", type=int, default=1000, help="facts of each stream")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    options = parser.parse_args()
    folder, settings = common.shared(MODEL), SOLVES[options.solve]
    loaded = load_model(str(folder))
    train, stream = ([r.fact for r in read_facts([str(folder / f"facts_{s}.jsonl")])] for s in ("train", "stream"))
    text = (common.shared(TEXT) / "valid.txt").read_text()
    order = shuffled(train, 0)
    learned = measure(loaded, settings, order[: options.facts], order[options.facts :], text, 0)
    own: dict[Kind, Forecaster] = {
        kind: fit_forecaster(FEATURES[kind], learned.features[kind], learned.forgotten, learned.batch) for kind in KINDS
    }
    parts = []
    for seed in options.seeds:
        facts = shuffled(stream, seed)[: options.facts]
        parts.append(measure(loaded, settings, facts, train, text, seed))
    results = {
        "settings": msgspec.to_builtins(settings),
        "fitted on facts_train": {kind: msgspec.to_builtins(found) for kind, found in own.items()},
        "judged on facts_stream": judge({"from atlas": default_forecasters(), "own": own}, merge(parts)),
    }
    found = results["judged on facts_stream"]
    print(*(f"{name}: {value}" for name, value in found.items()), sep="\n")
    common.write(f"forecast-{options.solve}", results)


if __name__ == "__main__":
    main()
