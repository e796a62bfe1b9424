"""StableEdit (arXiv 2605.11836): UltraEdit with whitened gradients."""

from __future__ import annotations

from lifelong_edit.editors.contract import Rule
from lifelong_edit.editors.stableedit.settings import StableSettings

RULE = Rule(
    name="stableedit",
    title="StableEdit: UltraEdit with gradients whitened by their running covariance",
    reference="StableEdit, arXiv 2605.11836",
    settings=StableSettings,
    home="lifelong_edit.editors.stableedit.rule",
    parts={"weights": "sum", "keys": "upsert", "moments": "replace"},
    exports=frozenset({"transformers"}),
    needs=frozenset({"text"}),
    relearns="its batches again from the base, in the order of the facts' digests, with the moments that init left",
)
