"""RLEdit: MALMEN's network with a normaliser that goes on moving while it edits."""

from __future__ import annotations

from lifelong_edit.editors.contract import OF_SHIFTS, Rule
from lifelong_edit.editors.rledit.settings import RLSettings

RULE = Rule(
    name="rledit",
    title="RLEdit: a hypernetwork for streams, whose normaliser goes on moving",
    reference="Li et al., arXiv 2502.05759",
    settings=RLSettings,
    home="lifelong_edit.editors.rledit.rule",
    parts={"weights": "sum", "keys": "upsert", "moments": "replace"},
    exports=OF_SHIFTS,
    needs=frozenset({"text", "network"}),
    network=True,
    relearns="its batches again from the base, in the order of the facts' digests, with the moments of its training",
)
