"""1-LI: fine-tuned weights drawn back towards those before by one number, chosen on facts and preserved prompts."""

from __future__ import annotations

from lifelong_edit.editors.contract import OF_SHIFTS, Rule
from lifelong_edit.editors.li.settings import LiSettings
from lifelong_edit.editors.tuning.settings import TRIES

RULE = Rule(
    name="li",
    title="fine-tuning of one layer, interpolated towards the base (1-LI)",
    reference="1-LI, Brown et al., arXiv 2303.00046",
    settings=LiSettings,
    home="lifelong_edit.editors.li.rule",
    parts={"weights": "sum", "keys": "upsert"},
    tasks=frozenset({"causal", "classify", "masked", "seq2seq"}),
    places=2 / 3,
    general=True,
    exports=OF_SHIFTS,
    statistics=False,
    tries=TRIES,
    relearns="what the rule that it interpolates does, interpolated towards the base",
)
