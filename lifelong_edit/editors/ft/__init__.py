"""Fine-tuning of each batch where it is: the simplest rule there is, and the measure of all others."""

from __future__ import annotations

from lifelong_edit.editors.contract import OF_SHIFTS, Rule
from lifelong_edit.editors.ft.settings import FtSettings
from lifelong_edit.editors.tuning.settings import TRIES

RULE = Rule(
    name="ft",
    title="fine-tuning of one layer on each batch",
    reference="FT-M of Wang et al., arXiv 2308.07269; FT-L of Zhu et al., arXiv 2012.00363",
    settings=FtSettings,
    home="lifelong_edit.editors.ft.rule",
    parts={"weights": "sum", "keys": "upsert"},
    tasks=frozenset({"causal", "classify", "masked", "seq2seq"}),
    places=2 / 3,
    exports=OF_SHIFTS,
    statistics=False,
    tries=TRIES,
    relearns="epochs over all facts together, from the base",
)
