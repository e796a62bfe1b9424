"""MEND (arXiv 2110.11309): a trained network turns the gradient of a fact into a shift."""

from __future__ import annotations

from lifelong_edit.editors.contract import OF_SHIFTS, Rule
from lifelong_edit.editors.mend.settings import MendSettings

RULE = Rule(
    name="mend",
    title="MEND: a trained hypernetwork turns gradients into shifts, no solve",
    reference="Mitchell et al., arXiv 2110.11309",
    settings=MendSettings,
    home="lifelong_edit.editors.mend.rule",
    parts={"weights": "sum", "keys": "upsert"},
    tasks=frozenset({"causal", "classify", "masked", "seq2seq"}),
    exports=OF_SHIFTS,
    needs=frozenset({"network"}),
    network=True,
    relearns="its batches again from the base, in the order of the facts' digests",
)
