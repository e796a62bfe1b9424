"""MEMIT (arXiv 2210.07229): many facts at once, spread over several layers."""

from __future__ import annotations

from lifelong_edit.editors.contract import OF_SHIFTS, Rule
from lifelong_edit.editors.locate.settings import SEVERAL, LocateSettings, tries

RULE = Rule(
    name="memit",
    title="MEMIT: searched hidden states, one least squares per layer",
    reference="Meng et al., arXiv 2210.07229",
    settings=LocateSettings,
    home="lifelong_edit.editors.memit.rule",
    parts={"weights": "sum", "keys": "upsert"},
    places="located",
    exports=OF_SHIFTS,
    needs=frozenset({"subject", "text"}),
    tries=tries(SEVERAL),
    relearns="all facts as one batch, from the base",
)
