"""The rule without a network: it works on any known model on the first day."""

from __future__ import annotations

from lifelong_edit.editors.contract import OF_SHIFTS, Rule
from lifelong_edit.editors.ridge.settings import TRIES, RidgeSettings

RULE = Rule(
    name="gradient",
    title="gradient in the output metric, joint ridge solve",
    reference="docs/mathematics.md; Martens and Grosse, arXiv 1503.05671",
    settings=RidgeSettings,
    home="lifelong_edit.editors.gradient.rule",
    parts={"weights": "sum", "keys": "upsert"},
    tasks=frozenset({"causal", "classify", "masked", "seq2seq"}),
    exports=OF_SHIFTS,
    needs=frozenset({"text"}),
    tries=TRIES,
    relearns="small asks, many passes, over all facts and the preserved prompts",
)
