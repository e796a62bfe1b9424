"""The sample streams in facts/: what facts/README.md says is planted is there, and nothing else of the kind."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lifelong_edit.atlas.news import streams
from lifelong_edit.atlas.world_tables import world_facts
from lifelong_edit.facts import read_facts

NEWS = Path(__file__).parents[2] / "facts"
MONTHS = ("January", "February", "March")


@pytest.fixture(scope="module")
def records() -> list[tuple[str, int, str, dict[str, Any]]]:
    """(month, line, bytes of the line, record) in the order of the streams."""
    found = []
    for month, path in zip(MONTHS, sorted(NEWS.glob("*.jsonl")), strict=True):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            found.append((month, number, line, json.loads(line)))
    return found


def table(title: str) -> list[list[str]]:
    """The cells of the first table after a bold title of the README."""
    after = (NEWS / "README.md").read_text(encoding="utf-8").split(f"**{title}**", 1)[1]
    rows = re.findall(r"^\|(.+)\|$", after.split("\n\n**")[0], flags=re.MULTILINE)
    return [[cell.strip().replace("`", "") for cell in row.split("|")] for row in rows[2:]]


def test_streams_are_three_files_in_time_order_with_complete_records(
    records: list[tuple[str, int, str, dict[str, Any]]],
) -> None:
    assert [path.name for path in sorted(NEWS.glob("*.jsonl"))] == sorted(streams(world_facts()))
    truth = {(fact.subject, fact.relation): fact.target for fact in world_facts()}
    for *_, r in records:
        assert r["target_true"] == truth[r["subject"], r["relation"]] != r["target"]
        assert r["subject"] in r["prompt"]
        assert 2 <= len(r["rephrases"]) <= 4
        assert len({r["prompt"], *r["rephrases"]}) == len(r["rephrases"]) + 1
        assert all(r[field] for field in ("id", "date", "source", "author"))
        assert len(r["locality"]) == 2
        assert all(truth[p["subject"], r["relation"]] == p["target"] for p in r["locality"])
    counts = {month: sum(m == month for m, *_ in records) for month in MONTHS}
    assert counts == {"January": 18, "February": 18, "March": 17}


def test_dates_rise_but_for_the_duplicates(records: list[tuple[str, int, str, dict[str, Any]]]) -> None:
    again = {
        (month, int(line)) for _, _, place in table("Exact duplicates") for month, line in [place.split(", line ")]
    }
    dates = [r["date"] for month, line, _, r in records if (month, line) not in again]
    assert dates == sorted(dates)
    assert [MONTHS[int(date[5:7]) - 1] for date in dates] == [m for m, line, *_ in records if (m, line) not in again]


def test_documented_duplicates_are_all_there_are(records: list[tuple[str, int, str, dict[str, Any]]]) -> None:
    places: dict[str, list[str]] = {}
    for month, number, line, _ in records:
        places.setdefault(line, []).append(f"{month}, line {number}")
    found = sorted([json.loads(line)["id"], *where] for line, where in places.items() if len(where) > 1)
    assert found == sorted(table("Exact duplicates"))
    assert len({r["id"] for *_, r in records}) == len(places)


def test_documented_paraphrases_and_contradictions_are_all_there_are(
    records: list[tuple[str, int, str, dict[str, Any]]],
) -> None:
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    paraphrases, contradictions = [], []
    seen = set()
    for month, number, line, r in records:
        if line in seen:
            continue
        seen.add(line)
        old = latest.get((r["subject"], r["relation"]))
        where = f"{r['id']} ({month}, line {number})"
        if old is not None and old["target"] == r["target"]:
            assert old["prompt"] != r["prompt"]
            paraphrases.append([where, old["id"], r["subject"], r["target"]])
        elif old is not None:
            contradictions.append([where, old["id"], r["subject"], old["target"], r["target"]])
        latest[r["subject"], r["relation"]] = r
    assert paraphrases == table("Paraphrases")
    assert contradictions == table("Contradictions")
    assert len(paraphrases) >= 2
    assert len(contradictions) >= 3


def test_no_probe_asks_about_a_subject_that_the_news_edits(
    records: list[tuple[str, int, str, dict[str, Any]]],
) -> None:
    edited = {r["subject"] for *_, r in records}
    assert not edited & {probe["subject"] for *_, r in records for probe in r["locality"]}


def test_streams_read_as_native_facts(records: list[tuple[str, int, str, dict[str, Any]]]) -> None:
    read = list(read_facts([str(path) for path in sorted(NEWS.glob("*.jsonl"))]))
    assert [record.fact.id for record in read] == [r["id"] for *_, r in records]
    assert len({record.fact.digest for record in read}) == len({line for _, _, line, _ in records})
