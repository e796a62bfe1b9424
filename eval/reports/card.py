"""The model card of an export: what was edited, when, by what rule, and how it does. Markdown, as the hub shows it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lifelong_edit.editors.registry import rule_of
from lifelong_edit.eval.reports.data import gather
from lifelong_edit.eval.reports.page import Row, compared, verdict
from lifelong_edit.facts import Fact
from lifelong_edit.timeline import Timeline

_UNASKED = (
    "Nobody asked its facts again after they were edited, so the log says little; `lifelong-edit eval` asks them."
)
_LIBRARY = {"peft": "peft", "gguf": "llama.cpp"}
_SHOWN = 10
"""Facts that a card names."""
_USE = {
    "transformers": """```python
from transformers import {loader}, AutoTokenizer

model = {loader}.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```""",
    "delta": """`delta.safetensors` holds what is added to the base's weights, to the bit:

```text
python apply.py path/to/the/base path/to/the/edited/model
lifelong-edit apply path/to/this/folder --model path/to/the/base --out path/to/the/edited/model
```""",
    "peft": """```python
from peft import PeftModel
from transformers import {loader}

base = {loader}.from_pretrained("path/to/the/base", dtype="{dtype}")
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```

An adapter is as near to the edited weights as its rank allows; `lifelong_edit.json` says how near.""",
    "gguf": """```text
llama-cli -m path/to/this/folder/model.gguf
```

Tokenizer and chat template are in the file. Packed weights are near the edited ones; `lifelong_edit.json` says how
near.""",
}


def card(timeline: Timeline, step: int, kind: str, live: Sequence[Fact], loader: str) -> str:
    """The card of the state at a step, exported in a format. No model is loaded.

    live: its facts. loader: the class of transformers that loads its model. The facts that came last are named, but
    not those of an encrypted store. The figures are those that the log has.
    Raises StoreDamagedError where what is read is damaged.
    """
    store = gather(timeline, timeline.path.name, at=step)
    source, rule = timeline.config.model.source, rule_of(timeline.settings.editor)
    hub = re.fullmatch(r"[\w.-]+/[\w.-]+", source)
    facts = [] if store.status["encrypted"] else live
    edits = store.edits
    spent = f", from {edits[0].time[:10]} to {edits[-1].time[:10]}" if edits else ""
    front = [
        *([f"base_model: {source}"] if hub else []),
        f"library_name: {_LIBRARY.get(kind, 'transformers')}",
        "tags:",
        "- model-editing",
        "- lifelong-edit",
    ]
    parts = [
        "\n".join(["---", *front, "---"]),
        f"# {source.rstrip('/').rpartition('/')[2]}, edited",
        f"The model `{source if hub else source.rpartition('/')[2]}` as of step {step} of a store of lifelong-edit: "
        f"{len(live):,} facts in force, edited into it in "
        f"{len(edits)} batch{'' if len(edits) == 1 else 'es'}{spent}, by the "
        f"rule `{rule.name}` ({rule.title}; {rule.reference}). `lifelong_edit.json` has the digests of base and state.",
        "## How to use it",
        _USE.get(kind, "").format(loader=loader, dtype=timeline.config.model.dtype),
        *_named(facts),
        "## How it does",
        verdict(store) if store.measurements else _UNASKED,
        _table(compared([store])),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _named(facts: Sequence[Fact]) -> list[str]:
    if not facts:
        return []
    lines = [f"- {_plain(fact.prompt)} **{_plain(fact.answer)}**" for fact in reversed(facts[-_SHOWN:])]
    return ["## What it was taught last", "\n".join(lines)]


def _table(rows: Sequence[Row]) -> str:
    lines = [f"| {row.name} | {row.what} | {row.cells[0]} |" for row in rows if row.cells[0] != "–"]
    return "\n".join(["| figure | of what | |", "| --- | --- | --- |", *lines])


def _plain(text: str) -> str:
    """Text on one line, without what Markdown would take for marks."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(text.split()))
