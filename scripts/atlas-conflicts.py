"""Fits the scorer of conflicts that comes with the package, on facts of atlas: python scripts/atlas-conflicts.py OUT"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from lifelong_edit import Settings, atlas
from lifelong_edit.atomic import write_bytes_atomic
from lifelong_edit.bench import prepare
from lifelong_edit.facts import read_facts
from lifelong_edit.models import load_model
from lifelong_edit.timeline.defaults import BUNDLED_MODEL, default_preserved, solve_of
from lifelong_edit.training.scorers import scorer_for


def main(out: Path) -> None:
    """Fit in the modules that a store for atlas edits, around its centre, and write the scorer to a file."""
    settings = Settings(**solve_of(atlas.hypernetwork_dir()) | {"text_tokens": 2000})
    loaded = load_model(BUNDLED_MODEL, modules=settings.modules)
    text = atlas.text_path().read_text(encoding="utf-8").splitlines()
    fixed = prepare(loaded, settings, text=text, preserve=default_preserved(BUNDLED_MODEL))
    facts = [record.fact for record in read_facts([str(atlas.edits_train_path())])]
    found = scorer_for(loaded, fixed.conflict_mean, facts, settings.micro_batch, settings.seed)
    assert found is not None, "atlas has relations and rephrases"
    told = msgspec.structs.replace(found, provenance={"model": BUNDLED_MODEL} | found.provenance)
    print(f"AUC {told.auc:.3f}, threshold {told.threshold:.3f}")
    write_bytes_atomic(out, msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
