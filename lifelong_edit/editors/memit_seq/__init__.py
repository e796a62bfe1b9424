"""Sequential MEMIT: earlier facts hold still by their keys."""

from __future__ import annotations

from lifelong_edit.editors.contract import OF_SHIFTS, Rule
from lifelong_edit.editors.locate.settings import SEVERAL, LocateSettings, tries

RULE = Rule(
    name="memit-seq",
    title="MEMIT that keeps earlier facts in mind by their keys",
    reference="Meng et al., arXiv 2210.07229; Fang et al., arXiv 2410.02355",
    settings=LocateSettings,
    home="lifelong_edit.editors.memit_seq.rule",
    parts={"weights": "sum", "keys": "upsert"},
    places="located",
    exports=OF_SHIFTS,
    needs=frozenset({"subject", "text"}),
    tries=tries(SEVERAL, log_ridge=(-12.0, -9.2, -6.9, -4.6, -2.3)),
    relearns="all facts as one batch, from the base",
)
