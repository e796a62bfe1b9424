"""Requests to `serve` while steps are committed: is one lost, and is each answer that of one state?

A server process holds a store; eight clients ask it 1,000 questions, one after another each, while another process
commits 20 steps. Each answer names its state (`head@N`). Afterwards every answer is held against what the store itself
says at that state: a lost request, an error or another answer fails the benchmark.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks import common
from benchmarks.bench_load import batch, make_store

TOKENS = 6


class Clients:
    """So many at a time, until all questions are asked; what each was told."""

    def __init__(self, place: str, questions: list[str], at_once: int) -> None:
        self._place, self._left = place, list(reversed(questions))
        self.told: list[tuple[str, str, str, float]] = []
        """Question, model, answer, seconds."""
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(at_once)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(urlsplit(self._place).netloc, timeout=600)
        while self._left:
            try:
                question = self._left.pop()
            except IndexError:
                return
            body = {"model": "head", "prompt": question, "max_tokens": TOKENS, "temperature": 0}
            begun = time.perf_counter()
            try:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", "/v1/completions", json.dumps(body), headers)
                found = json.loads(connection.getresponse().read())
                answer = found["choices"][0]["text"]
                self.told.append((question, found["model"], answer, time.perf_counter() - begun))
            except (OSError, http.client.HTTPException, KeyError, ValueError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                connection.close()

    def wait(self) -> None:
        """Until all are through."""
        for thread in self._threads:
            thread.join()


def measured(folder: Path, requests: int, at_once: int, steps: int, size: int) -> dict[str, Any]:
    """What came of it."""
    from lifelong_edit import Timeline

    make_store(folder)
    facts = [fact for number in range(steps) for fact in batch(number, size)]
    questions = [facts[i * 7 % len(facts)].prompt for i in range(requests)]
    command = [sys.executable, "-m", "lifelong_edit", "serve", "--store", str(folder / "store"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            place = server.stdout.readline().strip()
            begun = time.perf_counter()
            clients = Clients(place, questions, at_once)
            with Timeline.open(folder / "store") as timeline:
                for number in range(steps):
                    timeline.apply(batch(number, size))
            committed = time.perf_counter() - begun
            clients.wait()
            seconds = time.perf_counter() - begun
        finally:
            server.terminate()
    with Timeline.open(folder / "store", read_only=True) as timeline:
        pairs = sorted({(model, question) for question, model, _, _ in clients.told})
        right = {
            (model, question): timeline.at(int(model.partition("@")[2])).ask(question, max_new_tokens=TOKENS)
            for model, question in pairs
        }
        head = timeline.head
    wrong = [told for told in clients.told if right[told[1], told[0]] != told[2]]
    waits = np.array([wait for *_, wait in clients.told])
    found = {
        "requests": requests,
        "answered": len(clients.told),
        "failures": clients.failures[:5],
        "of_another_state": len(wrong),
        "answers_that_differ_by_state": len({(question, text) for (_, question), text in right.items()})
        - len({question for _, question in right}),
        "states": dict(sorted(Counter(model for _, model, _, _ in clients.told).items())),
        "steps_committed": head,
        "seconds": round(seconds, 1),
        "seconds_until_committed": round(committed, 1),
        "wait_ms": {f"p{p}": round(float(np.percentile(waits, p)) * 1000) for p in (50, 90, 99)},
    }
    if len(clients.told) != requests or wrong or clients.failures or head != steps:
        raise SystemExit(f"not as it has to be: {json.dumps(found)}")
    return found


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), arguments.requests, arguments.at_once, arguments.steps, arguments.size)
    common.write("serve", found)


if __name__ == "__main__":
    main()
