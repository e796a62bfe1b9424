"""What a user may decide: batching, conflicts, when to reconsolidate."""

from __future__ import annotations

from lifelong_edit.policies.batching import BatchingPolicy, FixedSize, cut_with_pauses
from lifelong_edit.policies.conflicts import (
    TURNED_AWAY,
    Candidates,
    Conflict,
    Decision,
    LiveIdentities,
    find_conflicts,
)
from lifelong_edit.policies.deciding import ANSWERS, POLICIES, ConflictPolicy, prevails, require_policy
from lifelong_edit.policies.identity import edited_identities, identities, normalise, probe_identities
from lifelong_edit.policies.indexing import IndexKind, plan_index
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
from lifelong_edit.policies.sampling import choose_sample, sample_size
from lifelong_edit.policies.scoring import Scorer

__all__ = [
    "ANSWERS",
    "POLICIES",
    "TURNED_AWAY",
    "BatchingPolicy",
    "Candidates",
    "Conflict",
    "ConflictPolicy",
    "Decision",
    "EveryNSteps",
    "FixedSize",
    "Forecast",
    "Geometric",
    "IndexKind",
    "LiveIdentities",
    "Never",
    "ReconsolidationPolicy",
    "Retention",
    "Scorer",
    "Standing",
    "choose_sample",
    "cut_with_pauses",
    "edited_identities",
    "find_conflicts",
    "identities",
    "normalise",
    "plan_index",
    "prevails",
    "probe_identities",
    "reconsolidation_policy",
    "require_policy",
    "sample_size",
]
