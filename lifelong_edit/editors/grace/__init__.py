"""A codebook at one layer: the weights stay, and what the layer gives is replaced near the keys of taught prompts."""

from __future__ import annotations

from lifelong_edit.editors.contract import Rule
from lifelong_edit.editors.grace.settings import GraceSettings

RULE = Rule(
    name="grace",
    title="a codebook of keys and values at one layer",
    reference="GRACE, Hartvigsen et al., arXiv 2211.11031",
    settings=GraceSettings,
    home="lifelong_edit.editors.grace.rule",
    parts={"weights": "sum", "keys": "upsert", "codebook": "upsert"},
    shifts=False,
    places=27 / 32,
    statistics=False,
    relearns="the facts one after another in the order of their digests, with an empty codebook",
)
