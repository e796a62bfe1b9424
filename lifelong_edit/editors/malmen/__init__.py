"""MALMEN (arXiv 2311.04661): the hypernetwork and the rule that asks with it."""

from __future__ import annotations

from lifelong_edit.editors.contract import OF_SHIFTS, Rule
from lifelong_edit.editors.ridge.settings import TRIES, RidgeSettings

RULE = Rule(
    name="malmen",
    title="MALMEN: a trained hypernetwork asks, one ridge solve per matrix",
    reference="Tan, Zhang, Fu, arXiv 2311.04661",
    settings=RidgeSettings,
    home="lifelong_edit.editors.malmen.rule",
    parts={"weights": "sum", "keys": "upsert"},
    tasks=frozenset({"causal", "classify", "masked", "seq2seq"}),
    exports=OF_SHIFTS,
    needs=frozenset({"text", "network"}),
    network=True,
    tries=TRIES,
    relearns="as gradient, which its network begins as: it is trained for a batch's few large asks, not for many small",
)
