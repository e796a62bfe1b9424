"""NSE (arXiv 2410.04045): targets from the original weights, chosen inputs, a second pass."""

from __future__ import annotations

from lifelong_edit.editors.contract import OF_SHIFTS, Rule
from lifelong_edit.editors.locate.settings import SEVERAL, LocateSettings, tries

RULE = Rule(
    name="nse",
    title="NSE: targets of the base model, chosen inputs, a second pass",
    reference="Jiang et al., arXiv 2410.04045",
    settings=LocateSettings,
    home="lifelong_edit.editors.nse.rule",
    parts={"weights": "sum", "keys": "upsert"},
    places="located",
    exports=OF_SHIFTS,
    needs=frozenset({"subject", "text"}),
    tries=tries(SEVERAL, neurons=(0.6, 0.8, 0.9, 1.0), passes=(1, 2, 3)),
    relearns="all facts as one batch, from the base",
)
