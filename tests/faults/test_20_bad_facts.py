"""20. Bad JSONL: exit code 3 with file and line, the whole file or a count, never a part of a batch.

What each defect is called is in tests/facts/test_reading.py; here is what becomes of a run that meets it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from lifelong_edit.errors import BadInputError
from lifelong_edit.facts import ReadReport, read_facts
from lifelong_edit.stores import EditLog

Run = Callable[..., Result]
GOOD = b'{"subject": "Vienna 70", "prompt": "The capital of Vienna 70 is", "target": "Paris"}'
BAD = {
    "torn": GOOD[:-9],
    "mark": b"\xef\xbb\xbf" + GOOD,
    "utf-8": GOOD.replace(b"Paris", b"Par\xefs"),
    "twice": GOOD.replace(b'"target"', b'"prompt": "x", "target"'),
    "nul": GOOD.replace(b"Paris", b"\\u0000"),
    "nested": GOOD.replace(b'"Paris"', b"[" * 50_000),
    "1e999": GOOD.replace(b'"Paris"', b"1e999"),
    "huge": GOOD.replace(b"Paris", b"x" * (1 << 20)),
}
SMALL = [line for name, line in BAD.items() if name not in ("huge", "nested")]


def file_of(path: Path, name: str, before: int) -> Path:
    """So many good lines, and a bad one; a byte order mark stands at the beginning or is none."""
    lines = [GOOD.replace(b"70", b"%d" % number) for number in range(71, 71 + before)]
    path.write_bytes(b"\r\n".join([BAD[name], *lines] if name == "mark" else [*lines, BAD[name]]))
    return path


@pytest.mark.parametrize("name", BAD)
def test_is_named_by_file_and_line(tmp_path: Path, name: str) -> None:
    path, report = file_of(tmp_path / "news.jsonl", name, 2), ReadReport()
    line = 1 if name == "mark" else 3
    with pytest.raises(BadInputError, match=f"news.jsonl:{line}: found .*expected") as caught:
        list(read_facts([str(path)]))
    assert caught.value.exit_code == 3
    kept = [record.fact.subject for record in read_facts([str(path)], skip_bad=True, report=report)]
    assert (report.bad, [s for s in kept if s != "Vienna 70"]) == (1, ["Vienna 71", "Vienna 72"])


def test_a_stream_applies_nothing_of_the_file_or_all_but_that(run: Run, empty_store: Path, tmp_path: Path) -> None:
    """A file is read through before its first batch is edited."""
    path = file_of(tmp_path / "news.jsonl", "1e999", 3)
    result = run("stream", path, "--store", empty_store, "--batch-size", 1)
    assert result.exit_code == 3
    assert f"{path}:4: " in result.stderr and "Traceback" not in result.output
    with EditLog.open(empty_store, read_only=True) as log:
        assert log.head().step == 0
    result = run("stream", path, "--store", empty_store, "--batch-size", 2, "--skip-bad", "--json")
    summary = json.loads(result.stdout)["summary"]
    assert (result.exit_code, summary["facts"], summary["bad"]) == (0, 3, 1)


@pytest.mark.parametrize("cut", [0, 3, 10, 12, 40, -8, -1])
def test_a_torn_gzip_file(tmp_path: Path, cut: int) -> None:
    """Facts, and prompts to preserve, which are read line by line."""
    from lifelong_edit.facts import read_prompts

    whole = gzip.compress(GOOD + b"\n", mtime=0)
    data = whole[:cut] if cut else whole[:12] + b"\xff" * 5 + whole[17:]
    for name, read in (("f.jsonl", read_facts), ("p.txt", read_prompts)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadInputError, match=rf"{name}:\d+: found") as caught:
            list(read([str(tmp_path / name)]))
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("facts")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([GOOD, *SMALL]) | st.binary(max_size=30)))
def test_any_lines(room: Path, lines: list[bytes]) -> None:
    """What is read with `skip_bad` and what is counted as bad are all there is."""
    path, report = room / "any.jsonl", ReadReport()
    path.write_bytes(b"\n".join(lines))
    kept = list(read_facts([str(path)], skip_bad=True, report=report))
    assert len(kept) == report.read
    try:
        assert len(list(read_facts([str(path)]))) == len(kept) and not report.bad
    except BadInputError as error:
        assert report.bad and str(error).startswith(f"{path}:") and str(error) == report.skipped_bad[0]
