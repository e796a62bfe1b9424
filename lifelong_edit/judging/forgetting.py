"""Forgetting as it happens: which live facts a batch makes the model forget, beside what could be known before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lifelong_edit.bench import Bench, State
from lifelong_edit.editors.contract import Change, Editor, Lesson, moved_by
from lifelong_edit.eval.metrics.verdicts import predict_answers
from lifelong_edit.facts import Fact
from lifelong_edit.numerics.forecast import Forecaster, Kind, change_features, key_features, outlook
from lifelong_edit.numerics.logistic import Array
from lifelong_edit.stores.tensors import Shift, materialise
from lifelong_edit.tasks import leading
from lifelong_edit.tracing.conflict_keys import centred
from lifelong_edit.tracing.rows import draw

LOOKED_AT = 4096
"""How many live facts a forecast by keys looks at."""


@dataclass(frozen=True)
class Measured:
    """Rows of facts that were known before a batch: live, left in force, and answered right.

    features: by kind, (n, features). forgotten: whether the fact's prompt is answered wrong after the batch. batch:
    the batch that each row is from, counted from 0 where anything was known. All teacher-forced.
    """

    features: dict[Kind, Array]
    forgotten: npt.NDArray[np.bool_]
    batch: npt.NDArray[np.int64]


def merge(parts: Sequence[Measured]) -> Measured:
    """The rows of several streams together; batches of different streams stay different."""
    offsets = np.cumsum([0, *(int(part.batch.max()) + 1 for part in parts[:-1])])
    kinds: tuple[Kind, ...] = ("keys", "change")
    return Measured(
        {kind: np.concatenate([part.features[kind] for part in parts]) for kind in kinds},
        np.concatenate([part.forgotten for part in parts]),
        np.concatenate([part.batch + offset for part, offset in zip(parts, offsets, strict=True)]),
    )


def measure_stream(bench: Bench, editor: Editor, batches: Sequence[Sequence[Fact]]) -> Measured:
    """Edit batches one after the other, from the base, and measure what each but the first made forgotten.

    A fact replaces a live one of the same subject and relation; what is replaced is not counted as forgotten.
    """
    state, parts = State(), []
    for batch in batches:
        new = {(fact.about.casefold(), fact.relation) for fact in batch}
        retired = [d for d, fact in state.live.items() if (fact.about.casefold(), fact.relation) in new]
        gone = set(retired)
        left = [fact for d, fact in state.live.items() if d not in gone]
        with bench.loaded.at(editor.overlay(state)):
            known = answered(bench, left)
        change = editor.learn(state, Lesson(batch, retired))
        features = both_features(bench, state, [fact.digest for fact in known], batch, change) if known else {}
        state = moved_by(state, change, batch, retired)
        state.digest = f"{state.digest}|{batch[0].digest}"
        if known:
            with bench.loaded.at(editor.overlay(state)):
                kept = {fact.digest for fact in answered(bench, known)}
            forgotten = np.array([fact.digest not in kept for fact in known])
            parts.append(Measured(features, forgotten, np.zeros(len(known), np.int64)))
    return merge(parts)


def answered(bench: Bench, facts: Sequence[Fact]) -> list[Fact]:
    """Those of the facts whose prompt the model as it stands answers right, teacher-forced."""
    encoded = [bench.task.encode(bench.loaded, leading(bench.loaded, fact), fact.answer) for fact in facts]
    found = predict_answers(bench.loaded, encoded)
    return [f for f, e, guess in zip(facts, encoded, found, strict=True) if guess == e.answer]


def both_features(
    bench: Bench, state: State, live: Sequence[str], batch: Sequence[Fact], change: Change
) -> dict[Kind, Array]:
    """Features of each kind for live facts, given by digest, before a change is applied."""
    keys = key_features(live_conflict_keys(bench, state, live), bench.conflict_keys(batch))
    return {"keys": keys, "change": np.hstack([keys, proposed_changes(bench, state, live, change.shift or {})])}


def forecast_by_keys(
    bench: Bench, state: State, live: Sequence[str], batch: Array, forecaster: Forecaster, *drawn: str
) -> dict[str, Any]:
    """The forecast for live facts, given by digest, from the conflict keys of a coming batch, (n, d_in): `outlook`.

    Of more than LOOKED_AT live facts so many stand for all of them, drawn by `drawn`: a look at each would take longer
    than a small batch. The share is then uncertain by a standard error of .8 % at the most.
    """
    if not live or not len(batch):
        return outlook("keys", live, np.zeros(len(live)))
    looked = live if len(live) <= LOOKED_AT else [live[i] for i in draw(len(live), LOOKED_AT, "forecast", *drawn)]
    features = key_features(live_conflict_keys(bench, state, looked), batch)
    found = outlook("keys", looked, forecaster.probabilities(features))
    if len(looked) < len(live):
        found |= {"live": len(live), "forgotten": found["share"] * len(live)}
    return found


def live_conflict_keys(bench: Bench, state: State, live: Sequence[str]) -> npt.NDArray[np.float32]:
    """Conflict keys of live facts, (n, d_in), centred and of length 1."""
    if not live:
        return np.zeros((0, len(bench.conflict_mean)), np.float32)
    raw = torch.from_numpy(np.stack([state.keys[digest].conflict for digest in live]))
    found: npt.NDArray[np.float32] = centred(raw.to(bench.conflict_mean), bench.conflict_mean).cpu().numpy()
    return found


def proposed_changes(bench: Bench, state: State, live: Sequence[str], shift: Mapping[str, Shift]) -> Array:
    """Features of a shift, proposed at a state, for live facts: see `change_features`, (n, 1)."""
    scales = {name: bench.scale[name].cpu().numpy() for name in shift}
    weights = {}
    for name in shift:
        base, before = bench.loaded.base_weight(name), state.shifts.get(name)
        weights[name] = (base if before is None else base + before.to(base.device)).cpu().numpy()
    moved = {name: materialise(part) for name, part in shift.items()}
    return change_features([state.keys[digest].rows for digest in live], scales, weights, moved)
