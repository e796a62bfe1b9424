"""A solve over all facts that was killed goes on at its last pass, and comes to the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifelong_edit.facts import Fact
from lifelong_edit.stores.envelopes import IN_THE_CLEAR
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.unfinished import NAME, Unfinished

SOLVING = """
import sys
from lifelong_edit.editors.ridge import together
from lifelong_edit.timeline import Timeline
together.MARK_EVERY = 0.0
import torch; torch.set_num_threads(1)
with Timeline.open(sys.argv[1]) as timeline:
    timeline.reconsolidate(guard=False, say=lambda line: print(line, flush=True))
"""
MANY: dict[str, Any] = {"reconsolidation_passes": 40, "reconsolidation_gain": 0.0, "reconsolidation_preserved": 4}


def test_a_killed_reconsolidation_goes_on_at_its_last_pass(
    start_store: Callable[..., Timeline], tmp_path: Path, batch: Callable[..., list[Fact]], lenient: Any
) -> None:
    for name in ("calm", "killed"):
        with start_store(tmp_path / name, **MANY) as timeline:
            timeline.apply(batch(0), gate=lenient)
    with Timeline.open(tmp_path / "calm") as calm:
        wanted = calm.reconsolidate(guard=False)
    command = [sys.executable, "-c", SOLVING, str(tmp_path / "killed")]
    # the environment counts: another number of threads would begin anew
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("pass 3 "):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / "killed" / NAME).is_file()
    said: list[str] = []
    with Timeline.open(tmp_path / "killed") as timeline:
        found = timeline.reconsolidate(guard=False, say=said.append)
    assert 2 <= int(said[0].split()[1]) - 1 < 40, "it began anew, or was not killed"
    assert found.weights_digest == wanted.weights_digest
    assert found.report["editor"]["loss"] == wanted.report["editor"]["loss"]
    assert not (tmp_path / "killed" / NAME).exists()


def test_a_solve_for_other_facts_begins_anew(
    start_store: Callable[..., Timeline],
    tmp_path: Path,
    batch: Callable[..., list[Fact]],
    lenient: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lifelong_edit.editors.ridge.together.MARK_EVERY", 0.0)
    said: list[str] = []

    def stop(line: str) -> None:
        if line.startswith("pass 3 "):
            raise KeyboardInterrupt

    with start_store(tmp_path / "s", **MANY | {"reconsolidation_passes": 5}) as timeline:
        timeline.apply(batch(0), gate=lenient)
        with pytest.raises(KeyboardInterrupt):
            timeline.reconsolidate(guard=False, say=stop)
        assert (tmp_path / "s" / NAME).exists()
        timeline.retract([batch(0)[0].digest], say=said.append)
    assert said[0].startswith("pass 1 ")


def test_what_cannot_be_read_is_not_there(tmp_path: Path) -> None:
    one = Unfinished(tmp_path, IN_THE_CLEAR, "one")
    assert one.read() is None
    one.write({"a": np.arange(3)})
    assert one.read()["a"].tolist() == [0, 1, 2]  # type: ignore[index]
    assert Unfinished(tmp_path, IN_THE_CLEAR, "other").read() is None
    data = bytearray((tmp_path / NAME).read_bytes())
    data[-1] ^= 1
    (tmp_path / NAME).write_bytes(bytes(data))
    assert one.read() is None
    one.clear()
    one.clear()
    assert not (tmp_path / NAME).exists()
