"""ROME (arXiv 2202.05262): one fact, one matrix, a shift of rank one."""

from __future__ import annotations

from lifelong_edit.editors.contract import OF_SHIFTS, Rule
from lifelong_edit.editors.locate.settings import ONE, LocateSettings, tries

RULE = Rule(
    name="rome",
    title="ROME: a shift of rank one in one matrix, fact after fact",
    reference="Meng et al., arXiv 2202.05262",
    settings=LocateSettings,
    home="lifelong_edit.editors.rome.rule",
    parts={"weights": "sum", "keys": "upsert"},
    places="one",
    exports=OF_SHIFTS,
    needs=frozenset({"subject", "text"}),
    tries=tries(ONE, c0=False),
    relearns="its facts one after another, in the order of their digests, from the base",
)
