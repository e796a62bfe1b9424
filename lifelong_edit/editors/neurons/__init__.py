"""New neurons for each fact, gated by its subject: for real language models, and many facts; or by its claim."""

from __future__ import annotations

from lifelong_edit.editors.contract import Rule
from lifelong_edit.editors.neurons.settings import NeuronsSettings
from lifelong_edit.editors.tries import Tries

RULE = Rule(
    name="neurons",
    title="new neurons for each fact, gated by its subject, or by its claim",
    reference="docs/neurons.md; after Huang et al., arXiv 2301.09785",
    settings=NeuronsSettings,
    home="lifelong_edit.editors.neurons.rule",
    parts={"weights": "sum", "keys": "upsert", "neurons": "upsert"},
    shifts=False,
    places="memory",
    general=True,
    tasks=frozenset({"causal", "classify"}),
    at={"causal": "subject", "classify": "answer"},
    exports=frozenset({"transformers", "gguf"}),
    needs=frozenset({"subject", "text"}),
    statistics=False,
    tries=Tries(
        grid={
            "opens": (0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
            "rate": (0.1, 0.2, 0.3, 0.5, 0.8),
            "own": (0.01, 0.02, 0.05, 0.1, 0.2),
            "around": (0.0, 0.3, 1.0, 3.0),
            "rounds": (15, 25, 40),
            "thinned": (0.0, 0.3, 0.5, 0.7, 0.85),
        },
        depths=(0.2, 0.27, 0.33, 0.38, 0.43, 0.5, 0.57),
        fixing=frozenset({"around"}),
        stream_only=frozenset({"rounds"}),
    ),
    relearns="gates solved again for all facts, values searched again from the base, some facts at a time",
)
