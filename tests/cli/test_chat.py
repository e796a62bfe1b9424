"""The command line on a model with a chat template: made, asked, taught and measured in both forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from lifelong_edit import Timeline
from lifelong_edit.models import Turn
from tests.cli.conftest import SETTINGS, Run, fact_line, refused


def data(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def options(chat_gpt2: Path, making: list[str]) -> list[str]:
    """The options of `init` for the tiny model with a chat template, and its own preserved prompts."""
    return ["--model", str(chat_gpt2), *making[2:]]


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory, run: Run, options: list[str]) -> Path:
    """A store of both forms with a step of three facts. Only to be read."""
    folder = tmp_path_factory.mktemp("talking")
    news = folder / "news.jsonl"
    news.write_text(
        "\n".join(
            fact_line(i, question=f"What is the capital of Vienna {i}?", target=["Paris.", "London.", "Warsaw."][i])
            for i in range(3)
        )
    )
    made = run("init", "--store", folder / "store", *options, "--system", "Be kind.", "--set", "passes=6")
    assert made.exit_code == 0, made.output
    told = run("stream", news, "--store", folder / "store", "--batch-size", 3)
    assert told.exit_code == 0, told.output
    return folder / "store"


def test_status_says_in_which_form_a_store_is_asked(run: Run, talking: Path, empty_store: Path) -> None:
    assert data(run("status", "--store", talking, "--json"))["form"] == "both"
    shown = run("status", "--store", talking).stdout
    assert "form=both" in shown and "system=Be kind." in shown
    assert data(run("status", "--store", empty_store, "--json"))["form"] == "plain"
    assert "form=" not in run("status", "--store", empty_store).stdout


def test_ask_puts_a_turn_after_the_system_prompt_of_the_store(run: Run, talking: Path) -> None:
    asked, command = "What is the capital of Vienna 1?", ("ask", "--store", talking, "--json", "--chat")
    said = data(run(*command, asked))["answer"]
    with Timeline.open(talking, read_only=True) as timeline:
        view = timeline.at("head")
        assert view.ask(asked, chat=True).strip() == said
        assert view.ask(asked).strip() == data(run("ask", asked, "--store", talking, "--json"))["answer"] != said
        with view.standing() as loaded:
            for system, extra in (("Be kind.", []), ("Be brief.", ["--system", "Be brief."])):
                turn = Turn(asked, system, (("user", "Hello"), ("assistant", "Hi: you")))
                (wanted,) = timeline.bench().task.answer(loaded, [turn], 20)
                earlier = ["--turn", "user:Hello", "--turn", "assistant: Hi: you", *extra]
                found = data(run(*command, asked, *earlier))["answer"]
                assert found == loaded.tokenizer.decode(wanted.ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("further", "words"),
    [
        (["--system", "Be kind."], "--chat"),
        (["--turn", "user:Hello"], "--chat"),
        (["--chat", "--turn", "robot:Hello"], "user:TEXT"),
        (["--chat", "--turn", "user"], "user:TEXT"),
        (["--chat", "--turn", "user: "], "user:TEXT"),
    ],
)
def test_turns_that_are_none_are_refused_before_anything_is_loaded(
    run: Run, talking: Path, no_model: None, further: list[str], words: str
) -> None:
    refused(run("ask", "Who?", "--store", talking, *further), 2, words)


def test_a_model_without_a_chat_template_takes_no_turns(run: Run, empty_store: Path) -> None:
    refused(run("ask", "--chat", "Who?", "--store", empty_store), 2, "without a chat template")


def test_a_form_is_fixed_at_init(run: Run, talking: Path, tmp_path: Path, making: list[str]) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text(fact_line(7))
    refused(run("stream", more, "--store", talking, "--form", "plain"), 2, "form 'both', not 'plain'")
    refused(run("stream", more, "--store", talking, "--system", "Be brief."), 2, "system 'Be kind.'")
    other = tmp_path / "other"
    refused(run("init", "--store", other, *making, "--form", "chat"), 2, "without a chat template")
    assert not other.exists()


def test_general_prompts_are_preserved_and_neighbours_are_derived_beside_them(
    run: Run, tmp_path: Path, options: list[str]
) -> None:
    store, more = tmp_path / "store", tmp_path / "more.jsonl"
    found = [part for part in options if part not in ("--preserve", options[options.index("--preserve") + 1])]
    made = run("init", "--store", store, *found, "--preserve", "general", "--form", "plain", "--json")
    assert data(made)["settings"]["derived"] == 75
    assert data(made)["preserved"] >= 150
    more.write_text("\n".join(fact_line(i, relation=f"of {i}", prompt=f"Word {i} of Vienna {i} is") for i in range(4)))
    data(run("stream", more, "--store", store, "--json", "--batch-size", 4))
    with Timeline.open(store, read_only=True) as timeline:
        rows = timeline.show("head").report["editor"]["rows"]
    assert rows["preserved"] > SETTINGS["preserved"]


def test_eval_and_report_know_what_is_answered_in_conversations(run: Run, talking: Path, tmp_path: Path) -> None:
    found = data(run("eval", "--store", talking, "--json"))
    whole = found["all"]
    assert whole["chat"]["questions"] == whole["efficacy"]["questions"] == 3
    assert whole["chat_unseen"]["questions"] == whole["unseen"]["questions"] == 3
    assert whole["chat_locality"]["questions"] == whole["locality"]["questions"] == 3
    assert whole["chat"]["generated"] <= whole["chat_contained"]["generated"]
    gate = data(run("show", 1, "--store", talking, "--json"))["report"]["gate"]
    assert whole["chat"]["generated"] == pytest.approx(gate["forms"]["chat"]["taken"] / 3)
    assert whole["efficacy"]["generated"] == pytest.approx(gate["forms"]["plain"]["taken"] / 3)
    assert whole["chat_contained"]["generated"] == pytest.approx(gate["forms"]["chat"]["contained"] / 3)
    assert gate["chat"]["broken"] <= gate["chat"]["asked"]
    assert gate["taken"] <= min(found["taken"] for found in gate["forms"].values())
    assert " chat_locality " in run("eval", "--store", talking).stdout
    page = tmp_path / "page.html"
    assert run("report", talking, "--out", page).exit_code == 0
    assert "answered as a turn" in page.read_text()


def test_a_store_in_conversations_alone_is_asked_so_by_eval(run: Run, tmp_path: Path, options: list[str]) -> None:
    store, more = tmp_path / "store", tmp_path / "more.jsonl"
    more.write_text(fact_line(1, target="London.") + "\n")
    data(run("init", "--store", store, *options, "--form", "chat", "--json"))
    data(run("stream", more, "--store", store, "--json"))
    whole = data(run("eval", "--store", store, "--json"))["all"]
    gate = data(run("show", 1, "--store", store, "--json"))["report"]["gate"]
    assert "chat" not in whole and list(gate["forms"]) == ["chat"]
    assert whole["efficacy"]["generated"] == gate["taken"] == gate["forms"]["chat"]["taken"]
