"""What a user may decide: batching, conflicts, when to reconsolidate, what to keep."""

from __future__ import annotations

from lifelong_edit.policies.batching import BatchingPolicy, FixedSize
from lifelong_edit.policies.conflicts import POLICIES, Candidates, Conflict, Decision, LiveIdentities, find_conflicts
from lifelong_edit.policies.identity import identities, normalise
from lifelong_edit.policies.keep import EveryN, KeepPolicy
from lifelong_edit.policies.reconsolidate import (
    EveryNSteps,
    Forecast,
    Geometric,
    Never,
    ReconsolidationPolicy,
    Retention,
    Standing,
    reconsolidation_policy,
)
from lifelong_edit.policies.scoring import Scorer

__all__ = [
    "POLICIES",
    "BatchingPolicy",
    "Candidates",
    "Conflict",
    "Decision",
    "EveryN",
    "EveryNSteps",
    "FixedSize",
    "Forecast",
    "Geometric",
    "KeepPolicy",
    "LiveIdentities",
    "Never",
    "ReconsolidationPolicy",
    "Retention",
    "Scorer",
    "Standing",
    "find_conflicts",
    "identities",
    "normalise",
    "reconsolidation_policy",
]
