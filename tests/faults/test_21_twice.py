"""21. Duplicate or contradictory facts, and a run resumed after Ctrl-C: nothing is applied twice."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from lifelong_edit.stores import EditLog
from tests.warm import Running

Run = Callable[..., Result]
Program = Callable[..., Running]


def fact(number: int, target: str) -> str:
    name = f"Vienna {number}"
    return json.dumps({"subject": name, "prompt": f"The capital of {name} is", "target": target, "relation": "capital"})


def digests(store: Path) -> list[tuple[object, ...]]:
    with EditLog.open(store, read_only=True) as log:
        return [(step.kind, step.weights_digest, step.live_digest, step.places) for step in log.steps()]


def test_a_stream_run_twice_and_its_facts_from_another_file(run: Run, store: Path, news: Path, tmp_path: Path) -> None:
    before = digests(store)
    copy = tmp_path / "copy.jsonl"
    copy.write_text("".join(sorted(news.read_text().splitlines(keepends=True), reverse=True)))
    for path in (news, copy):
        result = run("stream", path, "--store", store, "--batch-size", 2, "--json")
        assert (result.exit_code, json.loads(result.stdout)["summary"]["facts"]) == (0, 0)
    assert digests(store) == before


def test_the_policy_decides_a_contradiction(run: Run, empty_store: Path, tmp_path: Path) -> None:
    path = tmp_path / "both.jsonl"
    path.write_text(f"{fact(1, 'Paris')}\n{fact(2, 'Paris')}\n{fact(1, 'London')}\n{fact(1, 'London')}\n")
    options = ("--store", empty_store, "--batch-size", 1)
    assert run("stream", path, *options).exit_code == 0
    assert targets(run, empty_store) == {"Vienna 1": "London", "Vienna 2": "Paris"}
    path.write_text(f"{fact(1, 'Warsaw')}\n")
    assert run("stream", path, *options, "--conflicts", "reject").exit_code == 0
    assert targets(run, empty_store) == {"Vienna 1": "London", "Vienna 2": "Paris"}
    before = len(digests(empty_store))
    assert run("stream", path, *options).exit_code == 0  # consumed; the other policy does not bring it back
    assert len(digests(empty_store)) == before


def targets(run: Run, store: Path) -> dict[str, str]:
    found = json.loads(run("facts", "--store", store, "--json").stdout)
    return {one["subject"]: one["target"] for one in found}


def test_ctrl_c_in_mid_batch(run: Run, program: Program, empty_store: Path, store: Path, news: Path) -> None:
    """Started again with the same command, the run ends where an undisturbed one ends: in `store`."""
    process = program("stream", news, "--store", empty_store, "--batch-size", 2)
    assert process.stdout is not None
    while process.stdout.readline().split()[:1] != [b"1"]:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode in (0, 130) and b"Traceback" not in err
    assert 1 <= len(digests(empty_store)) - 1 <= 3
    result = run("stream", news, "--store", empty_store, "--batch-size", 2)
    assert result.exit_code == 0, result.output
    assert digests(empty_store) == digests(store)
