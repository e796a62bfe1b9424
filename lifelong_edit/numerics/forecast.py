"""What a coming batch will make the model forget: a probability for each live fact, before anything is committed.

Two kinds of forecast. From `keys`, before the solve: how near the batch's conflict keys come to a fact's own, which
is the best published predictor of an edit's being forgotten, and never goes stale. From the `change`, after the solve:
how far the proposed shift moves the outputs of the edited modules at the fact's own keys. Both are free of a model's
scale, so that what was fitted on one model serves others until they have measured forgetting of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from lifelong_edit.errors import UsageError
from lifelong_edit.numerics.logistic import Array, Logistic, fit_logistic

Kind = Literal["keys", "change"]

FEATURES: Mapping[Kind, tuple[str, ...]] = {"keys": ("nearest",), "change": ("nearest", "change")}
"""nearest: largest cosine of the fact's conflict key with one of the batch. change: with K the fact's own live keys, ΔW
the weights' change before the batch and S what it adds, the mean over modules of log ‖K S‖ / ‖K (W₀ + ΔW)‖.

What did not add to these on measured forgetting: the mean of the five largest cosines, the largest change of a module,
the share of earlier edits' contribution that is taken back, and its size.
"""
ROWS = 4096
"""Keys that are multiplied at a time."""


class Forecaster(Logistic, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The probability of being forgotten, from the features of its kind."""


def key_features(live: npt.NDArray[Any], batch: npt.NDArray[Any]) -> Array:
    """Features of the kind `keys`, (n live facts, 1), see FEATURES.

    live: (n, d_in), batch: (m, d_in), m ≥ 1: conflict keys, centred and of length 1.
    """
    if not len(batch):
        raise UsageError("a forecast was asked for a batch without facts; expected at least one")
    found: Array = (live.astype(np.float64) @ batch.astype(np.float64).T).max(1)[:, None]
    return found


def change_features(
    keys: Sequence[Mapping[str, npt.NDArray[np.int16]]],
    scales: Mapping[str, npt.NDArray[Any]],
    weights: Mapping[str, npt.NDArray[Any]],
    shift: Mapping[str, npt.NDArray[Any]],
) -> Array:
    """What the kind `change` has beyond `keys`, (n live facts, 1), see FEATURES.

    keys: per fact and module (positions, d_in) on the grid. scales: width of the grid, (d_in,). weights: W₀ + ΔW before
    the batch, shift: S, both (d_in, d_out).
    """
    ratios = np.stack([_ratios([k[name] for k in keys], scales[name], weights[name], shift[name]) for name in shift])
    # A fact that nothing moves is far from all others, but not by an infinite margin.
    found: Array = np.log(np.maximum(ratios, 1e-8)).mean(0)[:, None]
    return found


def _ratios(
    rows: Sequence[npt.NDArray[np.int16]], scale: npt.NDArray[Any], weight: npt.NDArray[Any], shift: npt.NDArray[Any]
) -> Array:
    """‖K S‖ / ‖K W‖ by fact, Frobenius, (n,)."""
    owner, units = np.repeat(np.arange(len(rows)), [len(part) for part in rows]), np.concatenate(rows)
    moved, present = np.zeros(len(rows)), np.zeros(len(rows))
    for start in range(0, len(units), ROWS):
        block = slice(start, start + ROWS)
        inputs = (units[block] * scale).astype(np.float32)
        for total, matrix in ((moved, shift), (present, weight)):
            squares = np.square(inputs @ matrix.astype(np.float32)).sum(1, dtype=np.float64)
            np.add.at(total, owner[block], squares)
    found: Array = np.sqrt(moved / np.maximum(present, np.finfo(np.float64).tiny))
    return found


def fit_forecaster(
    names: Sequence[str],
    features: Array,
    forgotten: npt.NDArray[np.bool_],
    groups: npt.NDArray[Any],
    provenance: Mapping[str, Any] | None = None,
) -> Forecaster:
    """A forecaster from measured forgetting: which of the facts answered right before a batch were wrong after it.

    features: (n, names). forgotten: (n,). groups: (n,), the batch that each row was measured at; its facts share their
    luck, so the AUC is taken over folds of whole batches. Raises UsageError where nothing was forgotten or nothing
    kept, or where there are fewer than two groups.
    """
    known = len(np.unique(groups))
    if known < 2 or not 0 < forgotten.sum() < len(forgotten):
        raise UsageError(
            f"found {int(forgotten.sum())} of {len(forgotten)} facts forgotten in {known} batches; expected some "
            "forgotten and some kept, in two batches at least; measure a longer stream"
        )
    found, _ = fit_logistic(names, features, forgotten, groups)
    told = dict(provenance or {}) | {"rows": len(forgotten), "forgotten": int(forgotten.sum())}
    return Forecaster(**msgspec.structs.asdict(found) | {"provenance": told})


def set_level(forecaster: Forecaster, features: Array, forgotten: float) -> Forecaster:
    """The same forecaster with the intercept at which so many of the facts with these features are forgotten.

    Order and AUC stay. Raises UsageError unless 0 < forgotten < number of facts.
    """
    from scipy.optimize import brentq

    if not 0 < forgotten < len(features):
        raise UsageError(f"found {forgotten:g} of {len(features)} facts forgotten; expected more than 0 and not all")

    def moved(by: float) -> Forecaster:
        return msgspec.structs.replace(forecaster, intercept=forecaster.intercept + by)

    by = brentq(lambda by: float(moved(by).probabilities(features).sum()) - forgotten, -50, 50)
    return moved(float(by))


def read_forecasters(path: Path) -> dict[Kind, Forecaster]:
    """The forecasters of a file, by kind. Raises UsageError where it holds something else."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[Kind, Forecaster])
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(f"{path} holds no forecasters ({error}); expected the JSON that fitting writes") from error
    if {kind: f.features for kind, f in found.items()} != dict(FEATURES):
        raise UsageError(f"{path} has forecasters of other features than this release; fit them again")
    return found


def outlook(kind: Kind, live: Sequence[str], probabilities: Array, most: int = 0) -> dict[str, Any]:
    """A forecast as plain values for the log: live facts, how many of them would be forgotten, and their share.

    live: digests, with a probability each. most: so many of them, those most at risk, are named as `at_risk`.
    """
    total = float(probabilities.sum())
    found: dict[str, Any] = {"by": kind, "live": len(live), "forgotten": total}
    found["share"] = total / len(live) if live else 0.0
    if most:
        first = sorted(range(len(live)), key=lambda i: (-probabilities[i], live[i]))[:most]
        found["at_risk"] = [{"fact": live[i], "probability": float(probabilities[i])} for i in first]
    return found
