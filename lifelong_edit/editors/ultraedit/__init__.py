"""UltraEdit (arXiv 2505.14679): a running normaliser in the place of a network."""

from __future__ import annotations

from lifelong_edit.editors.contract import Rule
from lifelong_edit.editors.ultraedit.settings import UltraSettings

RULE = Rule(
    name="ultraedit",
    title="UltraEdit: normalised keys and gradients, no training",
    reference="Gu et al., arXiv 2505.14679",
    settings=UltraSettings,
    home="lifelong_edit.editors.ultraedit.rule",
    parts={"weights": "sum", "keys": "upsert", "moments": "replace"},
    exports=frozenset({"transformers"}),
    needs=frozenset({"text"}),
    relearns="its batches again from the base, in the order of the facts' digests, with empty moments",
)
