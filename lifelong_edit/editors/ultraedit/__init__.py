"""UltraEdit (arXiv 2505.14679): a running normaliser in the place of a network."""

from __future__ import annotations

from lifelong_edit.editors.contract import Rule
from lifelong_edit.editors.ridge.settings import RidgeSettings
from lifelong_edit.editors.tries import Tries

RULE = Rule(
    name="ultraedit",
    title="UltraEdit: normalised keys and gradients, no training",
    reference="Gu et al., arXiv 2505.14679",
    settings=RidgeSettings,
    home="lifelong_edit.editors.ultraedit.rule",
    parts={"weights": "sum", "keys": "upsert", "moments": "replace"},
    exports=frozenset({"transformers"}),
    needs=frozenset({"text"}),
    tries=Tries(
        grid={
            "eta": (0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0),
            "c0": (30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0),
            "passes": (1, 2, 3, 5),
            "preserved_keys": (0.0, 0.5, 1.0, 2.0, 4.0, 8.0),
            "log_ridge": (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0),
        },
        relative=frozenset({"eta"}),
    ),
    relearns="its batches again from the base, in the order of the facts' digests, with empty moments",
)
