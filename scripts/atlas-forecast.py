"""Fits the forecasters that come with the package, on what makes atlas forget: python scripts/atlas-forecast.py OUT

Two streams are measured. Where later solves hold the keys of earlier facts, as in every joint solve, hardly one is
forgotten; in the other stream, a single pass with long steps in which nothing earlier is held, many are. From both
together the kind `change` learns what a shift does, however it came about. Keys say nothing of the solve: `keys` learns
from the second stream which facts are at risk, and takes from the first how great the risk is in all, half a fact being
added to what was seen.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import msgspec

from lifelong_edit import Settings, atlas
from lifelong_edit.atomic import write_bytes_atomic
from lifelong_edit.bench import Bench, prepare
from lifelong_edit.facts import read_facts
from lifelong_edit.judging.forgetting import Measured, measure_stream, merge
from lifelong_edit.models import LoadedModel, load_model
from lifelong_edit.numerics.forecast import FEATURES, Forecaster, Kind, fit_forecaster, set_level
from lifelong_edit.timeline.defaults import default_text
from lifelong_edit.timeline.model import make_editor

SIZE = 32
HELD = Settings(more_passes=0, passes=2, phrasings=0, rehearse=0, preserved=0, preserved_keys=0, text_tokens=8000)
LOOSE = HELD.replace(ask="published", eta=3.0, text_tokens=4000)


def measure(loaded: LoadedModel, settings: Settings, count: int, seed: int) -> Measured:
    """What a stream of `count` facts, shuffled by seed, made forgotten in the solve of `settings`."""
    facts = [record.fact for record in read_facts([str(atlas.edits_train_path())])]
    random.Random(seed).shuffle(facts)
    bench = Bench(loaded, settings, prepare(loaded, settings, text=default_text()))
    found = measure_stream(bench, make_editor(bench), [facts[i : i + SIZE] for i in range(0, count, SIZE)])
    print(f"{len(found.forgotten)} rows, {found.forgotten.sum()} forgotten", flush=True)
    return found


def fit(held: Measured, loose: Measured, provenance: dict[str, str]) -> dict[Kind, Forecaster]:
    """The forecasters of both kinds."""
    seen, both = int(held.forgotten.sum()), merge([loose, held])
    made = provenance | {"level": f"{seen} of {len(held.forgotten)} facts forgotten where they were held"}
    keys = fit_forecaster(FEATURES["keys"], loose.features["keys"], loose.forgotten, loose.batch, made)
    change = fit_forecaster(FEATURES["change"], both.features["change"], both.forgotten, both.batch, made)
    return {"keys": set_level(keys, held.features["keys"], seen + 0.5), "change": change}


def main(out: Path) -> None:
    """Measure both streams, fit both kinds, write them to a file."""
    loaded = load_model("atlas")
    made = {"model": "atlas", "fingerprint": loaded.fingerprint}
    fitted = fit(measure(loaded, HELD, 640, 3), measure(loaded, LOOSE, 384, 5), made)
    print(*(f"{kind}: AUC {found.auc:.3f}" for kind, found in fitted.items()), sep="\n")
    write_bytes_atomic(out, msgspec.json.format(msgspec.json.encode(fitted), indent=1) + b"\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
