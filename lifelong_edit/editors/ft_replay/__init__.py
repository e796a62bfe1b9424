"""Fine-tuning of each batch with earlier facts and preserved prompts mixed into every step."""

from __future__ import annotations

from lifelong_edit.editors.contract import OF_SHIFTS, Rule
from lifelong_edit.editors.ft_replay.settings import TRIES, ReplaySettings

RULE = Rule(
    name="ft-replay",
    title="fine-tuning of one layer with replay",
    reference="after Rolnick et al., arXiv 1811.11682",
    settings=ReplaySettings,
    home="lifelong_edit.editors.ft_replay.rule",
    parts={"weights": "sum", "keys": "upsert"},
    tasks=frozenset({"causal", "classify", "masked", "seq2seq"}),
    places=2 / 3,
    general=True,
    exports=OF_SHIFTS,
    statistics=False,
    tries=TRIES,
    relearns="epochs over all facts together beside preserved prompts, from the base",
)
