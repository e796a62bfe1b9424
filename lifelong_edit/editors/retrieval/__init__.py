"""Live facts put before the questions that ask for them: the weights stay, and nothing is kept but the facts."""

from __future__ import annotations

from lifelong_edit.editors.contract import Rule
from lifelong_edit.editors.retrieval.settings import RetrievalSettings
from lifelong_edit.editors.tries import Tries

RULE = Rule(
    name="retrieval",
    title="live facts put before the questions that ask for them",
    reference="in-context editing, Zheng et al., arXiv 2305.12740, with a gate in the place of an oracle",
    settings=RetrievalSettings,
    home="lifelong_edit.editors.retrieval.rule",
    parts={"weights": "sum", "keys": "upsert"},
    places=27 / 32,
    general=True,
    by_facts=True,
    statistics=False,
    shifts=False,
    tries=Tries(
        grid={"false_alarms": (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)},
        depths=(0.3, 0.5, 2 / 3, 0.75, 0.84, 0.92),
        fixing=frozenset({"false_alarms"}),
    ),
    relearns="nothing is solved: what is remembered is the live facts themselves",
)
