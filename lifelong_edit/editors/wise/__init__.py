"""A side memory: a copy of one matrix that is edited, and a router that says when it speaks."""

from __future__ import annotations

from lifelong_edit.editors.contract import Rule
from lifelong_edit.editors.tries import Tries
from lifelong_edit.editors.wise.settings import WiseSettings

RULE = Rule(
    name="wise",
    title="an edited copy of one matrix beside it, and a router between them",
    reference="WISE, Wang et al., arXiv 2405.14768",
    settings=WiseSettings,
    home="lifelong_edit.editors.wise.rule",
    parts={"weights": "sum", "keys": "upsert", "shards": "replace", "activations": "upsert"},
    places=27 / 32,
    statistics=False,
    shifts=False,
    tries=Tries(
        grid={
            "relative_rate": (0.001, 0.003, 0.01, 0.03, 0.1),
            "share": (0.05, 0.1, 0.2, 0.4),
        },
        depths=(0.3, 0.5, 2 / 3, 0.75, 0.84, 0.92),
    ),
    relearns="the facts one after another in the order of their digests, with an empty side memory",
)
