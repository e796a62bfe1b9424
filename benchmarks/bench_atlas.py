"""What the bundled network is worth: atlas' validation edits, for which nothing was trained or chosen."""

from __future__ import annotations

from typing import Any

import msgspec
import torch

from benchmarks import common
from benchmarks.bench_streams import Stream, judge, line, make_stream
from lifelong_edit import Settings, atlas
from lifelong_edit.bench import Bench, prepare
from lifelong_edit.editors.malmen.network import read_checkpoint, read_config
from lifelong_edit.editors.malmen.rule import pack
from lifelong_edit.facts import read_facts
from lifelong_edit.models import load_model
from lifelong_edit.timeline.defaults import default_preserved, default_text
from lifelong_edit.timeline.model import make_editor

BATCH = 60


def main() -> None:
    """Three batches of 60 with each editor; figures to results/atlas.json."""
    torch.manual_seed(0)
    folder = atlas.hypernetwork_dir()
    loaded = load_model("atlas", modules=None if folder is None else read_config(folder).entries)
    facts = [r.fact for r in read_facts([str(atlas.edits_validation_path())])]
    # The last rephrase of each is one that the model was never trained on; it is asked apart, by tests of the model.
    facts = [msgspec.structs.replace(f, rephrases=f.rephrases[:-1]) for f in facts]
    network = pack(None if folder is None else read_checkpoint(folder))
    fixed = prepare(loaded, Settings(), text=default_text(), preserve=default_preserved("atlas"), rule=network)
    found: dict[str, Any] = {}
    for name in ("gradient", "malmen"):
        editor = make_editor(Bench(loaded, Settings(editor=name, more_passes=0), fixed))
        stream: Stream = make_stream(facts, 3 * BATCH, seed=0)
        for start in range(0, len(stream.facts), BATCH):
            stream.apply(editor, stream.facts[start : start + BATCH])
        found[name] = judge(loaded, stream, atlas.heldout_text_path().read_text(encoding="utf-8"))
        print(name, line(found[name]), flush=True)
    common.write("atlas", found)


if __name__ == "__main__":
    main()
