"""`train` in several processes: the files of one process, whoever is killed and however the clocks go."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.cli.conftest import KILLED, SECONDS, Start, digests, ended, fact_line, last_line

Run = Callable[..., Result]
Arguments = Callable[..., list[object]]
NETWORK, CONFIG, CHECKPOINT = "network.safetensors", "config.json", "checkpoint.safetensors"
FILES = (NETWORK, CONFIG, CHECKPOINT, "conflicts.json")
SMALL = {"rank": 4, "batch_size": 3, "batches": 2, "probes": 6, "validation_facts": 4, "validate_every": 3}
OF_RULES = {
    "malmen": ["phrasings=1", "preserved=4", "rehearse=4", "c0=50", "passes=1", "modules=1-3"],
    "mend": ["phrasings=1", "modules=1-3"],
    "rledit": ["phrasings=1"],
    "serac": ["rank=2", "width=8"],
}
"""Rules that have a network, and settings for a tiny model; more matrices than processes."""


@pytest.fixture(scope="session")
def training(making: list[str], tmp_path_factory: pytest.TempPathFactory) -> Arguments:
    """The command without its folder, on facts whose neighbours have the answers that the model is to keep."""
    data = tmp_path_factory.mktemp("data") / "facts.jsonl"
    lines = [fact_line(i, target_true=["Rome", "Oslo"][i % 2]) for i in range(18)]
    data.write_text("\n".join(lines) + "\n")

    def arguments(rule: str, *more: object) -> list[object]:
        found: list[object] = ["train", "--editor", rule, "--data", data, *making[:4]]
        for pair in ("text_tokens=2000", "micro_batch=4", *OF_RULES.get(rule, [])):
            found += ["--set", pair]
        return [*found, *more, "--out"]

    return arguments


@pytest.fixture(scope="session")
def stepping(training: Arguments) -> Arguments:
    """The same for a few steps of a small network."""
    small = [part for name, value in SMALL.items() for part in ("--train", f"{name}={value}")]
    return lambda rule, *more: training(rule, *small, "--steps", 4, *more)


@pytest.fixture(scope="session")
def alone(run: Run, stepping: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, str]]:
    """The network of a rule as one process trains it, and what was said; each is trained once."""
    made: dict[str, tuple[Path, str]] = {}

    def trained(rule: str) -> tuple[Path, str]:
        if rule not in made:
            folder = tmp_path_factory.mktemp("alone") / rule
            result = run(*stepping(rule), folder)
            assert result.exit_code == 0, result.output
            made[rule] = folder, result.stderr
        return made[rule]

    return trained


def files(folder: Path, *names: str) -> dict[str, bytes]:
    """What a training leaves."""
    return {name: (folder / name).read_bytes() for name in names or FILES if (folder / name).exists()}


def steps(err: str) -> list[list[str]]:
    """Losses and scores as they were said, without seconds."""
    return [line.split()[:4] for line in err.splitlines() if line.startswith("step ")]


IN_A_HURRY = """
from lifelong_edit.training.run import Run
true = Run.go
Run.go = lambda run, minutes, steps: true(run, minutes, steps, iter(range(0, 10**9, 10**6)).__next__)
"""
"""A process whose clock says at once that the time is up."""


@pytest.mark.parametrize("rule", OF_RULES)
def test_two_processes_train_the_network_of_one(
    together: Start, tmp_path: Path, stepping: Arguments, alone: Callable[[str], tuple[Path, str]], rule: str
) -> None:
    """Byte by byte, validations on the way; process 0 alone speaks, and says when the time is up."""
    (wanted, said), shared = alone(rule), tmp_path / "shared"
    (code, out, err), (other, *silent) = ended(together(*stepping(rule), shared, befores={1: IN_A_HURRY}))
    assert (code, other, silent) == (0, 0, ["", ""]), err
    assert out.strip() == str(shared)
    assert steps(err) == steps(said)
    assert len(steps(err)) > 4
    assert files(shared) == files(wanted)
    assert {NETWORK, CONFIG, CHECKPOINT} <= set(files(shared))


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_team_goes_on_to_the_same_network(
    run: Run,
    together: Start,
    tmp_path: Path,
    stepping: Arguments,
    alone: Callable[[str], tuple[Path, str]],
    killed: int,
) -> None:
    """In its second episode; what goes on is one process, or again two."""
    shared, arguments = tmp_path / "shared", stepping("malmen")
    before = KILLED.format(module="lifelong_edit.training", owner="episodes", name="_add_group", call=7)
    processes = together(*arguments, shared, befores={killed: before})
    assert processes[killed].wait(SECONDS) == -signal.SIGKILL
    code, _, err = ended(processes)[1 - killed]
    assert code == 1
    assert f"error: process {killed} of 2 ended before the others" in last_line(err)
    assert set(files(shared)) == {CHECKPOINT}
    told = ended(together(*arguments, shared))[0][2] if killed else run(*arguments, shared).stderr
    assert "going on from step 2" in told
    assert files(shared) == files(alone("malmen")[0])


@pytest.mark.parametrize("rule", ["malmen", "serac"])
def test_shards_train_the_network_of_one(
    together: Start, tmp_path: Path, stepping: Arguments, alone: Callable[[str], tuple[Path, str]], rule: str
) -> None:
    """In step; the config says otherwise where the model was."""
    shared = tmp_path / "shared"
    (code, _, err), (other, *_) = ended(together(*stepping(rule, "--device", "sharded"), shared))
    assert (code, other) == (0, 0), err
    assert files(shared, NETWORK) == files(alone(rule)[0], NETWORK)


OTHERWISE = """
from lifelong_edit.training.episodes import Trainer
true = Trainer.descend
def otherwise(trainer, loss):
    next(trainer.networks.parameters()).grad.mul_(2)
    true(trainer, loss)
