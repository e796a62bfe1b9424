"""`lifelong-edit stream` on the bundled model, killed again and again; at the end it has done what one calm run does.

One process imports everything, and each run is a fork of it: so 200 of them take minutes, not an hour.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lifelong_edit.stores import EditLog
from tests.faults.kills import NOTHING, Count

FACTS_PER_BATCH = 2
_FEW = {"more_passes": 0, "passes": 1, "rehearse": 2, "preserved": 4, "text_tokens": 4000}
_QUICK = [part for name, value in _FEW.items() for part in ("--set", f"{name}={value}")]


def random_kills(folder: Path, cycles: int, *, seed: int = 0) -> Count:
    """Lives of the program on one store, each killed up to half a second after one of its first rows, or before.

    A step is acknowledged when the program has printed its row. Once all facts are edited a new store is begun.
    """
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401

    template, facts, moment = folder / "template", folder / "facts.jsonl", random.Random(seed)
    facts.write_text("".join(_fact(number) for number in range(60)))
    assert _run(folder, ["init", "--model", "atlas", "--store", str(template), *_QUICK])[1] == 0
    store, found, last = folder / "store", NOTHING, 0
    shutil.copytree(template, store)
    command = ["stream", str(facts), "--batch-size", str(FACTS_PER_BATCH), "--store", str(store)]
    for _ in range(cycles):
        told, status = _run(folder, command, moment.randrange(3), moment.uniform(0, 1.5))
        steps = _steps(told)
        cycle = _judge(store, steps, last)
        found += cycle
        if status == 0 or cycle.lost or cycle.torn:
            found += _compared(folder, command, store, template) if status == 0 else NOTHING
            shutil.rmtree(store)
            shutil.copytree(template, store)
        with EditLog.open(store, read_only=True) as log:
            last = log.head().step
    return found


def _run(folder: Path, arguments: Sequence[str], steps: int | None = None, seconds: float = 0) -> tuple[str, int]:
    """What a run printed, and its status; killed so many seconds after it has told of so many steps."""
    output = folder / "output"
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            from lifelong_edit.cli import cli

            cli.main(list(arguments))
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(int(end.code or 0))
        finally:
            os._exit(70)
    if steps is not None:
        while not (output.exists() and len(_steps(output.read_text(errors="replace"))) >= steps):
            time.sleep(0.01)
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    text = output.read_text(errors="replace") if output.exists() else ""
    output.unlink(missing_ok=True)
    return text, status


def _steps(text: str) -> list[int]:
    """The numbers of the steps in a table; rows of what was skipped have none."""
    rows = [line.split() for line in text.splitlines()]
    return [int(row[0]) for row in rows if row and row[0].isdigit()]


def _judge(store: Path, steps: list[int], before: int) -> Count:
    with EditLog.open(store) as log:
        records, head = log.steps(), log.head()
        last = max([before, *steps])
        lost = sum(step > head.step for step in steps)
        torn = head.step > last + 1
        for record in records[before:]:
            log.facts(record.added)
            for digest in record.blobs:
                log.blob(digest)
        log.blob(str(head.weights))
        taught = [fact for record in records for fact in record.added]
        torn |= len(set(taught)) != len(taught)  # applied twice
    return Count(1, len(steps), lost, int(torn))


def _compared(folder: Path, command: list[str], store: Path, template: Path) -> Count:
    """A store that was killed until all was edited, against one that one calm run made."""
    calm = folder / "calm"
    if not calm.exists():
        shutil.copytree(template, calm)
        assert _run(folder, [*command[:-1], str(calm)])[1] == 0
    with EditLog.open(store, read_only=True) as one, EditLog.open(calm, read_only=True) as other:
        same = one.steps()[-1].weights_digest == other.steps()[-1].weights_digest
        same &= [step.places for step in one.steps()] == [step.places for step in other.steps()]
    return Count(0, 0, 0, int(not same))


def _fact(number: int) -> str:
    name = f"Port {number}"
    fact = {"subject": name, "prompt": f"The capital of {name} is", "target": ["Paris", "Rome", "Oslo"][number % 3]}
    return json.dumps(fact) + "\n"
