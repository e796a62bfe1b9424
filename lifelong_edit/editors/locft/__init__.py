"""Breadth-first fine-tuning: with every batch all facts in force are trained again together, from the base."""

from __future__ import annotations

from lifelong_edit.editors.contract import OF_SHIFTS, Rule
from lifelong_edit.editors.locft.settings import LocftSettings
from lifelong_edit.editors.tuning.settings import TRIES

RULE = Rule(
    name="locft",
    title="breadth-first fine-tuning of one layer, all facts together",
    reference="LocFT-BF, arXiv 2509.22072",
    settings=LocftSettings,
    home="lifelong_edit.editors.locft.rule",
    parts={"weights": "sum", "keys": "upsert"},
    tasks=frozenset({"causal", "classify", "masked", "seq2seq"}),
    places=2 / 3,
    exports=OF_SHIFTS,
    statistics=False,
    tries=TRIES,
    relearns="what every batch does: epochs over all facts together, from the base",
)
