"""StableEdit (arXiv 2605.11836): UltraEdit with whitened gradients."""

from __future__ import annotations

from lifelong_edit.editors.contract import OF_SHIFTS, Rule
from lifelong_edit.editors.stableedit.settings import StableSettings
from lifelong_edit.editors.tries import Tries

RULE = Rule(
    name="stableedit",
    title="StableEdit: UltraEdit with gradients whitened by their running covariance",
    reference="StableEdit, arXiv 2605.11836",
    settings=StableSettings,
    home="lifelong_edit.editors.stableedit.rule",
    parts={"weights": "sum", "keys": "upsert", "moments": "replace"},
    exports=OF_SHIFTS,
    needs=frozenset({"text"}),
    tries=Tries(
        grid={
            "relative_step": (0.03, 0.1, 0.3, 1.0, 3.0),
            "ridge": (1.0, 3.0, 10.0, 30.0, 100.0),
            "floor": (1e-8, 1e-7, 1e-6, 1e-5, 1e-4),
        },
    ),
    relearns="its batches again from the base, in the order of the facts' digests, with the moments that init left",
)
