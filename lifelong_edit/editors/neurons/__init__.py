"""New neurons for each fact, gated by its subject: for real language models, and many facts."""

from __future__ import annotations

from lifelong_edit.editors.contract import Rule
from lifelong_edit.editors.neurons.settings import NeuronsSettings

RULE = Rule(
    name="neurons",
    title="new neurons for each fact, gated by its subject",
    reference="docs/neurons.md; after Huang et al., arXiv 2301.09785",
    settings=NeuronsSettings,
    home="lifelong_edit.editors.neurons.rule",
    parts={"weights": "sum", "keys": "upsert", "neurons": "upsert"},
    shifts=False,
    places="memory",
    general=True,
    exports=frozenset({"transformers"}),
    needs=frozenset({"subject", "text"}),
    statistics=False,
    relearns="gates solved again for all facts, values searched again from the base, some facts at a time",
)
