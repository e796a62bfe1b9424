"""What a user may decide: batching, conflicts, when to reconsolidate, what to keep."""

from __future__ import annotations

from lifelong_edit.policies.batching import BatchingPolicy, FixedSize
from lifelong_edit.policies.conflicts import Candidates, Conflict, Decision, find_conflicts
from lifelong_edit.policies.deciding import ANSWERS, POLICIES, ConflictPolicy, prevails, require_policy
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
    "ANSWERS",
    "POLICIES",
    "BatchingPolicy",
    "Candidates",
    "Conflict",
    "ConflictPolicy",
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
    "find_conflicts",
    "identities",
    "normalise",
    "prevails",
    "reconsolidation_policy",
    "require_policy",
]
