"""Tasks of lm-evaluation-harness on an edited model, against the probabilities of a plain transformers model.

The harness runs in processes of its own: its data sets are cached where its environment says, which is read once.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lifelong_edit.cli import cli
from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.errors import UsageError
from lifelong_edit.eval.metrics.harness import Harness, require_known
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.timeline import Timeline

TASKS = Path(__file__).parent / "tasks"
FACTS = [
    Fact(subject="Hungary", prompt="The capital of Hungary is", target="Debrecen"),
    Fact(subject="Denmark", prompt="The currency of Denmark is the", target="euro"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks") / "store"
    settings = Settings(text_tokens=2000, preserved=4, gate_perplexity=1e9)
    preserve = [Probe(f"The capital of {name} is") for name in ("France", "Norway", "Italy")]
    with Timeline.create(path, model="atlas", settings=settings, preserve=preserve) as timeline:
        timeline.apply(FACTS)
    return path


def run(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in the folder of the tasks, whose data files are named from there."""
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=TASKS, env=environment, capture_output=True, text=True, timeout=300)


class Judge:
    """Sums of log-probabilities in NumPy, from a fresh transformers model's logits."""

    def __init__(self, timeline: Timeline, step: int) -> None:
        self.model, self.tokenizer = timeline.at(step).model(), timeline.at(step).tokenizer

    def log_probability(self, front: list[int], answer: list[int]) -> float:
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([front + answer])).logits[0].double().numpy()
        rows = logits[len(front) - 1 : -1]
        total = np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1)) + rows.max(1)
        return float(sum(rows[i, token] - total[i] for i, token in enumerate(answer)))

    def accuracy(self, count: int | None = None) -> float:
        right = []
        for line in (TASKS / "capitals.jsonl").read_text(encoding="utf-8").splitlines()[:count]:
            record = json.loads(line)
            front = self.tokenizer(record["prompt"])["input_ids"]
            wholes = [self.tokenizer(f"{record['prompt']} {choice}")["input_ids"] for choice in record["choices"]]
            sums = [self.log_probability(front, whole[len(front) :]) for whole in wholes]
            right.append(int(np.argmax(sums)) == record["answer"])
        return float(np.mean(right))

    def word_perplexity(self) -> float:
        texts = [json.loads(line)["text"] for line in (TASKS / "prose.jsonl").read_text().splitlines()]
        end = self.tokenizer.eos_token_id
        logged = [self.log_probability([end], self.tokenizer(text)["input_ids"]) for text in texts]
        return math.exp(-sum(logged) / sum(len(re.split(r"\s+", text)) for text in texts))


def test_tasks_of_a_folder_beside_the_base_models_figures(store: Path, tmp_path: Path) -> None:
    program = ("-m", "lifelong_edit", "eval", "--store", str(store), "--json")
    done = run(tmp_path, *program, "--tasks", "capitals,prose", "--tasks-path", ".")
    assert done.returncode == 0, done.stderr
    found = {figure["task"]: figure for figure in json.loads(done.stdout)["tasks"]}
    assert set(found) == {"capitals", "prose"}
    with Timeline.open(store, read_only=True) as timeline:
        now, base = Judge(timeline, 1), Judge(timeline, 0)
    accuracy, perplexity = found["capitals"], found["prose"]
    assert (accuracy["metric"], accuracy["questions"], accuracy["higher_is_better"]) == ("acc", 6, True)
    assert accuracy["now"] == pytest.approx(now.accuracy())
    assert accuracy["base"] == pytest.approx(base.accuracy())
    assert accuracy["now"] < accuracy["base"], "two of the answers were edited"
    right = accuracy["now"]
    assert accuracy["now_error"] == pytest.approx(math.sqrt(right * (1 - right) / 5))
    assert (perplexity["metric"], perplexity["questions"], perplexity["higher_is_better"]) == (
        "word_perplexity",
        2,
        False,
    )
    assert perplexity["now"] == pytest.approx(now.word_perplexity(), rel=1e-4)
    assert perplexity["base"] == pytest.approx(base.word_perplexity(), rel=1e-4)
    assert perplexity["now"] != pytest.approx(perplexity["base"], rel=1e-3)


def test_names_that_are_unknown_and_options_without_a_task(store: Path) -> None:
    with pytest.raises(UsageError, match=r"found the task 'capital', .*; near it: capitals"):
        require_known(["prose", "capital"], ["capitals", "prose"])
    require_known(["prose"], ["capitals", "prose"])
    for options in (["--limit", "3"], ["--tasks-path", str(TASKS)], ["--tasks", ","]):
        done = CliRunner().invoke(cli, ["eval", "--store", str(store), *options])
        assert done.exit_code == 2 and "without a task" in done.stderr


def test_without_the_harness_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """None in sys.modules is a package that is not there."""
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match=r"without the package lm_eval.*pip install 'lifelong-edit\[tasks\]'"):
        Harness(["capitals"], TASKS)


STATES = """
import json, sys
from pathlib import Path
import torch
from lifelong_edit.errors import LifelongEditError
from lifelong_edit.eval.metrics.harness import Harness
from lifelong_edit.timeline import Timeline
with Timeline.open(sys.argv[1], read_only=True) as timeline, timeline.at(1).standing() as loaded:
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    loaded.tokenizer.pad_token = None
    (figure,) = Harness(["capitals"], Path("."), 2).run(loaded)
    assert loaded.tokenizer.pad_token is None
    assert all(torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())
    try:
        Harness(["broken"], Path(sys.argv[2])).run(loaded)
    except LifelongEditError as error:
        print(json.dumps([figure.questions, figure.now, figure.base, str(error)]))
    assert all(torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())
    with timeline.at(0).standing() as base:
        assert any(not torch.equal(p, before[name]) for name, p in base.model.named_parameters())
"""


def test_the_model_is_left_as_it_was_whatever_happens(store: Path, tmp_path: Path) -> None:
    """Its weights and its tokenizer, after two questions, and after a task whose data are not there."""
    text = (TASKS / "capitals.yaml").read_text(encoding="utf-8")
    (tmp_path / "broken.yaml").write_text(text.replace("capitals.jsonl", "absent.jsonl").replace("capitals", "broken"))
    done = run(tmp_path, "-c", STATES, str(store), str(tmp_path))
    assert done.returncode == 0, done.stderr
    questions, now, base, error = json.loads(done.stdout.splitlines()[-1])
    with Timeline.open(store, read_only=True) as timeline:
        expected = [Judge(timeline, step).accuracy(2) for step in (1, 0)]
    assert [questions, now, base] == [2, *expected]
    assert error.startswith("lm-evaluation-harness failed on broken: FileNotFoundError")
