"""Facts taken back from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result

from tests.cli.conftest import fact_line

Run = Callable[..., Result]


def data(result: Result) -> Any:
    """The JSON on stdout of a command that succeeded."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_retract(run: Run, store: Path) -> None:
    live = data(run("facts", "--store", store, "--json"))
    digests = [fact["digest"] for fact in live]
    result = run("retract", digests[0][:12], digests[3], "--store", store, "--reason", "source withdrawn")
    assert result.exit_code == 0, result.output
    rows = result.stdout.splitlines()
    assert [row.split()[:2] for row in rows[1:]] == [["retracted", digests[0][:12]], ["retracted", digests[3][:12]]]
    assert "retracted: " in result.stderr and " of 2 facts answered as by the base model" in result.stderr
    assert "pass 1 over 4 facts" in result.stderr
    status = data(run("status", "--store", store, "--json"))
    assert (status["head"], status["live_facts"], status["retracted"]) == (4, 4, 2)
    last = data(run("log", "--store", store, "--json"))[-1]
    assert (last["kind"], last["how"], last["superseded"], last["reason"]) == (
        "retract",
        "canonical",
        2,
        "source withdrawn",
    )
    assert run("show", 4, "--store", store).stdout.count("retracted") >= 2
    gone = data(run("facts", "--store", store, "--state", "retracted", "--json"))
    assert {fact["digest"] for fact in gone} == {digests[0], digests[3]}
    assert data(run("rollback", 3, "--store", store, "--json"))["kind"] == "rollback"
    assert data(run("status", "--store", store, "--json"))["retracted"] == 0


def test_retract_as_json(run: Run, store: Path) -> None:
    digest = data(run("facts", "--store", store, "--json"))[0]["digest"]
    found = data(run("retract", digest, "--store", store, "--json"))
    assert (found["kind"], found["retracted"], found["revived"]) == ("retract", [digest], [])
    assert found["report"]["as_base"]["retracted"]["asked"] == 1


def test_retract_by_the_id_of_a_record(run: Run, making: list[str], tmp_path: Path) -> None:
    news, store = tmp_path / "news.jsonl", tmp_path / "store"
    lines = [json.loads(fact_line(n)) | {"id": f"news-{n}"} for n in range(3)]
    news.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run("stream", news, "--store", store, *making).exit_code == 0
    refused = run("retract", "--id", "news-1", "--id", "news-9", "--store", store)
    assert (refused.exit_code, "found --id 'news-9'" in refused.stderr) == (2, True)
    assert len(data(run("facts", "--store", store, "--json"))) == 3
    digest = next(f["digest"] for f in data(run("facts", "--store", store, "--json")) if f["id"] == "news-1")
    assert data(run("retract", "--id", "news-1", "--store", store, "--json"))["retracted"] == [digest]
    proof = data(run("prove", "--id", "news-1", "--store", store, "--json"))
    assert (proof["verdict"], run("prove", "--store", store).exit_code) == ("equal", 2)
    again = run("retract", "--id", "news-1", "--store", store)
    assert (again.exit_code, "whose fact is in force" in again.stderr) == (2, True)


def test_names_that_fit_no_fact(run: Run, store: Path) -> None:
    result = run("retract", "zzzz", "--store", store)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: 'zzzz' names no fact in force or superseded; expected the digest of one")
    assert run("retract", "--store", store).exit_code == 2
    assert data(run("status", "--store", store, "--json"))["head"] == 3


