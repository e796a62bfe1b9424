"""UltraEdit (arXiv 2505.14679): a running normaliser in the place of a network."""

from __future__ import annotations

from lifelong_edit.editors.contract import OF_SHIFTS, Rule
from lifelong_edit.editors.tries import Tries
from lifelong_edit.editors.ultraedit.settings import UltraSettings

RULE = Rule(
    name="ultraedit",
    title="UltraEdit: normalised keys and gradients, no training",
    reference="Gu et al., arXiv 2505.14679",
    settings=UltraSettings,
    home="lifelong_edit.editors.ultraedit.rule",
    parts={"weights": "sum", "keys": "upsert", "moments": "replace"},
    tasks=frozenset({"causal", "classify", "masked", "seq2seq"}),
    exports=OF_SHIFTS,
    needs=frozenset({"text"}),
    tries=Tries(
        grid={
            "relative_step": (0.03, 0.1, 0.3, 1.0, 3.0),
            "c0": (30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0),
            "passes": (1, 2, 3, 5),
            "preserved_keys": (0.0, 0.5, 1.0, 2.0, 4.0, 8.0),
            "log_ridge": (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0),
        },
    ),
    relearns="its batches again from the base, in the order of the facts' digests, with empty moments",
)
