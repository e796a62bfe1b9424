"""Figures handed to experiment trackers: TensorBoard's event files read back, and trackers that fail."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from lifelong_edit.cli.trackers import Tracking
from lifelong_edit.errors import UsageError
from lifelong_edit.timeline import Timeline


def read_back(folder: Path) -> dict[str, dict[int, float]]:
    """The scalars of a run's event files, by name and step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {name: {e.step: e.value for e in found.Scalars(name)} for name in found.Tags()["scalars"]}


def data(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def run_stream(run: Any, empty_store: Path, news: Path, tmp_path: Path) -> Any:
    def call(*more: object) -> Result:
        found: Result = run("stream", news, "--store", empty_store, "--batch-size", 2, "--json", *more)
        return found

    return call


def test_stream_writes_what_its_log_says(run_stream: Any, empty_store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    found = data(run_stream("--track", "tensorboard", "--track-dir", folder, "--reconsolidate", "every:2"))
    scalars = read_back(folder / "empty")
    for batch in found["batches"]:
        step, gate = batch["step"], batch["gate"]
        assert scalars["batch/taken"][step] == pytest.approx(gate["taken"] / gate["asked"])
        assert scalars["batch/perplexity"][step] == pytest.approx(gate["perplexity"], rel=1e-6)
        assert scalars["batch/conflicts"][step] == len(batch["conflicts"])
        assert scalars["batch/seconds"][step] == pytest.approx(batch["seconds"], rel=1e-6)
        assert scalars["batch/facts"][step] == 2
    (reconsolidation,) = found["reconsolidations"]
    step, guard = reconsolidation["step"], reconsolidation["report"]["guard"]
    assert scalars["reconsolidation/refused"] == {step: float(reconsolidation["refused"])}
    for when in ("before", "after"):
        for name in ("retention", "perplexity"):
            assert scalars[f"reconsolidation/{name}_{when}"] == {step: pytest.approx(guard[when][name], rel=1e-6)}
    assert "reconsolidation/locality_before" not in scalars, "too few subjects to keep guard prompts: not measured"
    assert set(scalars["batch/kept"]) < set(scalars["batch/taken"]), "of the first batch nothing earlier can be kept"


def test_a_run_without_a_step_leaves_no_files(run_stream: Any, tmp_path: Path) -> None:
    track = ("--track", "tensorboard", "--track-dir", tmp_path / "runs")
    data(run_stream(*track, "--dry-run"))
    data(run_stream())
    data(run_stream(*track))
    assert not (tmp_path / "runs").exists()


def test_a_tracker_that_cannot_begin_costs_no_step(run_stream: Any, empty_store: Path, tmp_path: Path) -> None:
    """A file stands where its folder should be."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "empty").write_text("in the way")
    done = run_stream("--track", "tensorboard", "--track-dir", tmp_path / "runs")
    assert [batch["step"] for batch in data(done)["batches"]] == [1, 2, 3]
    assert done.stderr.count("tensorboard has failed and gets no more figures") == 1
    with Timeline.open(empty_store, read_only=True) as timeline:
        assert timeline.head == 3


def test_a_tracker_that_fails_on_the_way_is_left(tmp_path: Path) -> None:
    """Its files are closed beneath it: what it had is there, what comes later is lost, and the other goes on."""
    said: list[str] = []
    with Tracking(["tensorboard", "tensorboard"], "one", tmp_path, said.append) as tracking:
        tracking.log(1, {"loss": 2.0, "unknown": None})
        (tracker,) = tracking._begun.values()
        tracker.writer = None
        tracking.log(2, {"loss": 1.0})
        tracking.log(3, {"loss": 0.5})
    assert len(said) == 1 and "the run goes on" in said[0]
    assert read_back(tmp_path / "one") == {"loss": {1: 2.0}}


def test_what_trackers_say_is_not_among_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """stdout may be read as JSON; some trackers greet on it."""
    with Tracking(["tensorboard"], "one", tmp_path) as tracking:
        tracking._try("tensorboard", lambda: print("welcome"))
    assert capsys.readouterr() == ("", "welcome\n")


def test_missing_package_is_told_before_anything_is_done(
    run: Any, news: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None in sys.modules is a package that is not there."""
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    done = run("stream", news, "--store", tmp_path / "new", "--track", "tensorboard")
    assert done.exit_code == 2 and not (tmp_path / "new").exists()
    assert "without the package tensorboard" in done.stderr
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UsageError, match=r"package accelerate.*pip install 'lifelong-edit\[trackers\]'"):
        Tracking(["tensorboard"], "one", tmp_path)
    Tracking([], "one", tmp_path).log(1, {"loss": 1.0})


def test_train_writes_its_losses(run: Any, tmp_path: Path, shared_facts: Path) -> None:
    out, folder = tmp_path / "network", tmp_path / "runs"
    small: Mapping[str, object] = {"rank": 4, "batch_size": 4, "batches": 1, "probes": 4, "validation_facts": 4}
    options = [f"--train={name}={value}" for name, value in small.items()]
    options += ["--set=passes=1", "--set=text_tokens=2000", "--set=preserved=4", "--set=rehearse=2"]
    done = run("train", "--data", shared_facts, "--out", out, "--steps", 2, *options, "--track", "tensorboard",
               "--track-dir", folder, "--json")  # fmt: skip
    steps = data(done)["steps"]
    scalars = read_back(folder / "network")
    assert list(scalars["train/loss"]) == list(range(1, steps + 1))
    assert next(iter(scalars["held_out/efficacy"])) == 0 and list(scalars["held_out/locality"])[-1] == steps
    last = f"loss {scalars['train/loss'][steps]:.3f}"
    assert last in done.stderr


@pytest.fixture
def shared_facts(tmp_path: Path) -> Path:
    """Some of the bundled facts to learn editing on."""
    from lifelong_edit.atlas import edits_train_path

    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(edits_train_path().read_text(encoding="utf-8").splitlines()[:40]) + "\n")
    return path
