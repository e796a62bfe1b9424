"""AlphaEdit (arXiv 2410.02355): edits stay in what text leaves free."""

from __future__ import annotations

from lifelong_edit.editors.contract import Rule
from lifelong_edit.editors.locate.settings import LocateSettings

RULE = Rule(
    name="alphaedit",
    title="AlphaEdit: edits in the null space of what text holds",
    reference="Fang et al., arXiv 2410.02355",
    settings=LocateSettings,
    home="lifelong_edit.editors.alphaedit.rule",
    parts={"weights": "sum", "keys": "upsert"},
    places="located",
    exports=frozenset({"transformers"}),
    needs=frozenset({"subject", "text"}),
    relearns="all facts as one batch, from the base",
)
