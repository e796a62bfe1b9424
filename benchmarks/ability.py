"""What a model can do beside its edited facts: tasks for lm-evaluation-harness, made of data that lies here.

Facts asked with four answers to choose from (zsRE, its training records), claims that are true or false (FEVER), the
next words of a text among those of others (WikiText-2, validation). The harness asks base and edited model alike.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.data import wikitext
from lifelong_edit.eval.metrics.harness import Harness
from lifelong_edit.models import LoadedModel

YAML = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""


def ability(loaded: LoadedModel, questions: int) -> Mapping[str, Any]:
    """By task: accuracy now and of the base model with standard errors, over so many questions."""
    with tempfile.TemporaryDirectory() as folder:
        made = {"local_facts": facts(questions), "local_claims": claims(questions), "local_text": text(questions)}
        for name, asked in made.items():
            file = Path(folder) / f"{name}.jsonl"
            file.write_text("".join(json.dumps(record) + "\n" for record in asked), encoding="utf-8")
            (Path(folder) / f"{name}.yaml").write_text(YAML.format(name=name, file=file), encoding="utf-8")
        found = Harness(list(made), Path(folder)).run(loaded)
    return {f.task: {"now": f.now, "base": f.base, "error": f.base_error, "questions": f.questions} for f in found}


def facts(count: int) -> list[dict[str, Any]]:
    """Questions of zsRE with the true answer among those of three other questions."""
    path = common.shared("data", "zsre", "zsre_mend_train-1k.json")
    records, draw = json.loads(path.read_text(encoding="utf-8")), random.Random(0)
    found = []
    for record in draw.sample(records, count):
        true = record["answers"][0]
        others = dict.fromkeys(r["answers"][0] for r in draw.sample(records, 20) if r["answers"][0] != true)
        found.append(_mixed(draw, f"Question: {record['src']}\nAnswer:", true, list(others)[:3]))
    return found


def claims(count: int) -> list[dict[str, Any]]:
    """Claims of FEVER, as many supported as refuted."""
    records = json.loads(common.shared("data", "fever", "fever_labelled_dev.json").read_text(encoding="utf-8"))
    draw, found = random.Random(0), list[dict[str, Any]]()
    for label, answer in (("SUPPORTS", 0), ("REFUTES", 1)):
        for record in draw.sample([r for r in records if r["label"] == label], count // 2):
            prompt = f"{record['claim']} True or false? Answer:"
            found.append({"prompt": prompt, "choices": ["True", "False"], "answer": answer})
    return found


def text(count: int, before: int = 30, after: int = 10) -> list[dict[str, Any]]:
    """Beginnings of paragraphs with their next words, among the next words of three others."""
    lines = wikitext("valid").splitlines()
    words = [line.split() for line in lines if len(line.split()) >= before + after]
    draw, found = random.Random(0), list[dict[str, Any]]()
    for i, paragraph in enumerate(words[:count]):
        others = draw.sample([w for j, w in enumerate(words) if j != i], 3)
        following = [" ".join(w[before : before + after]) for w in [paragraph, *others]]
        found.append(_mixed(draw, " ".join(paragraph[:before]), following[0], following[1:]))
    return found


def _mixed(draw: random.Random, prompt: str, true: str, others: list[str]) -> dict[str, Any]:
    choices = draw.sample([true, *others], 1 + len(others))
    return {"prompt": prompt, "choices": choices, "answer": choices.index(true)}
