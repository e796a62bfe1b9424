"""How well forgetting is forecast: areas under the curve on streams of facts that nothing was fitted on.

Streams into trex-gpt2-mini in two solves: `held`, in which the keys of earlier facts are held and hardly one is
forgotten, and `loose`, a single pass with long steps in which nothing is. A row is a live fact that is answered right
before a batch; it is forgotten where it is wrong after it. Judged on `facts_stream.jsonl` are the forecasters that the
package brings, fitted on the forgetting of its own small model, and those fitted on streams of `facts_train.jsonl` into
this one, each from keys alone and from the proposed change; beside them the largest cosine of a fact's key and the
batch's by itself.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from benchmarks import common
from benchmarks.data import trex_facts, trex_model, wikitext
from lifelong_edit import Settings
from lifelong_edit.bench import Bench, prepare
from lifelong_edit.facts import Fact
from lifelong_edit.judging.forgetting import Measured, measure_stream, merge
from lifelong_edit.models import LoadedModel, load_model
from lifelong_edit.numerics.forecast import FEATURES, Forecaster, Kind, fit_forecaster, set_level
from lifelong_edit.timeline.defaults import default_forecasters
from lifelong_edit.timeline.model import make_editor

BATCH = 50
KINDS: tuple[Kind, ...] = ("keys", "change")
HELD = Settings(more_passes=0, passes=2, phrasings=0, rehearse=0, preserved=0, preserved_keys=0, text_tokens=8000)
SOLVES = {"loose": HELD.replace(ask="published", eta=3.0), "held": HELD}


def measure(loaded: LoadedModel, settings: Settings, facts: Sequence[Fact], text: str) -> Measured:
    """What a stream of facts made forgotten, from the base."""
    started = time.perf_counter()
    bench = Bench(loaded, settings, prepare(loaded, settings, text=[text]))
    found = measure_stream(bench, make_editor(bench), [facts[i : i + BATCH] for i in range(0, len(facts), BATCH)])
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
    parser.add_argument("--loose", type=int, default=500, help="facts of each stream in the loose solve")
    parser.add_argument("--held", type=int, default=500, help="facts of each stream in the held solve")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    options = parser.parse_args()
    loaded, counts = load_model(str(trex_model())), {"loose": options.loose, "held": options.held}
    train, stream, text = trex_facts("train"), trex_facts("stream"), wikitext("valid")
    learned, judged = {}, {}
    for name, count in counts.items():
        learned[name] = measure(loaded, SOLVES[name], shuffled(train, 0)[:count], text)
        streams = [shuffled(stream, seed)[:count] for seed in options.seeds]
        judged[name] = merge([measure(loaded, SOLVES[name], facts, text) for facts in streams])
    own = fit(learned["loose"], learned["held"])
    both: dict[str, dict[Kind, Forecaster]] = {"from atlas": default_forecasters(), "own": own}
    judged["both"] = merge([judged["loose"], judged["held"]])
    scores = {name: judge(both, found) for name, found in judged.items()}
    for name, found in scores.items():
        print(name, *(f"{what}: {value}" for what, value in found.items()), sep="\n  ")
    results = {"settings": msgspec.to_builtins(SOLVES), "facts": counts, "seeds": options.seeds}
    common.write(
        "forecast",
        {**results, "fitted on facts_train": msgspec.to_builtins(own), "judged on facts_stream": scores},
    )


def fit(loose: Measured, held: Measured) -> dict[Kind, Forecaster]:
    """Forecasters as `scripts/atlas-forecast.py` fits them for the bundled model."""
    pooled = merge([loose, held])
    keys = fit_forecaster(FEATURES["keys"], loose.features["keys"], loose.forgotten, loose.batch)
    change = fit_forecaster(FEATURES["change"], pooled.features["change"], pooled.forgotten, pooled.batch)
    return {"keys": set_level(keys, held.features["keys"], float(held.forgotten.sum()) + 0.5), "change": change}


if __name__ == "__main__":
    main()
