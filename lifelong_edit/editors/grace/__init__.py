"""A codebook at one layer: the weights stay, and what the layer gives is replaced near the keys of taught prompts."""

from __future__ import annotations

from lifelong_edit.editors.contract import Rule
from lifelong_edit.editors.grace.settings import GraceSettings
from lifelong_edit.editors.tries import Tries

RULE = Rule(
    name="grace",
    title="a codebook of keys and values at one layer",
    reference="GRACE, Hartvigsen et al., arXiv 2211.11031",
    settings=GraceSettings,
    home="lifelong_edit.editors.grace.rule",
    parts={"weights": "sum", "keys": "upsert", "codebook": "upsert"},
    tasks=frozenset({"causal", "classify", "masked", "seq2seq"}),
    shifts=False,
    places=27 / 32,
    statistics=False,
    tries=Tries(
        grid={"radius": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0), "rate": (0.1, 0.3, 1.0, 3.0), "steps": (30, 50, 100, 200)},
        depths=(0.3, 0.5, 2 / 3, 0.75, 0.84, 0.92),
    ),
    relearns="the facts one after another in the order of their digests, with an empty codebook",
)
