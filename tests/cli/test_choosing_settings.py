"""`train --choose`, and stores that take what it found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.cli.conftest import fact_line, refused

Run = Callable[..., Result]
TRAIN = ["--train", "batch_size=4", "--train", "validation_share=0.4"]
FAST = ["--choosing", "facts=4", "--choosing", "batch_size=2", "--choosing", "only=eta,passes"]


@pytest.fixture(scope="module")
def command(making: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`train --choose` for the tiny model, with everything but --out."""
    facts = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    record = '{{"subject": "Kenya {0}", "prompt": "The currency of Kenya {0} is", "target": "London"}}'
    facts.write_text("\n".join(record.format(n) for n in range(24)))
    kept = [making[i : i + 2] for i in range(0, len(making), 2) if making[i] != "--preserve"]
    options = [part for pair in kept for part in pair]
    return ["train", *options, "--data", str(facts), *TRAIN, *FAST, "--choose", "0"]


def test_a_store_takes_what_was_chosen(run: Run, tmp_path: Path, command: list[str], making: list[str]) -> None:
    out = tmp_path / "chosen"
    done = run(*command, "--editor", "gradient", "--out", out, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found == {"out": str(out), "trials": 4, "settings": str(out / "settings.json")}
    places = ["modules-answer", "modules-subject", "settings.json", "trials.json"]
    assert sorted(path.name for path in out.iterdir()) == places
    result = json.loads((out / "settings.json").read_text())
    assert (result["settings"]["c0"], result["settings"]["log_ridge"]) == (50.0, None)  # as given by --set
    result["settings"] |= {"eta": 0.75, "kappa": 8.0}
    (out / "settings.json").write_text(json.dumps(result))
    model = making[:4]
    for place, more in ((out, []), (out / "settings.json", ["--set", "kappa=4"])):
        store = tmp_path / place.name
        store = store.with_name(store.name + "-store")
        made = run("init", "--store", store, *model, "--settings", place, "--editor", "gradient", *more)
        assert made.exit_code == 0, made.output
        settings = json.loads(run("show", 0, "--store", store, "--json").stdout)["provenance"]["config"]["settings"]
        assert (settings["c0"], settings["eta"]) == (50.0, 0.75)
        assert settings["kappa"] == (4.0 if more else 8.0)
    wrapped = ("init", "--store", tmp_path / "wrapped", *model, "--settings", out)
    made = run(*wrapped, "--editor", "rect+gradient", "--json")
    assert made.exit_code == 0, made.output
    told = json.loads(made.stdout)
    assert (told["editor"], told["settings"]["eta"], told["settings"]["kappa"]) == ("rect+gradient", 0.75, 8.0)
    assert run(*wrapped, "--editor", "rect+memit").exit_code == 3  # they were chosen for another rule
    other = run("stream", command[command.index("--data") + 1], "--store", store, "--settings", out)
    assert other.exit_code == 2  # kappa is fixed at init, and this file says otherwise
    assert "was made with kappa 4.0" in other.stderr


def test_a_rule_with_a_wrapper_is_sent_to_the_one_inside(run: Run, tmp_path: Path, command: list[str]) -> None:
    said = run(*command, "--editor", "rect+gradient", "--out", tmp_path / "chosen")
    assert said.exit_code == 2 and not (tmp_path / "chosen").exists()
    assert "train gradient, and give what that leaves to `init --editor rect+gradient`" in said.stderr


def test_a_network_is_trained_in_what_was_chosen(run: Run, tmp_path: Path, command: list[str]) -> None:
    from lifelong_edit.timeline.defaults import solve_of

    out = tmp_path / "network"
    more = ["--steps", 1, "--train", "rank=4", "--train", "batches=1", "--train", "validation_facts=2"]
    done = run(*command, *more, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["steps"] >= 1
    assert solve_of(out)["reconsolidation_passes"] == 3  # --set says so, and settings.json beside the network
    (out / "settings.json").unlink()
    assert "reconsolidation_passes" not in solve_of(out)


CHOSEN_HERE = {
    "ft": ("only=relative_rate,layer", ["epochs=2"]),
    "r-rome": ("only=rate,layer", ["contexts=1", "context_tokens=3", "steps=3", "gate_perplexity=1e9"]),
    "grace": ("only=radius,layer", ["steps=2"]),
}
"""Of rules of different kinds what is chosen, and settings under which it takes a moment."""


@pytest.mark.parametrize("rule", CHOSEN_HERE)
def test_any_rule_goes_from_choosing_to_a_stream(
    run: Run, tmp_path: Path, command: list[str], making: list[str], rule: str
) -> None:
    """`init --settings` alone makes a store of the rule, with what was chosen, where it was chosen."""
    out, (only, small) = tmp_path / "chosen", CHOSEN_HERE[rule]
    kept = ["text_tokens=2000", "micro_batch=8", *small]
    of_rule = [part for pair in kept for part in ("--set", pair)]
    data = command[command.index("--data") + 1]
    asked = ["--choosing", "facts=4", "--choosing", "batch_size=2", "--choosing", only, "--choosing", "trials=3"]
    options = [*making[:4], *of_rule, "--data", data, *TRAIN, *asked, "--choose", 60, "--editor", rule]
    done = run("train", *options, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads((out / "settings.json").read_text())
    tried = [trial for trial in result["trials"] if not trial["check"]]
    assert result["editor"] == rule
    assert len(tried) == 3 and tried[0]["changes"] == {} and all(trial["efficacy"] is not None for trial in tried)
    number = only.removeprefix("only=").partition(",")[0]
    where = "transformer.h.1.mlp.c_proj" + ("@subject" if rule == "r-rome" else "")
    result["settings"] |= {number: 0.0625, "modules": [where]}  # as if these had been better
    (out / "settings.json").write_text(json.dumps(result))
    store = tmp_path / "store"
    made = run("init", "--store", store, *making[:4], "--settings", out, "--set", "gate_perplexity=1e9")
    assert made.exit_code == 0, made.output
    config = json.loads(run("show", 0, "--store", store, "--json").stdout)["provenance"]["config"]
    assert config["settings"]["editor"] == rule and config["settings"][number] == 0.0625
    assert config["settings"]["text_tokens"] == 2000  # on which the figures depend
    assert list(config["model"]["modules"]) == ["transformer.h.1.mlp.c_proj"]
    assert config["model"]["subject_modules"] == ([] if rule != "r-rome" else ["transformer.h.1.mlp.c_proj"])
    news = tmp_path / "news.jsonl"
    news.write_text("\n".join(fact_line(i) for i in range(4)))
    streamed = run("stream", news, "--store", store, "--settings", out, "--batch-size", 2)
    assert streamed.exit_code == 0, streamed.output
    status = json.loads(run("status", "--store", store, "--json").stdout)
    assert status["live_facts"] + status["superseded"] == 4 and status["head"] == 2
    other = run("init", "--store", tmp_path / "other", *making[:4], "--settings", out, "--editor", "neurons")
    assert (other.exit_code, f"give --editor {rule}" in other.stderr) == (3, True), other.output


def test_what_is_no_choice_is_refused(run: Run, tmp_path: Path, command: list[str]) -> None:
    index = command.index("--choose")
    without = run(*command[:index], "--editor", "gradient", "--out", tmp_path / "a")
    assert (without.exit_code, "without --choose" in without.stderr) == (2, True)
    nothing = run(*command, "--editor", "ft", "--out", tmp_path / "c")  # it has no eta, and no passes
    assert (nothing.exit_code, "ft" in nothing.stderr or "NAME=VALUE" in nothing.stderr) == (2, True)
    unknown = run(*command, "--choosing", "only=seed", "--out", tmp_path / "b")
    assert (unknown.exit_code, "expected some of eta" in unknown.stderr) == (2, True)
    wrong = tmp_path / "settings.json"
    for content in ('{"trials": []}', '{"settings": {"colour": 1}}', "[]", "{"):
        wrong.write_text(content)
        found = run("init", "--store", tmp_path / "s", "--settings", wrong)
        assert (found.exit_code, "holds no settings" in found.stderr) == (3, True), found.output


def test_a_store_edits_where_a_probe_says(
    run: Run, tmp_path: Path, making: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers are tried on known facts; what was found is kept, and taken from there by the next store."""
    from lifelong_edit.editors.ridge.settings import CHOSEN

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = ["epochs=1", "text_tokens=2000", "micro_batch=32", "gate_perplexity=1e9"]
    options = [*making[:4], "--editor", "ft", *(part for pair in small for part in ("--set", pair)), "--probe", 5]
    first = run("init", "--store", tmp_path / "first", *options)
    assert first.exit_code == 0, first.output
    assert "trial 1" in first.stderr and "layer=" in first.stderr
    (kept,) = (tmp_path / "lifelong-edit" / "probes").iterdir()
    result = json.loads((kept / CHOSEN).read_text())
    result["settings"]["modules"] = ["transformer.h.1.mlp.c_proj"]  # as if the lower one had been better
    (kept / CHOSEN).write_text(json.dumps(result))
    second = run("init", "--store", tmp_path / "second", *options)
    assert second.exit_code == 0, second.output
    assert "trial" not in second.stderr and "probed: transformer.h.1.mlp.c_proj" in second.stderr
    config = json.loads(run("show", 0, "--store", tmp_path / "second", "--json").stdout)["provenance"]["config"]
    assert list(config["model"]["modules"]) == ["transformer.h.1.mlp.c_proj"]


@pytest.mark.parametrize(
    ("more", "word"),
    [(["--editor", "ft", "--modules", "1"], "expected one of the two"), (["--editor", "gradient"], "no layer")],
)
def test_a_probe_without_a_choice_is_refused(
    run: Run, tmp_path: Path, making: list[str], more: list[str], word: str
) -> None:
    refused(run("init", "--store", tmp_path / "store", *making[:4], *more, "--probe", 1), 2, word)
