"""C₀ whole and as a factor: streamed, exact where it can be, and with the error that the low rank leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lifelong_edit.bench import Bench, Fixed, State, prepare
from lifelong_edit.editors.contract import Lesson
from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.models import LoadedModel, load_model
from lifelong_edit.numerics.textgram import DENSE_UP_TO, RANK, TextGrams, gram_sum, rank_for
from lifelong_edit.stores.tensors import materialise
from lifelong_edit.tracing.preservation import prepare_preserved
from lifelong_edit.tracing.progress import Progress, span
from lifelong_edit.tracing.text import TextArrays, prepare_text, text_statistics
from tests.mathematics.conftest import BASIC, MakeEditor, editor_of, shift_of

WIDTH = 60
CPU = torch.device("cpu")


def keys_of(rank: int, noise: float, count: int = 500) -> np.ndarray:
    """Keys in few directions with a little of everything else, float32."""
    g = np.random.default_rng(rank)
    low = g.standard_normal((count, rank)) @ (g.standard_normal((rank, WIDTH)) / np.arange(1, rank + 1)[:, None])
    return (low + noise * g.standard_normal((count, WIDTH))).astype(np.float32)


def streamed(keys: np.ndarray, rank: int, parts: int = 7) -> TextGrams:
    total = gram_sum(WIDTH, rank, CPU)
    for part in np.array_split(keys, parts):
        total.add(torch.from_numpy(part))
    return TextGrams(total.arrays("m", len(keys)), {"m": CPU})


def mean_gram(keys: np.ndarray) -> np.ndarray:
    exact = keys.astype(np.float64)
    return np.asarray(exact.T @ exact / len(exact))


def off(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_the_rule_by_width() -> None:
    assert [rank_for(d, None) for d in (768, DENSE_UP_TO, DENSE_UP_TO + 1, 16_384)] == [0, 0, RANK, RANK]
    assert [rank_for(1000, r) for r in (0, 10, 499, 500, 2000)] == [0, 10, 499, 0, 0]
    assert rank_for(16_384, 0) == 0
    with pytest.raises(UsageError, match="gram_rank"):
        Settings(gram_rank=-1)


def test_the_whole_gram_is_streamed_in_double_precision() -> None:
    keys = keys_of(20, 0.3) * np.float32(1000)
    wanted = mean_gram(keys)
    for parts in (1, 7, 500):
        found = streamed(keys, 0, parts)["m"].numpy()
        assert found.dtype == np.float64
        assert off(found, wanted) < 1e-14
    assert off((keys.T @ keys / len(keys)).astype(np.float64), wanted) > 1e-9  # what single precision would leave


def test_a_gram_of_low_rank_is_recovered() -> None:
    """The factor is stored in single precision: 6e-8 an entry. With one rank too few it cannot be right."""
    keys = keys_of(12, 0.0)
    assert off(streamed(keys, 12)["m"].numpy(), mean_gram(keys)) < 1e-6
    assert off(streamed(keys, 11)["m"].numpy(), mean_gram(keys)) > 1e-4


@pytest.mark.parametrize("rank", [5, 10, 20])
def test_a_factor_and_a_diagonal(rank: int) -> None:
    """Diagonal and trace exact; near the best factor of that rank; the diagonal makes it better; never above.

    With a sketch of twice the rank the error is at most twice the best one's, in expectation and in the trace norm
    (arXiv 1706.05736, theorem 4.1): the norm that is compared.
    """
    keys = keys_of(20, 0.3)
    wanted, found = mean_gram(keys), streamed(keys, rank)
    gram = found["m"].numpy()
    np.testing.assert_allclose(np.diag(gram), np.diag(wanted), rtol=1e-6)
    assert found.trace("m") == pytest.approx(np.trace(wanted), rel=1e-6)
    values, vectors = np.linalg.eigh(wanted)
    best = (vectors[:, -rank:] * values[-rank:]) @ vectors[:, -rank:].T
    factor, rest = found._parts["m"]
    low = (factor.T @ factor).numpy()
    assert len(factor) == rank
    assert np.linalg.norm(wanted - low, "nuc") < 2 * np.linalg.norm(wanted - best, "nuc")
    assert np.linalg.norm(wanted - gram) < np.linalg.norm(wanted - low)
    assert np.linalg.eigvalsh(wanted - low).min() > -1e-6 * values[-1]
    assert bool((rest >= 0).all())


def test_the_order_of_the_text_and_how_it_is_cut_do_not_matter() -> None:
    keys = keys_of(20, 0.3)
    one = streamed(keys, 10, 1)["m"].numpy()
    assert off(streamed(keys[::-1].copy(), 10, 50)["m"].numpy(), one) < 1e-6
    assert np.array_equal(streamed(keys, 10, 1)["m"].numpy(), one)


@pytest.mark.parametrize("rank", [0, 10])
def test_added_in_place_it_is_what_it_is_by_itself(rank: int) -> None:
    found = streamed(keys_of(20, 0.3), rank)
    start = torch.eye(WIDTH, dtype=torch.float64)
    np.testing.assert_allclose(
        found.add_to(start.clone(), "m", 7.0).numpy(), (start + 7.0 * found["m"]).numpy(), rtol=1e-12
    )
    assert found.width("m") == WIDTH
    assert found.trace("m") == pytest.approx(float(found["m"].trace()), rel=1e-12)


def test_a_store_with_factors_edits_nearly_the_same(
    loaded: LoadedModel, sentences: list[str], probes: list[Probe], news: list[Fact]
) -> None:
    """The whole way, `init` to a batch: the greater the rank, the nearer the shift to that with the whole gram."""

    def shift(**changes: Any) -> tuple[Fixed, np.ndarray]:
        settings = BASIC.replace(c0=500.0, **changes)
        fixed = prepare(loaded, settings, text=[" ".join(sentences * 20)], preserve=probes)
        bench = Bench(loaded, settings, fixed)
        found = editor_of(bench).learn(State(), Lesson(news[:6]))
        return fixed, materialise(shift_of(found)[bench.names[-1]])

    whole, wanted = shift()
    factors, near = shift(gram_rank=60)
    _, far = shift(gram_rank=2)
    assert {n.split("/")[0] for n in whole.text.grams} == {"gram"}
    assert {n.split("/")[0] for n in factors.text.grams} == {"gram_factor", "gram_rest"}
    assert off(near, wanted) < 0.7 * off(far, wanted)


def test_a_long_measurement_says_how_far_it_is(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    windows = torch.arange(60).reshape(4, 15)
    text_statistics(loaded, windows, 2, say=said.append)
    assert not said
    monkeypatch.setattr("lifelong_edit.tracing.progress.SECONDS", -1.0)
    text_statistics(loaded, windows, 3, say=said.append)
    assert said == ["measuring the text: 3 of 4 windows, about 1 s left", "measuring the text: 4 of 4 windows"]


def test_the_ridge_in_units_of_the_gram(make_editor: MakeEditor) -> None:
    editor = make_editor(log_ridge=-2.0)
    bench = editor.bench
    gram = bench.text_gram[bench.names[0]]
    assert editor.ridge(bench.names[0]) == pytest.approx(np.exp(-2) * float(gram.trace()) / len(gram))


def test_progress_says_what_is_left_and_is_silent_when_it_is_quick() -> None:
    said: list[str] = []
    quick = Progress(said.append, "asking", 10, "prompts")
    quick.at(5)
    quick.at(10)
    assert said == []
    slow = Progress(said.append, "asking", 10, "prompts")
    slow._began -= 60.0
    slow._told -= 60.0
    slow.at(0)
    slow.at(4)
    slow.at(5)  # too soon after the last one
    assert said == ["asking: 4 of 10 prompts, about 2 min left"]
    assert [span(s) for s in (0.2, 40.4, 120, 5399, 9000)] == ["1 s", "40 s", "2 min", "90 min", "2.5 h"]


def test_preserved_prompts_are_asked_with_progress(tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifelong_edit.tracing.progress.SECONDS", -1.0)
    loaded, said = load_model(str(tiny_gpt2)), list[str]()
    probes = [Probe(f"The capital of {n} is") for n in range(3)]
    scale = {m.name: torch.ones(m.d_in) for m in loaded.modules}
    prepare_preserved(loaded, probes, 2, 2, scale, said.append)
    assert said == [
        "asking the preserved prompts: 3 of 3 prompts",
        "measuring the preserved prompts: 2 of 3 prompts, about 1 s left",
        "measuring the preserved prompts: 3 of 3 prompts",
        "tracing the preserved prompts: 3 of 3 prompts",
    ]


def test_a_text_is_measured_once_on_a_model(
    loaded: LoadedModel, tiny_gpt2: Path, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second time it is read, to the bit; damage and another text or model are measured; no text lies there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text, first_model = [" ".join(sentences * 20)], loaded

    def prepared(text: list[str], loaded: LoadedModel = first_model, micro_batch: int = 2) -> tuple[TextArrays, bool]:
        before = set((tmp_path / "lifelong-edit" / "text").glob("*"))
        found = prepare_text(loaded, text, 600, micro_batch)
        return found, set((tmp_path / "lifelong-edit" / "text").glob("*")) != before

    first, new = prepared(text)
    assert new
    second, new = prepared(text)
    assert not new
    for one, other in ((first.grams, second.grams), (first.scale, second.scale)):
        assert one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)
    (file,) = (tmp_path / "lifelong-edit" / "text").glob("*")
    kept = file.read_bytes()
    assert b"France" not in kept
    file.write_bytes(kept[:100])
    assert np.array_equal(prepared(text)[0].guard, first.guard) and file.read_bytes() == kept
    assert prepared([text[0].replace("Paris", "Rome")])[1]
    assert prepared(text, micro_batch=3)[1]
    assert prepared(text, load_model(str(tiny_gpt2), dtype="bfloat16"))[1]
