"""A logistic regression as plain numbers: what this project keeps of a classifier, whatever it tells apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from lifelong_edit.errors import UsageError

Array = npt.NDArray[np.float64]
FOLDS = 5


class Logistic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A logistic regression on standardised features, kept as JSON.

    means, scales, coefficients: one per feature. auc: area under the curve of receiver operating characteristics, each
    group of rows judged by a fit on the others. provenance: what it was fitted on.
    """

    features: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    coefficients: tuple[float, ...]
    intercept: float
    auc: float
    provenance: dict[str, Any] = {}

    def __post_init__(self) -> None:
        lengths = {len(part) for part in (self.features, self.means, self.scales, self.coefficients)}
        if len(lengths) > 1:
            raise UsageError(f"a classifier has parts of {sorted(lengths)} numbers; expected one of each per feature")

    def probabilities(self, features: Array) -> Array:
        """The probability of what it was fitted to tell, (n,), for features (n, number of features) in their order."""
        if features.ndim != 2 or features.shape[1] != len(self.features):
            raise UsageError(f"features have shape {features.shape}; expected (n, {len(self.features)})")
        standard = (features - np.array(self.means)) / np.array(self.scales)
        found: Array = 1 / (1 + np.exp(-(standard @ np.array(self.coefficients) + self.intercept)))
        return found


def fit_logistic(
    names: Sequence[str],
    features: Array,
    truth: npt.NDArray[np.bool_],
    groups: npt.NDArray[Any],
    *,
    even: bool = False,
) -> tuple[Logistic, Array]:
    """A logistic regression, and the probability of each row by a fit on the other folds of whole groups, (n,).

    features: (n, names). truth: (n,), with both values. groups: (n,), two of them at least. even: both values of
    `truth` weigh alike, so that 0.5 says that either is as likely where they are as frequent.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold

    def fitted(rows: npt.NDArray[Any]) -> Any:
        model = LogisticRegression(max_iter=1000, class_weight="balanced" if even else None)
        return model.fit(standard[rows], truth[rows])

    means, scales = features.mean(0), features.std(0)
    scales = np.where(scales > 0, scales, 1.0)  # a feature that never varies says nothing, and must not divide by 0
    standard = (features - means) / scales
    held_out = np.zeros(len(features))
    for learn, judge in GroupKFold(min(FOLDS, len(np.unique(groups)))).split(standard, truth, groups):
        if 0 < truth[learn].sum() < len(learn):
            held_out[judge] = fitted(learn).decision_function(standard[judge])
    model = fitted(np.arange(len(features)))
    found = Logistic(
        features=tuple(names),
        means=tuple(map(float, means)),
        scales=tuple(map(float, scales)),
        coefficients=tuple(map(float, model.coef_[0])),
        intercept=float(model.intercept_[0]),
        auc=float(roc_auc_score(truth, held_out)),
    )
    return found, 1 / (1 + np.exp(-held_out))
