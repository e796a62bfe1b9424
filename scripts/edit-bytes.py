"""Measures what one edit adds to a store, rule by rule: `python scripts/edit-bytes.py`.

The bundled model, two batches of the bundled news; of the second one all that the step keeps is counted. The copy of
the newest state is not, since the next step replaces it. Networks are trained for one step, which does not change their
size. `lifelong-edit editors` shows what is written here.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from lifelong_edit import Timeline
from lifelong_edit.atlas import edits_train_path
from lifelong_edit.editors.registry import RULES, rule_of
from lifelong_edit.editors.sizes import SIZES, Sizes
from lifelong_edit.facts import Fact, read_facts
from lifelong_edit.settings import settings_of

NEWS = Path(__file__).parents[1] / "facts"
FACTS = 16
"""In a batch."""
TINY = ("batches=1", "validation_facts=2", "batch_size=8")


def batches() -> list[list[Fact]]:
    """Two batches of the bundled news."""
    facts = [record.fact for record in read_facts(sorted(map(str, NEWS.glob("*.jsonl"))))]
    return [facts[:FACTS], facts[FACTS : 2 * FACTS]]


def network(rule: str, folder: Path) -> Path | None:
    """An all but untrained network, where the rule has one."""
    if not rule_of(rule).network or rule == "malmen":
        return None
    out = folder / "network"
    command = [sys.executable, "-m", "lifelong_edit", "train", "--editor", rule, "--data", str(edits_train_path())]
    command += ["--out", str(out), "--steps", "1", *(part for pair in TINY for part in ("--train", pair))]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return out


def measured(rule: str) -> int:
    """Bytes that a fact of the second batch adds."""
    kind = rule_of(rule).settings
    # what the batch does to the model is not asked here
    settings = settings_of(kind, {"editor": rule, "text_tokens": 2000, "gate_perplexity": 1e9, "gate_noise": None})
    with tempfile.TemporaryDirectory() as folder:
        trained = network(rule, Path(folder))
        store = Path(folder) / "store"
        with Timeline.create(store, model="atlas", settings=settings, hypernetwork=trained) as timeline:
            for batch in batches():
                step = timeline.apply(batch)
            return timeline.bytes_of(step.step) // len(step.added)


def main() -> None:
    """Measure, and write the file that the program reads."""
    found = dict[str, int]()
    for rule in RULES:
        found[rule] = measured(rule)
        print(rule, found[rule], flush=True)
    SIZES.write_bytes(msgspec.json.format(msgspec.json.encode(Sizes(FACTS, found)), indent=1) + b"\n")


if __name__ == "__main__":
    main()
