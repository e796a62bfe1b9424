"""A file that has grown is known again, and no other file is taken for it; a followed file is read line by line."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.facts import Record, follow_facts, read_facts
from lifelong_edit.facts.growing import Content, Span


def line(number: int) -> bytes:
    return json.dumps({"subject": f"S{number}", "prompt": f"S{number} is", "target": "x"}).encode()


class Store:
    """What a store has consumed: the numbers of records by the digest of their file."""

    def __init__(self) -> None:
        self.places: dict[str, set[int]] = defaultdict(set)

    def known(self, digest: str) -> set[int]:
        return self.places.get(digest, set())

    def holds(self, record: Record) -> bool:
        return any(number in self.known(digest) for digest, number in record.places)

    def consume(self, record: Record) -> None:
        self.places[record.file_digest].add(record.number)


LINES = st.lists(
    st.one_of(st.integers(0, 5).map(line), st.sampled_from([b"", b"  ", b"{bad", b"[]", b"\xff", line(7) + b"  "])),
    max_size=8,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LINES, st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.lists(st.integers(0, 400), max_size=5), st.data())
def test_each_record_is_new_once_however_the_file_grew(
    tmp_path: Path, lines: list[bytes], end: bytes, ended: bool, cuts: list[int], data: st.DataObject
) -> None:
    """Cut anywhere, in the middle of lines and of line ends too; each run is cut off after any number of records."""
    whole = end.join(lines) + (end if ended else b"")
    path, store, news = tmp_path / "a.jsonl", Store(), []
    for size in [*sorted(min(cut, len(whole)) for cut in cuts), len(whole)]:
        path.write_bytes(whole[:size])
        found = [r for r in read_facts([str(path)], skip_bad=True, known=store.known) if not store.holds(r)]
        done = found if size == len(whole) else found[: data.draw(st.integers(0, len(found)))]
        for record in done:
            store.consume(record)
        news += [(record.number, record.fact.digest) for record in done]
    assert news == [(r.number, r.fact.digest) for r in read_facts([str(path)], skip_bad=True)]


def test_places_of_earlier_releases_hold(tmp_path: Path) -> None:
    """They hold the digest of all bytes, those of a torn last line and of blanks at the end included."""
    for tail in (b"\n", b"", b"\n{torn", b"  "):
        content = line(0) + b"\n" + line(1) + tail
        store, path = Store(), tmp_path / "a.jsonl"
        store.places[hashlib.blake2b(content, digest_size=16).hexdigest()] = {0, 1}
        path.write_bytes(content)
        assert all(store.holds(r) for r in read_facts([str(path)], skip_bad=True, known=store.known))
    path.write_bytes(line(0) + b"\n" + line(1) + b"\n" + line(2))
    store.places = defaultdict(set, {digest_of(line(0) + b"\n" + line(1) + b"\n"): {0, 1}})
    assert [store.holds(r) for r in read_facts([str(path)], known=store.known)] == [True, True, False]


def digest_of(data: bytes) -> str:
    content = Content()
    content.take(io.BytesIO(data))
    return content.digest


def test_another_file_with_the_same_first_line_is_another(tmp_path: Path) -> None:
    store, path = Store(), tmp_path / "a.jsonl"
    path.write_bytes(line(0) + b"\n" + line(1) + b"\n")
    for record in read_facts([str(path)]):
        store.consume(record)
    path.write_bytes(line(0) + b"\n" + line(2) + b"\n")
    assert not any(store.holds(r) for r in read_facts([str(path)], known=store.known))


def test_gzip_is_read_as_what_was_compressed(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_bytes(line(0) + b"\n" + line(1) + b"\n")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert [r.places for r in read_facts([str(packed)])] == [r.places for r in read_facts([str(plain)])]
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(BadInputError, match=r"a\.jsonl\.gz:1: found a gzip file that cannot be read"):
        list(read_facts([str(packed)]))
    assert list(read_facts([str(packed)], skip_bad=True)) == []


def test_what_is_appended_while_a_file_is_read_is_for_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(line(0) + b"\n" + line(1) + b"\n")
    found = []
    for record in read_facts([str(path)]):
        found.append(record.number)
        with path.open("ab") as stream:
            stream.write(line(9) + b"\n")
    assert found == [0, 1]


def test_a_span_ends_where_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one\ntwo\nthree\n")
    with path.open("rb") as stream:
        span = Span(stream, 4, 10)
        assert (span.readline(99), span.readline(99), span.readline(99)) == (b"two\n", b"th", b"")
        assert (span.seek(0), span.read(99)) == (0, b"two\nth")


class Following:
    """A file that is followed; `take` gives what has come until nothing more does."""

    def __init__(self, *paths: Path, store: Store | None = None) -> None:
        self.told: list[str] = []
        self.stop = False
        known = None if store is None else store.known
        self._found: Iterator[Record | None] = follow_facts(
            [str(path) for path in paths],
            idle=0,
            stopped=lambda: self.stop,
            known=known,
            skip_bad=True,
            say=self.told.append,
        )

    def take(self) -> list[Record]:
        found = []
        while (record := next(self._found)) is not None:
            found.append(record)
        return found


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as stream:
        stream.write(data)


def test_a_line_counts_when_its_newline_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(line(0) + b"\n\n" + line(1))
    followed = Following(path)
    assert [r.fact.subject for r in followed.take()] == ["S0"]
    append(path, b"\n" + line(2)[:9])
    assert [(r.fact.subject, r.line, r.number) for r in followed.take()] == [("S1", 3, 1)]
    append(path, line(2)[9:] + b"\n" + line(3) + b"\n")
    found = followed.take()
    assert [(r.fact.subject, r.line, r.number) for r in found] == [("S2", 4, 2), ("S3", 5, 3)]
    assert {r.file_digest for r in found} == {next(iter(read_facts([str(path)]))).file_digest}
    followed.stop = True
    append(path, line(4) + b"\n")
    assert list(followed._found) == []


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 6), st.lists(st.integers(0, 400), max_size=5), st.data())
def test_following_stopped_and_begun_again_gives_each_record_once(
    tmp_path: Path, count: int, cuts: list[int], data: st.DataObject
) -> None:
    whole = b"".join(line(number) + b"\n" for number in range(count))
    path, store, news = tmp_path / "f.jsonl", Store(), []
    path.write_bytes(b"")
    followed = Following(path, store=store)
    for size in [*sorted(min(cut, len(whole)) for cut in cuts), len(whole)]:
        come = path.read_bytes().count(b"\n") < whole[:size].count(b"\n")
        append(path, whole[path.stat().st_size : size])
        if data.draw(st.booleans()):
            followed, come = Following(path, store=store), b"\n" in whole[:size]
        for record in followed.take() if come else ():
            if not store.holds(record):
                news.append(record.fact.subject)
                store.consume(record)
    assert news == [f"S{number}" for number in range(count)]


def test_a_replaced_or_shortened_file_is_told_and_read_from_its_beginning(tmp_path: Path) -> None:
    path, store = tmp_path / "a.jsonl", Store()
    path.write_bytes(line(0) + b"\n" + line(1) + b"\n")
    followed = Following(path, store=store)
    for record in followed.take():
        store.consume(record)
    new = tmp_path / "new"  # as an editor saves: what was there, and more, under the same name
    new.write_bytes(path.read_bytes() + line(2) + b"\n")
    new.rename(path)
    assert followed.take() == []  # what came before is to be done with
    assert [(r.fact.subject, store.holds(r)) for r in followed.take()] == [("S0", True), ("S1", True), ("S2", False)]
    path.write_bytes(line(3) + b"\n")
    assert followed.take() == []
    assert [(r.fact.subject, r.line, store.holds(r)) for r in followed.take()] == [("S3", 1, False)]
    path.write_bytes(line(4) + b"\n" + line(5) + b"\n")
    assert followed.take() == []
    assert [r.fact.subject for r in followed.take()] == ["S4", "S5"]
    assert [told.split(":")[0].removeprefix(f"{path} ") for told in followed.told] == [
        "was replaced",
        "is shorter than what was read of it",
        "was written anew",
    ]


def test_a_file_that_is_gone_is_waited_for(tmp_path: Path) -> None:
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for file, number in ((path, 0), (other, 1)):
        file.write_bytes(line(number) + b"\n")
    followed = Following(path, other)
    assert [r.fact.subject for r in followed.take()] == ["S0", "S1"]
    path.rename(tmp_path / "a.1")
    append(other, line(2) + b"\n")
    assert [r.fact.subject for r in followed.take()] == ["S2"]
    assert "waiting for it" in followed.told[0]
    path.write_bytes(line(3) + b"\n")
    assert followed.take() == []
    assert [r.fact.subject for r in followed.take()] == ["S3"]
    assert len(followed.told) == 2


def test_a_bad_line_is_told_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(line(0) + b"\n")
    file = Following(path)
    assert len(file.take()) == 1
    append(path, b"{broken\n" + line(1) + b"\n")
    assert len(file.take()) == 1
    (told,) = file.told
    assert f"left out: {path}:2: found broken JSON" in told


def test_what_cannot_grow_is_refused(tmp_path: Path) -> None:
    for sources in (["-"], ["hf:some/data"]):
        with pytest.raises(UsageError, match="--follow"):
            next(follow_facts(sources, idle=1, stopped=lambda: False))
    for name, content in (("a.json", b"[" + line(0) + b"]"), ("a.gz", gzip.compress(line(0)))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInputError, match=f"{name}:1: found a .*expected one record per line"):
            next(follow_facts([str(tmp_path / name)], idle=1, stopped=lambda: False))
