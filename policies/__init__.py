"""What a user may decide: batching, conflicts, when to reconsolidate, what to keep."""

from __future__ import annotations

from lifelong_edit.policies.batching import BatchingPolicy, FixedSize, cut_with_pauses
from lifelong_edit.policies.conflicts import POLICIES, Candidates, Conflict, Decision, find_conflicts
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
    "Never",
    "ReconsolidationPolicy",
    "Retention",
    "Standing",
    "cut_with_pauses",
    "find_conflicts",
    "identities",
    "normalise",
    "reconsolidation_policy",
]