def test_retract_and_purge(run: Run, store: Path) -> None:
    first, second = [(fact["digest"], fact["prompt"]) for fact in data(run("facts", "--store", store, "--json"))[:2]]
    data(run("tag", "audit", "3", "--store", store, "--json"))
    refused = run("retract", first[0], "--purge", "--store", store)
    assert (refused.exit_code, "at which audit stands" in refused.stderr) == (2, True)
    assert data(run("status", "--store", store, "--json"))["head"] == 4, "and nothing was solved for"
    data(run("tag", "audit", "--delete", "--store", store, "--json"))

    gone = data(run("retract", first[0], "--purge", "--store", store, "--reason", "asked for", "--json"))
    assert (gone["step"], gone["purged"]["step"], gone["purged"]["facts"]) == (6, 7, [first[0]])
    assert gone["purged"]["out_of_reach"] == [1, 2, 3]
    assert first[1].encode() not in (store / "data.mdb").read_bytes()
    assert second[1].encode() in (store / "data.mdb").read_bytes()
    assert run("fsck", "--store", store).exit_code == 0
    last = data(run("log", "--store", store, "--json"))[-1]
    assert (last["kind"], last["how"], last["reason"]) == ("purge", "1 facts dropped, 3 states", "asked for")
    assert "(purged)" in run("show", 1, "--store", store).stdout
    assert run("rollback", 2, "--store", store).exit_code == 2

    assert run("purge", second[0][:8], "--store", store).exit_code == 2, "it is in force"
    run("retract", second[0], "--store", store)
    table = run("purge", second[0][:8], "--store", store)
    assert (table.exit_code, second[0][:12] in table.stdout) == (0, True)
    assert run("ask", second[1], "--store", store).exit_code == 0


def test_what_comes_again_is_told(run: Run, store: Path, news: Path, tmp_path: Path) -> None:
    first, second = [(fact["digest"], fact["prompt"]) for fact in data(run("facts", "--store", store, "--json"))[:2]]
    data(run("retract", first[0], "--store", store, "--reason", "source withdrawn", "--json"))
    data(run("retract", second[0], "--purge", "--store", store, "--json"))
    other = tmp_path / "other.jsonl"
    other.write_text("".join(news.read_text().splitlines(keepends=True)[:2]) + fact_line(9) + "\n")
    result = run("stream", other, "--store", store)
    assert result.exit_code == 0, result.output
    assert "skipped: 1 retracted, 1 purged" in result.stderr and "1 fact in 1 step" in result.stderr
    told = f"({first[0][:12]}) was retracted at step 4: source withdrawn; --again teaches it anyway"
    assert f"{first[1]} → Paris {told}" in result.stderr
    assert f"the fact ({second[0][:12]}) was purged at step 6; --again teaches it anyway" in result.stderr
    assert second[1] not in result.stderr, "what is to leave no trace is not repeated"
    found = data(run("stream", other, "--store", store, "--json"))["batches"][0]
    assert [(skip["reason"], skip["by"]) for skip in found["turned_down"]] == [("retracted", 4), ("purged", 6)]
    assert data(run("stream", other, "--store", store, "--again", "--json"))["summary"]["facts"] == 2


def test_a_retraction_is_proved_on_a_page(run: Run, store: Path, tmp_path: Path) -> None:
    digest = data(run("facts", "--store", store, "--json"))[0]["digest"]
    nowhere = run("retract", digest, "--store", store, "--prove", tmp_path / "no" / "proof.md")
    assert nowhere.exit_code == 2 and "expected a file in a folder that exists" in nowhere.stderr
    assert data(run("status", "--store", store, "--json"))["retracted"] == 0
    page = tmp_path / "proof.md"
    result = run("retract", digest, "--store", store, "--prove", page, "--reason", "a person asked for it")
    assert result.exit_code == 0 and f"the proof is in {page}" in result.stderr, result.output
    written = json.loads((tmp_path / "proof.md.json").read_text())
    assert "# Proof of a retraction: EQUAL" in page.read_text() and written["verdict"] == "equal"
    assert written["retraction"]["reason"] == "a person asked for it" and written["facts"] == [digest]
    again = data(run("prove", digest[:12], "--store", store, "--json", "--keep", tmp_path / "made"))
    assert again["digests"] == written["digests"]
    last = data(run("log", "--store", tmp_path / "made", "--json"))[-1]
    assert last["kind"] == "retract" and data(run("facts", "--store", tmp_path / "made", "--json"))
    assert run("prove", "ffffffff", "--store", store).exit_code == 2
    assert "# Proof of a retraction" in run("prove", digest, "--store", store).stdout
