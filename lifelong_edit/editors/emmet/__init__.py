"""EMMET (arXiv 2403.14236): what facts ask for is a constraint, in one matrix."""

from __future__ import annotations

from lifelong_edit.editors.contract import OF_SHIFTS, Rule
from lifelong_edit.editors.locate.settings import ONE, LocateSettings, tries

RULE = Rule(
    name="emmet",
    title="EMMET: many facts as equality constraints in one matrix",
    reference="Gupta et al., arXiv 2403.14236",
    settings=LocateSettings,
    home="lifelong_edit.editors.emmet.rule",
    parts={"weights": "sum", "keys": "upsert"},
    places="one",
    exports=OF_SHIFTS,
    needs=frozenset({"subject", "text"}),
    tries=tries(ONE, slack=(0.0, 0.03, 0.1, 0.3, 1.0)),
    relearns="all facts as one batch, from the base",
)
