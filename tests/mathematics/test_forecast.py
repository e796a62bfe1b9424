"""What is forecast of a live fact: features that know no scale, and a fit that scikit-learn agrees with."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from lifelong_edit.bench import Bench, State, prepare
from lifelong_edit.editors.contract import Lesson, moved_by
from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.judging.forgetting import both_features, measure_stream, merge
from lifelong_edit.models import load_model
from lifelong_edit.numerics.forecast import (
    FEATURES,
    Forecaster,
    change_features,
    fit_forecaster,
    key_features,
    outlook,
    read_forecasters,
    set_level,
)
from lifelong_edit.stores.tensors import materialise
from lifelong_edit.timeline.defaults import default_forecasters
from tests.mathematics.conftest import BASIC, MakeEditor, editor_of, shift_of


def unit(seed: int, count: int, width: int = 12) -> np.ndarray:
    keys = np.random.default_rng(seed).normal(size=(count, width))
    return keys / np.linalg.norm(keys, axis=1, keepdims=True)


def test_key_features_by_hand() -> None:
    live, batch = unit(0, 4), unit(1, 7)
    found = key_features(live, batch)
    for i in range(4):
        assert found[i] == pytest.approx([max(float(live[i] @ key) for key in batch)])
    assert key_features(live[:0], batch).shape == (0, 1)
    with pytest.raises(UsageError, match="without facts"):
        key_features(live, batch[:0])


def by_hand(inputs: dict[str, np.ndarray], weights: dict[str, np.ndarray], shift: dict[str, np.ndarray]) -> float:
    """The change of one fact from its keys by module, in float64."""
    norm = np.linalg.norm
    return float(np.mean([np.log(norm(k @ shift[m]) / norm(k @ weights[m])) for m, k in inputs.items()]))


def test_change_features_by_hand() -> None:
    generator = np.random.default_rng(0)
    keys = [{m: generator.integers(-99, 99, (n, 6)).astype(np.int16) for m in "ab"} for n in (1, 3, 2)]
    scales = {m: np.exp2(generator.integers(-8, 2, 6)) for m in "ab"}
    weights, shift = ({m: generator.normal(size=(6, 4)) for m in "ab"} for _ in range(2))
    found = change_features(keys, scales, weights, shift)
    for i, fact in enumerate(keys):
        wanted = by_hand({m: fact[m] * scales[m] for m in "ab"}, weights, shift)
        assert found[i] == pytest.approx([wanted], rel=1e-4)  # products in float32
    # Neither the scale of a model's keys nor that of its outputs is felt; the size of the shift is.
    larger = {m: 4 * scale for m, scale in scales.items()}
    thrice = [{m: 3 * w for m, w in matrices.items()} for matrices in (weights, shift)]
    assert change_features(keys, larger, *thrice) == pytest.approx(found, rel=1e-4)
    assert change_features(keys, scales, weights, thrice[1]) == pytest.approx(found + np.log(3), rel=1e-4)
    still = {m: np.zeros((6, 4)) for m in "ab"}
    assert np.isfinite(change_features(keys, scales, weights, still)).all()


def test_fit_against_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    generator = np.random.default_rng(0)
    features = generator.normal(size=(600, 2)) * [5.0, 0.1] + [3.0, -1.0]
    forgotten = generator.random(600) < 1 / (1 + np.exp(-(features[:, 0] - 5)))
    groups = np.arange(600) // 60
    found = fit_forecaster(("one", "two"), features, forgotten, groups, {"model": "none"})
    judge = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features, forgotten)
    assert found.probabilities(features) == pytest.approx(judge.predict_proba(features)[:, 1], abs=1e-9)
    assert found.probabilities(features).sum() == pytest.approx(forgotten.sum(), rel=1e-3), "calibrated in the large"
    assert found.auc > 0.9
    assert found.provenance == {"model": "none", "rows": 600, "forgotten": int(forgotten.sum())}
    assert msgspec.json.decode(msgspec.json.encode(found), type=Forecaster) == found
    level = set_level(found, features, 3.5)
    assert level.probabilities(features).sum() == pytest.approx(3.5)
    assert (np.argsort(level.probabilities(features)) == np.argsort(found.probabilities(features))).all()
    with pytest.raises(UsageError, match="more than 0 and not all"):
        set_level(found, features, 0)
    chance = fit_forecaster(("one", "two"), features, generator.permutation(forgotten), groups)
    assert abs(chance.auc - 0.5) < 0.1, "the AUC is of rows that the fit has not seen"


@pytest.mark.parametrize(
    ("forgotten", "groups"), [([False] * 4, [0, 0, 1, 1]), ([True] * 4, [0, 0, 1, 1]), ([True, False] * 2, [0] * 4)]
)
def test_nothing_to_fit_on(forgotten: list[bool], groups: list[int]) -> None:
    with pytest.raises(UsageError, match="measure a longer stream"):
        fit_forecaster(("one",), np.arange(4.0)[:, None], np.array(forgotten), np.array(groups))


def test_the_default_forecasters(tmp_path: Path) -> None:
    found = default_forecasters()
    assert {kind: f.features for kind, f in found.items()} == FEATURES
    near, far = np.array([[0.9]]), np.array([[0.2]])
    assert found["keys"].probabilities(near) > found["keys"].probabilities(far)
    moved, still = np.array([[0.5, -1.0]]), np.array([[0.5, -3.0]])
    assert found["change"].probabilities(moved) > 2 * found["change"].probabilities(still)
    assert all(f.auc > 0.55 and f.provenance["forgotten"] > 20 for f in found.values())
    with pytest.raises(UsageError, match="shape"):
        found["change"].probabilities(near)
    for text in ("{}", "[1]", '{"keys": {"features": ["a"]}}'):
        (tmp_path / "f.json").write_text(text)
        with pytest.raises(UsageError):
            read_forecasters(tmp_path / "f.json")
    with pytest.raises(UsageError, match="of each per feature"):
        msgspec.structs.replace(found["keys"], scales=(1.0,) * (1 + len(FEATURES["keys"])))


def test_outlook_names_those_most_at_risk() -> None:
    found = outlook("change", ("a", "b", "c"), np.array([0.1, 0.5, 0.1]), 2)
    assert found["at_risk"] == [{"fact": "b", "probability": 0.5}, {"fact": "a", "probability": 0.1}]
    assert (found["live"], found["forgotten"]) == (3, pytest.approx(0.7))
    assert found["share"] == pytest.approx(0.7 / 3)
    assert outlook("keys", (), np.zeros(0)) == {"by": "keys", "live": 0, "forgotten": 0.0, "share": 0.0}


def test_features_of_a_proposal(make_editor: MakeEditor, news: list[Fact]) -> None:
    """Against the modules themselves, asked at a fact's stored keys before and after the proposal."""
    editor = make_editor()
    bench, state = editor.bench, moved_by(State(), editor.learn(State(), Lesson(news[:4])), news[:4])
    proposal = editor.learn(state, Lesson(news[4:8]))
    live = [fact.digest for fact in news[:4]]
    found = both_features(bench, state, live, news[4:8], proposal)
    assert found["change"][:, :1] == pytest.approx(found["keys"])
    inputs = {n: state.keys[live[2]].rows[n] * bench.scale[n].numpy() for n in bench.names}
    weights = {n: (bench.loaded.base_weight(n) + state.shifts[n]).numpy().astype(np.float64) for n in bench.names}
    shift = {n: materialise(shift_of(proposal)[n]).astype(np.float64) for n in bench.names}
    assert found["change"][2, 1] == pytest.approx(by_hand(inputs, weights, shift), rel=1e-3)


def test_measured_forgetting(tiny_gpt2: Path, sentences: list[str], news: list[Fact]) -> None:
    """Rows are facts that were right before a batch; a fact that is replaced is none.

    Edited at the answer alone, which is where a model with random weights learns within four passes.
    """
    settings = BASIC.replace(rehearse=0, preserved=0, passes=4, c0=1.0, eta=1.8)
    loaded = load_model(str(tiny_gpt2), modules=["2-3"])
    bench = Bench(loaded, settings, prepare(loaded, settings, text=[" ".join(sentences * 20)]))
    again = msgspec.structs.replace(news[0], target="Nowhere")
    found = measure_stream(bench, editor_of(bench), [news[:4], news[4:8], [again, *news[8:10]]])
    assert set(found.batch.tolist()) == {0, 1}
    counts = np.bincount(found.batch)
    assert counts[0] <= 4
    assert counts[1] <= 7
    assert len(found.forgotten) == len(found.features["keys"]) == len(found.features["change"])
    both = merge([found, found])
    assert len(both.forgotten) == 2 * len(found.forgotten)
    assert len(np.unique(both.batch)) == 4
