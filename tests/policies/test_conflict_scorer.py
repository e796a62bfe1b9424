"""The scorer fitted on facts of the bundled model, and judged on relations that it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from lifelong_edit.atlas import edits_train_path
from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.facts import Fact, mentions, read_facts
from lifelong_edit.models import LoadedModel, load_model
from lifelong_edit.numerics.logistic import Array
from lifelong_edit.policies import Scorer, normalise
from lifelong_edit.policies.scoring import features_of, read_scorer
from lifelong_edit.tasks import task_of
from lifelong_edit.timeline.defaults import default_preserved, default_scorer, solve_of
from lifelong_edit.tracing.conflict_keys import lowest_keys
from lifelong_edit.training.scorers import (
    ALARMS,
    SHARE,
    Pair,
    as_known,
    asked_again,
    draw_pairs,
    fit_scorer,
    leave_scorer,
    measure_pairs,
    scorer_for,
    threshold_of,
)


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return [record.fact for record in read_facts([str(edits_train_path())])]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("atlas")


@pytest.fixture(scope="module")
def mean(loaded: LoadedModel) -> np.ndarray:
    """The centre of the keys of the preserved prompts, as `init` fixes it."""
    prompts = [task_of(loaded).encode_question(loaded, probe.prompt) for probe in default_preserved("atlas")]
    return lowest_keys(loaded, prompts, 64).mean(0).numpy()


@pytest.fixture(scope="module")
def halves(loaded: LoadedModel, mean: np.ndarray, facts: list[Fact]) -> tuple[Scorer, list[Pair], Array]:
    """A scorer fitted on the facts of every other relation, and pairs of the relations between, with their features."""
    names = sorted({fact.relation or "" for fact in facts})
    scorer = scorer_for(loaded, mean, [f for f in facts if f.relation in names[::2]], 64, 0)
    assert scorer is not None
    pairs = [p for p in draw_pairs([f for f in facts if f.relation in names[1::2]], 0) if not p.written]
    return scorer, pairs, measure_pairs(loaded, torch.from_numpy(mean), pairs, 64)


def test_pairs_are_what_they_are_said_to_be(facts: list[Fact]) -> None:
    pairs = draw_pairs(facts, 0)
    assert pairs == draw_pairs(facts, 0) != draw_pairs(facts, 1)
    said = {(f.relation, text): f for f in facts for text in (f.prompt, *f.rephrases)}
    for pair in pairs:
        assert normalise(pair.new.subject) == normalise(pair.old.subject)
        assert pair.new.relation is pair.old.relation is None
        known = said[pair.group, pair.old.prompt]
        assert pair.new.prompt not in (pair.old.prompt, *pair.old.rephrases), "that would be equal in so many words"
        assert pair.same == (pair.new.prompt in known.rephrases)
        if pair.written:
            assert mentions(pair.new.prompt, known.subject)
    kinds = [(pair.same, pair.written) for pair in pairs]
    assert {kind: kinds.count(kind) > 300 for kind in set(kinds)} == {
        (True, False): True, (False, False): True, (False, True): True
    }  # fmt: skip
    assert draw_pairs([msgspec.structs.replace(f, relation=None) for f in facts], 0) == []


def test_what_is_asked_again_is_no_row(facts: list[Fact]) -> None:
    for fact in facts[:50]:
        known = as_known(fact)
        assert known.rephrases == fact.rephrases[: len(fact.rephrases) // 2]
        for again in asked_again(fact, 0):
            assert again.prompt in fact.rephrases
            assert again.prompt not in (known.prompt, *known.rephrases)


def calibration(said: Array, same: np.ndarray) -> float:
    """Expected calibration error where either kind weighs alike, in five bins."""
    weights = np.where(same, 0.5 / same.sum(), 0.5 / (~same).sum())
    bins = np.minimum((said * 5).astype(int), 4)
    return float(sum(abs((weights * (said - same))[bins == i].sum()) for i in range(5)))


def test_calibrated_on_other_relations_than_it_was_fitted_on(halves: tuple[Scorer, list[Pair], Array]) -> None:
    """The bound on the error is far from what a flipped sign gives, and from a ramp above a fixed cosine."""
    from sklearn.metrics import roc_auc_score

    scorer, pairs, features = halves
    same = np.array([pair.same for pair in pairs])
    said = scorer.probabilities(features)
    assert roc_auc_score(same, said) > 0.93
    assert calibration(said, same) < 0.1
    flipped = msgspec.structs.replace(scorer, coefficients=tuple(-c for c in scorer.coefficients))
    ramp = np.where(features[:, 0] >= 0.8, 0.5 + 2.5 * (features[:, 0] - 0.8), 0.0)
    assert calibration(flipped.probabilities(features), same) > 0.4
    assert calibration(ramp, same) > 0.15
    assert (said[same] >= scorer.threshold).mean() > 0.5
    assert (said[~same] >= scorer.threshold).mean() < 0.02


def test_features_are_those_of_the_pair(
    loaded: LoadedModel, mean: np.ndarray, halves: tuple[Scorer, list[Pair], Array]
) -> None:
    _, pairs, features = halves
    (one,) = measure_pairs(loaded, torch.from_numpy(mean), pairs[5:6], 64)
    assert features[5] == pytest.approx(one, abs=1e-5)
    assert features_of(pairs[5].new, pairs[5].old, one[0]) == pytest.approx(tuple(one))
    assert measure_pairs(loaded, torch.from_numpy(mean), [], 64).shape == (0, 2)


def test_the_threshold_is_a_bound_on_false_alarms() -> None:
    scores = [i / 1000 for i in range(1000)]
    for share in (0.05, 0.5, 1.0):
        bound = threshold_of(scores, share)
        assert share * sum(s >= bound for s in scores) / len(scores) <= ALARMS
        assert share * (sum(s >= bound for s in scores) + 1) / len(scores) > ALARMS, "and the least such bound"
    assert threshold_of(scores, 0.0) == threshold_of(scores, SHARE), "no file says that no subject ever comes again"


def test_too_little_to_fit_on(halves: tuple[Scorer, list[Pair], Array]) -> None:
    _, pairs, features = halves
    few = [i for i, pair in enumerate(pairs) if pair.same][:400]
    assert fit_scorer([pairs[i] for i in few], features[few], 400, {}) is None
    assert fit_scorer([], np.zeros((0, 2)), 0, {}) is None
    one = [i for i, pair in enumerate(pairs) if pair.group == pairs[0].group]
    assert fit_scorer([pairs[i] for i in one], features[one], len(one), {}) is None


def test_the_one_that_comes_with_the_package_is_made_by_its_script(
    loaded: LoadedModel, mean: np.ndarray, facts: list[Fact], tmp_path: Path
) -> None:
    """To the digits that a machine gives again; a run without enough facts takes the file of an earlier one away."""
    assert loaded.conflict_module.name == load_model("atlas", modules=solve_of_atlas()).conflict_module.name
    told: list[str] = []
    say: Callable[[str], None] = told.append
    leave_scorer(tmp_path, loaded, mean, facts, Settings(), say)
    found, shipped = read_scorer(tmp_path / "conflicts.json"), default_scorer()
    assert found.coefficients == pytest.approx(shipped.coefficients, rel=0.05)
    assert found.threshold == pytest.approx(shipped.threshold, abs=0.02)
    assert shipped.provenance["fingerprint"] == loaded.fingerprint
    leave_scorer(tmp_path, loaded, mean, [msgspec.structs.replace(f, relation=None) for f in facts], Settings(), say)
    assert not (tmp_path / "conflicts.json").exists()
    assert [text.split()[0] for text in told] == ["wrote", "no"]


def solve_of_atlas() -> list[str]:
    """The modules that a store for atlas edits."""
    from lifelong_edit.atlas import hypernetwork_dir

    return list(solve_of(hypernetwork_dir())["modules"])
