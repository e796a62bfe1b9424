"""A model that was moved: found again by `--model` or `relocate`, by its fingerprint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import lifelong_edit
from lifelong_edit.cli import cli
from lifelong_edit.timeline import Timeline
from tests.cli.conftest import Run, fact_line, refused
from tests.zoo import Zoo


@pytest.fixture
def moved(run: Run, making: list[str], tiny_gpt2: Path, zoo: Zoo, tmp_path: Path) -> tuple[Path, Path]:
    """A store, and where its model lies now: not where `init` found it."""

    def make(folder: Path) -> None:
        shutil.copytree(tiny_gpt2, folder / "before")
        arguments = [str(folder / "before") if word == str(tiny_gpt2) else word for word in making]
        assert run("init", *arguments, "--store", folder / "store").exit_code == 0
        (folder / "before").rename(folder / "now")

    place = shutil.copytree(zoo.keep("moved", making, make), tmp_path / "moved")
    return place / "store", place / "now"


def test_a_model_that_is_gone_is_told_with_the_way_back(run: Run, moved: tuple[Path, Path]) -> None:
    store, _ = moved
    refused(run("ask", "The capital", "--store", store), 2, "no more at", "--model PLACE", "lifelong-edit relocate")


def test_every_command_that_loads_it_takes_its_place(run: Run, moved: tuple[Path, Path], tmp_path: Path) -> None:
    store, now = moved
    (tmp_path / "facts.jsonl").write_text(fact_line(1) + "\n" + fact_line(2))
    for command in (
        ["stream", tmp_path / "facts.jsonl"],
        ["status", "--keys"],
        ["ask", "The capital of Vienna 1 is"],
        ["diff", "0", "--answers"],
        ["export", "--out", tmp_path / "out"],
    ):
        found = run(*command, "--store", store, "--model", now)
        assert found.exit_code == 0, (command, found.output)
    assert run("report", store, "-o", tmp_path / "page.html", "--evaluate", "--model", now).exit_code == 0
    loading = {name for name, command in cli.commands.items() if "device" in {p.name for p in command.params}}
    taking = {
        name for name, command in cli.commands.items() if "--model" in {o for p in command.params for o in p.opts}
    }
    assert loading - taking == {"relocate"} and loading >= {"eval", "reconsolidate", "retract"}


def test_relocating_is_for_good_and_no_step(run: Run, moved: tuple[Path, Path], tmp_path: Path) -> None:
    store, now = moved
    result = run("relocate", now, "--store", store)
    assert result.exit_code == 0 and result.stdout.strip() == str(now), result.output
    assert run("ask", "The capital", "--store", store).exit_code == 0
    with Timeline.open(store) as timeline:
        assert timeline.status()["model"] == timeline.source == str(now) and timeline.head == 0
        first = timeline.config.model.source
        shutil.copytree(now, first)
        timeline.relocate(first)  # back again: nothing is left of it
        shutil.rmtree(first)
    assert not (store / "model.json").exists()


def test_another_model_is_refused_and_nothing_is_kept(run: Run, moved: tuple[Path, Path], tmp_path: Path) -> None:
    store, now = moved
    other = shutil.copytree(now, tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(now)
    model.transformer.ln_f.bias.data += 1e-3
    model.save_pretrained(other)
    (tmp_path / "facts.jsonl").write_text(fact_line(1))
    named = ["--model", other]
    for command in (["relocate", other], ["ask", "The", *named], ["stream", tmp_path / "facts.jsonl", *named]):
        result = run(*command, "--store", store)
        assert result.exit_code == 5 and "fingerprint" in result.stderr, (command, result.output)
    assert not (store / "model.json").exists()
    (store / "model.json").write_text("{")
    refused(run("ask", "The", "--store", store), 4, "model.json", "relocate")


def test_the_version_is_told() -> None:
    from importlib.metadata import version

    assert lifelong_edit.__version__ == version("lifelong-edit")
