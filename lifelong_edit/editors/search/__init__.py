"""Targets that are searched with their edit in place: for real language models, and facts without rephrases."""

from __future__ import annotations

from lifelong_edit.editors.contract import OF_SHIFTS, Rule
from lifelong_edit.editors.search.settings import SearchSettings
from lifelong_edit.editors.tries import Tries

RULE = Rule(
    name="search",
    title="targets searched at the subject, through the solve",
    reference="docs/search.md; after Meng et al., arXiv 2210.07229",
    settings=SearchSettings,
    home="lifelong_edit.editors.search.rule",
    parts={"weights": "sum", "keys": "upsert"},
    places="subject",
    general=True,
    exports=OF_SHIFTS,
    needs=frozenset({"subject", "text"}),
    tries=Tries(
        grid={
            "rate": (0.03, 0.06, 0.1, 0.2, 0.3),
            "c0": (500.0, 1500.0, 5000.0, 15_000.0, 50_000.0),
            "around": (0.0, 1.0, 5.0, 15.0, 50.0),
            "preserved_weight": (0.5, 1.0, 2.0, 4.0),
            "rounds": (12, 24, 36),
            "log_ridge": (-6.9, -4.6, -2.3),
        },
        depths=(0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5),
        stream_only=frozenset({"rounds"}),
    ),
    relearns="a search over all facts, some at a time, from the base",
)
