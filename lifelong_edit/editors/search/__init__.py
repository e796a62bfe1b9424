"""Targets that are searched with their edit in place: for real language models, and facts without rephrases."""

from __future__ import annotations

from lifelong_edit.editors.contract import Rule
from lifelong_edit.editors.search.settings import SearchSettings

RULE = Rule(
    name="search",
    title="targets searched at the subject, through the solve",
    reference="docs/search.md; after Meng et al., arXiv 2210.07229",
    settings=SearchSettings,
    home="lifelong_edit.editors.search.rule",
    parts={"weights": "sum", "keys": "upsert"},
    places="subject",
    general=True,
    exports=frozenset({"transformers"}),
    needs=frozenset({"subject", "text"}),
    relearns="a search over all facts, some at a time, from the base",
)
