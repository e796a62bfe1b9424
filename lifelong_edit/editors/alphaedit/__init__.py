"""AlphaEdit (arXiv 2410.02355): edits stay in what text leaves free."""

from __future__ import annotations

from lifelong_edit.editors.contract import OF_SHIFTS, Rule
from lifelong_edit.editors.locate.settings import SEVERAL, LocateSettings, tries

RULE = Rule(
    name="alphaedit",
    title="AlphaEdit: edits in the null space of what text holds",
    reference="Fang et al., arXiv 2410.02355",
    settings=LocateSettings,
    home="lifelong_edit.editors.alphaedit.rule",
    parts={"weights": "sum", "keys": "upsert"},
    places="located",
    exports=OF_SHIFTS,
    needs=frozenset({"subject", "text"}),
    tries=tries(SEVERAL, c0=False, free=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2), penalty=(0.1, 0.3, 1.0, 3.0, 10.0)),
    relearns="all facts as one batch, from the base",
)
