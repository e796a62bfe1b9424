"""SERAC (arXiv 2206.06520): a scope classifier hands questions that ask for a fact to a model that reads the fact."""

from __future__ import annotations

from lifelong_edit.editors.contract import Rule
from lifelong_edit.editors.serac.settings import SeracSettings

RULE = Rule(
    name="serac",
    title="SERAC: questions within the scope of a fact go to a trained counterfactual model, which reads the fact",
    reference="Mitchell et al., arXiv 2206.06520",
    settings=SeracSettings,
    home="lifelong_edit.editors.serac.rule",
    parts={"weights": "sum", "keys": "upsert"},
    places=0.4,
    by_facts=True,
    needs=frozenset({"network"}),
    network=True,
    statistics=False,
    shifts=False,
    relearns="nothing is solved: what is remembered is the live facts themselves",
)
