"""Fits the forecasters that come with the package, on what makes atlas forget: python scripts/atlas-forecast.py OUT

How the risk grows with the features is learned from a stream that is taught by prompts alone and held by little: there
enough is forgotten to learn from. How great it is in all is taken from a stream in the solve of a new store, in which
hardly a fact is forgotten: the intercepts are set by it, half a fact being added to what was seen.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lifelong_edit import atlas
from lifelong_edit.atomic import write_bytes_atomic
from lifelong_edit.batchstep import Bench, prepare
from lifelong_edit.facts import Fact, read_facts
from lifelong_edit.forecast import FEATURES, fit_forecaster, set_level
from lifelong_edit.forecast_measuring import Measured, measure_stream
from lifelong_edit.models import LoadedModel, load_model
from lifelong_edit.settings import Settings
from lifelong_edit.timeline_defaults import default_preserved, default_text

LEARNED = Settings(more_passes=0, passes=2, phrasings=0, rehearse=0, preserved=0, preserved_keys=0, text_tokens=8000)
PLAIN = Settings(more_passes=0)


def measure(loaded: LoadedModel, facts: Sequence[Fact], settings: Settings, size: int) -> Measured:
    """What a stream of batches of `size` facts made forgotten, in the solve of `settings`."""
    preserve = default_preserved("atlas") if settings.preserved else ()
    bench = Bench(loaded, settings, prepare(loaded, settings, text=default_text(), preserve=preserve))
    found = measure_stream(bench, [facts[i : i + size] for i in range(0, len(facts), size)])
    print(
        f"{len(found.forgotten)} rows, {found.forgotten.sum()} forgotten, {found.prompts.sum()} by prompt", flush=True
    )
    return found


def main(out: Path) -> None:
    """Measure both streams, fit both kinds, write them to a file."""
    facts = [record.fact for record in read_facts([str(atlas.edits_train_path())])]
    random.Random(3).shuffle(facts)
    loaded = load_model("atlas")
    learned, plain = measure(loaded, facts[:640], LEARNED, 32), measure(loaded, facts[:256], PLAIN, 64)
    seen = int(plain.forgotten.sum())
    made = {"model": "atlas", "fingerprint": loaded.fingerprint, "level": f"{seen} of {len(plain.forgotten)} forgotten"}
    fitted = {}
    for kind, names in FEATURES.items():
        found = fit_forecaster(names, learned.features[kind], learned.forgotten, learned.batch, made)
        fitted[kind] = set_level(found, plain.features[kind], seen + 0.5)
        print(f"{kind}: AUC {found.auc:.3f}", flush=True)
    write_bytes_atomic(out, msgspec.json.format(msgspec.json.encode(fitted), indent=1) + b"\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
