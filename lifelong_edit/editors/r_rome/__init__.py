"""R-ROME (arXiv 2403.07175): ROME with one key throughout."""

from __future__ import annotations

from lifelong_edit.editors.contract import OF_SHIFTS, Rule
from lifelong_edit.editors.locate.settings import ONE, LocateSettings, tries

RULE = Rule(
    name="r-rome",
    title="R-ROME: ROME with the same key throughout",
    reference="Gupta et al., arXiv 2403.07175",
    settings=LocateSettings,
    home="lifelong_edit.editors.r_rome.rule",
    parts={"weights": "sum", "keys": "upsert"},
    places="one",
    exports=OF_SHIFTS,
    needs=frozenset({"subject", "text"}),
    tries=tries(ONE, c0=False),
    relearns="its facts one after another, in the order of their digests, from the base",
)
