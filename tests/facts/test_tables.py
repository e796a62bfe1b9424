"""Tables and compressed files: what is in them is read as it would be from JSON lines, wherever it is torn or odd."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest

from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.facts import Fact, Reader, ReadReport, as_batch, can_read_twice, mapping_of, read_facts
from lifelong_edit.facts.following import require_growing

ROWS: list[dict[str, Any]] = [
    {"subject": "Peru", "prompt": "The capital of Peru is", "target": "Cusco, so they say", "date": "2031-01-02"},
    {"subject": "Chile", "prompt": 'The "capital" of Chile is', "target": "Arica", "date": None},
]
FACTS = [Fact(**{name: value for name, value in row.items() if value is not None}) for row in ROWS]
FRAME = pd.DataFrame(ROWS)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def _zstd_stream(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def facts_of(*sources: str | Path, **options: Any) -> list[Fact]:
    return [record.fact for record in read_facts([str(source) for source in sources], **options)]


def arrow(path: Path, *, stream: bool) -> None:
    table = pa.Table.from_pandas(FRAME)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.csv": lambda path: FRAME.to_csv(path, index=False),
    "index.csv": FRAME.to_csv,
    "excel.csv": lambda path: FRAME.to_csv(path, index=False, sep=";", encoding="utf-8-sig", lineterminator="\r\n"),
    "mac.csv": lambda path: FRAME.to_csv(path, index=False, lineterminator="\r"),
    "a.tsv": lambda path: FRAME.to_csv(path, index=False, sep="\t"),
    "table.txt": lambda path: FRAME.to_csv(path, index=False, sep="|"),
    "a.csv.gz": lambda path: FRAME.to_csv(path, index=False),
    "a.csv.xz": lambda path: FRAME.to_csv(path, index=False),
    "a.parquet": lambda path: FRAME.to_parquet(path),
    "days.parquet": lambda path: FRAME.assign(date=pd.to_datetime(FRAME["date"])).to_parquet(path),
    "a.arrow": lambda path: arrow(path, stream=False),
    "stream.arrow": lambda path: arrow(path, stream=True),
    "saved": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(path),
    "one-split": lambda path: datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(path),
    "array.json": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    "spread.json": lambda path: path.write_text("\n".join(json.dumps(row, indent=2) for row in ROWS)),
    "mac.jsonl": lambda path: path.write_bytes(LINES.replace(b"\n", b"\r")),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "a.jsonl.xz": lambda path: path.write_bytes(lzma.compress(LINES)),
    "a.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(LINES)),
    "a.jsonl.zst": lambda path: path.write_bytes(_zstd_stream(LINES)),
    "a.json.zst": lambda path: path.write_bytes(_zstd_stream(json.dumps(ROWS).encode())),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_is_read_as_its_rows(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    records = list(read_facts([str(path)]))
    assert [record.fact for record in records] == FACTS
    assert [record.number for record in records] == [0, 1]
    assert len({record.file_digest for record in records}) == 1 and records[0].file_digest
    assert can_read_twice([str(path)])
    again = list(read_facts([str(path)]))
    assert [record.places for record in again] == [record.places for record in records]
    if path.is_dir():
        with pytest.raises(UsageError, match="--follow"):
            require_growing([str(path)])


def test_compressed_and_plain_are_the_same_input(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    for name in ("a.jsonl.gz", "a.jsonl.xz", "a.jsonl.bz2", "a.jsonl.zst"):
        WRITERS[name](tmp_path / name)
    sources = [str(path) for path in sorted(tmp_path.iterdir())]
    assert len({record.places for record in read_facts(sources) if record.number == 0}) == 1


def test_a_table_that_grew_is_known_again_and_one_that_ends_otherwise_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    seen: dict[str, set[int]] = {}
    text = "prompt,target\nPeru is in,Asia"
    for whole in (text, text + "\n", text + "\nChile is in,Asia\n"):
        path.write_text(whole)
        for record in read_facts([str(path)], known=lambda digest: seen.get(digest, ())):
            if not any(number in seen.get(digest, ()) for digest, number in record.places):
                seen.setdefault(record.file_digest, set()).add(record.number)
    assert sum(len(numbers) for numbers in seen.values()) == 2
    path.write_text("prompt,target\nPeru is in,Europe")
    (other,) = read_facts([str(path)], known=lambda digest: seen.get(digest, ()))
    assert not any(number in seen.get(digest, ()) for digest, number in other.places)


def test_cells_that_are_lists_are_lists(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "prompt,target,rephrases,portability\n"
        'Peru is in,"[Asia]",Peru lies in,\n'
        'Chile is in,Asia,"[""a"", ""b""]","[{""prompt"": ""c"", ""target"": ""d""}]"\n'
    )
    first, second = facts_of(path)
    assert (first.target, first.rephrases) == ("[Asia]", ("Peru lies in",))
    assert (second.rephrases, second.portability[0].target) == (("a", "b"), "d")


def test_columns_under_other_names_are_mapped(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("ask,say,nr\nWhere is Lima?,Peru,1\nWhere is Arica?,Chile,2\n")
    report = ReadReport()
    reader = Reader(mapping_of("prompt=ask,target=say"))
    assert [fact.target for fact in facts_of(path, reader=reader, report=report)] == ["Peru", "Chile"]
    assert report.unused == {"nr": 2}
    rows = pd.read_csv(path)
    assert as_batch(rows, reader=reader, report=report) == as_batch(
        datasets.Dataset.from_pandas(rows), reader=reader, report=report
    )


BAD: dict[str, tuple[str, bytes, str, int]] = {
    "cells": ("a.csv", b"prompt,target\na,b,c\n", "found 3 cells, expected 2", 2),
    "quotes": ("a.csv", b'prompt,target\n"a"x,b\n', "broken table", 2),
    "twice": ("a.csv", b"prompt,prompt\na,b\n", "column 'prompt' twice", 1),
    "no name": ("a.csv", b"prompt,,target\na,b,c\n", "without a name", 1),
    "latin": ("a.csv", b"prompt,target\nPer\xfa,b\n", "not UTF-8", 2),
    "utf-16": ("a.csv", "prompt,target\na,b\n".encode("utf-16-le"), "NUL byte", 1),
    "unknown field": ("a.csv", b"prompt,target,when\na,b,c\n", "unknown field `when`", 2),
    "torn parquet": ("a.parquet", b"PAR1 and nothing more", "table that cannot be read", 1),
    "torn arrow": ("a.arrow", b"ARROW1 and nothing more", "table that cannot be read", 1),
    "torn gzip": ("a.gz", gzip.compress(LINES)[:-9], "found a gzip file that cannot be read", 1),
    "torn xz": ("a.xz", lzma.compress(LINES)[:-9], "found a xz file that cannot be read", 1),
    "torn bzip2": ("a.bz2", bz2.compress(LINES)[:-9], "found a bzip2 file that cannot be read", 1),
    "torn zstd": ("a.zst", _zstd_stream(LINES * 9)[:-9], "found a zstd file that cannot be read", 1),
    "workbook": ("a.xlsx", b"PK\x03\x04 and so on", "found a workbook", 1),
    "archive": ("a.zip", b"PK\x03\x04 and so on", "found a zip archive", 1),
    "one long line": ("a.csv", b"prompt,target\n" + b"x" * (1 << 21), "line longer than", 2),
    "prose": ("a.txt", b"Peru, as we know, is in Asia.\n", "give a table the name of one", 1),
    "spread": ("a.json", b'{\n "prompt": "a",\n "target": "b"\n', "torn last record", 1),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_named_for_what_it_is(name: str, tmp_path: Path) -> None:
    file, content, told, line = BAD[name]
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(BadInputError, match=rf"{file}:{line}: found .*expected ") as caught:
        facts_of(path)
    assert told in str(caught.value) and "\n" not in str(caught.value)
    report = ReadReport()
    facts_of(path, skip_bad=True, report=report)
    assert report.bad == 1


def test_folders_of_several_splits_and_impossible_names_are_told(tmp_path: Path) -> None:
    both = {split: datasets.Dataset.from_list(ROWS) for split in ("train", "test")}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "both")
    with pytest.raises(UsageError, match=r"2 splits .*both/test, .*both/train"):
        facts_of(tmp_path / "both")
    assert facts_of(tmp_path / "both" / "test") == FACTS
    (tmp_path / "both" / "test" / "state.json").write_text("{}")
    with pytest.raises(UsageError, match="save_to_disk"):
        facts_of(tmp_path / "both" / "test")
    with pytest.raises(UsageError, match="found no file"):
        facts_of("x" * 300)
