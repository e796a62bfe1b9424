"""Hooks that step in at tokens that edits are about: beside each edited matrix stands a copy that was edited."""

from __future__ import annotations

from lifelong_edit.editors.coachhook.settings import CoachHookSettings
from lifelong_edit.editors.contract import Rule
from lifelong_edit.editors.locate.settings import SEVERAL, tries

RULE = Rule(
    name="coachhook",
    title="hooks that take an edited matrix's place at tokens that stand out",
    reference="COMEBA-HK, Li et al., arXiv 2403.05330",
    settings=CoachHookSettings,
    home="lifelong_edit.editors.coachhook.rule",
    parts={"weights": "sum", "keys": "upsert", "scores": "upsert"},
    places="located",
    needs=frozenset({"subject", "text"}),
    shifts=False,
    tries=tries(SEVERAL, alpha=(1.0, 1.4, 1.8, 2.2, 2.6, 3.0)),
    relearns="all facts as one batch, from the base",
)