Trainer.descend = otherwise
"""


def test_networks_that_differ_are_not_kept(together: Start, tmp_path: Path, stepping: Arguments) -> None:
    processes = together(*stepping("mend"), tmp_path / "shared", befores={1: OTHERWISE})
    (code, _, err), (other, *_) = ended(processes)
    assert (code, other) == (1, 1)
    assert "process 0 of 2 came to a checkpoint with the digest" in last_line(err)
    assert files(tmp_path / "shared") == {}


SLOW = """
import time
from lifelong_edit.training import choosing
from types import SimpleNamespace
choosing.time = SimpleNamespace(monotonic=iter(range(0, 10**9, 10**6)).__next__)
"""
"""A process by whose clock each trial takes days."""


def test_settings_are_chosen_together(run: Run, together: Start, tmp_path: Path, training: Arguments) -> None:
    """The same trials, by the clock of process 0; a model in shards is refused."""
    asked = ["--choose", 600, "--choosing", "trials=2", "--choosing", "only=eta", "--choosing", "facts=3"]
    arguments = training("gradient", *asked, "--choosing", "reconsolidate=false", "--modules", "2-3")
    wanted, shared = tmp_path / "alone", tmp_path / "shared"
    assert run(*arguments, wanted).exit_code == 0
    (code, out, err), (other, *silent) = ended(together(*arguments, shared, befores={1: SLOW}))
    assert (code, other, silent) == (0, 0, ["", ""]), err
    assert out.strip() == str(shared)
    assert chosen(shared) == chosen(wanted)
    assert len(chosen(shared)["trials"]) == 4
    (code, _, err), _ = ended(together(*arguments[:-1], "--device", "sharded", "--out", tmp_path / "shards"))
    assert code == 2
    assert "found a model in shards" in last_line(err)


def test_a_probe_is_made_together(
    run: Run, together: Start, tmp_path: Path, making: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trials of `init --probe`: the same, by the clock of process 0, and kept once."""
    options: list[object] = ["init", *making[:4], "--editor", "ft", "--probe", 5]
    for pair in ("epochs=1", "text_tokens=2000", "micro_batch=32"):
        options += ["--set", pair]
    wanted, shared = tmp_path / "alone", tmp_path / "shared"
    monkeypatch.setenv("XDG_CACHE_HOME", str(wanted))
    assert run(*options, "--store", wanted / "store").exit_code == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared))
    (code, _, err), (other, *silent) = ended(together(*options, "--store", shared / "store", befores={1: SLOW}))
    assert (code, other, silent) == (0, 0, ["", ""]), err
    (one,), (two,) = ((place / "lifelong-edit" / "probes").iterdir() for place in (wanted, shared))
    assert chosen(one) == chosen(two)
    assert len(chosen(one)["trials"]) > 3
    assert digests(shared / "store") == digests(wanted / "store")


def chosen(folder: Path) -> dict[str, Any]:
    """What a search leaves, without seconds."""
    found: dict[str, Any] = json.loads((folder / "settings.json").read_text())
    del found["provenance"]["seconds"]
    for trial in found["trials"]:
        del trial["seconds"]
    return found
