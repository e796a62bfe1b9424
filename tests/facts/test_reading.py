"""Readers: every shape, every source, and every way in which input can be bad."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.facts import Fact, Probe, ReadReport, Skip, can_read_twice, read_facts, read_prompts
from lifelong_edit.facts.decoding import MAX_RECORD_BYTES, read_elements

GOOD = '{"subject": "France", "prompt": "The capital of France is", "target": "Lyon"}'
FACT = Fact(subject="France", prompt="The capital of France is", target="Lyon")

BAD_LINES = {
    "cut_off": (GOOD[:-20].encode(), "torn last record"),
    "bad_utf8": (GOOD.replace("Lyon", "Ly\xf6n").encode("latin-1") + b"\n", "bad UTF-8"),
    "bad_utf8_outside_text": (b"\xff" + GOOD.encode() + b"\n", "not UTF-8"),
    "utf16": (GOOD.encode("utf-16-le") + b"\n", "NUL byte"),
    "lone_surrogate": (GOOD.replace("Lyon", "\\ud800").encode() + b"\n", "lone surrogate"),
    "duplicate_key": (GOOD.replace('"target"', '"prompt": "x", "target"').encode() + b"\n", "'prompt' twice"),
    "duplicate_key_below": (
        GOOD.replace("}", ', "locality": [{"prompt": "a", "prompt": "b"}]}').encode() + b"\n",
        "'prompt' twice",
    ),
    "escaped_nul": (GOOD.replace("Lyon", "\\u0000").encode() + b"\n", "NUL character"),
    "raw_nul": (GOOD.replace("Lyon", "\x00").encode() + b"\n", "NUL byte"),
    "nested": (GOOD.replace('"Lyon"', "[" * 40 + "]" * 40).encode() + b"\n", "nested deeper than 16"),
    "nested_beyond_the_stack": (GOOD.replace('"Lyon"', "[" * 100_000).encode() + b"\n", "nested deeper than 16"),
    "infinite": (GOOD.replace('"Lyon"', "1e999").encode() + b"\n", "number 1e999"),
    "nan": (GOOD.replace('"Lyon"', "NaN").encode() + b"\n", "number NaN"),
    "endless_integer": (GOOD.replace('"Lyon"', "9" * 5000).encode() + b"\n", "broken JSON"),
    "huge": (GOOD.replace("Lyon", "x" * MAX_RECORD_BYTES).encode() + b"\n", "longer than 1048576 bytes"),
    "no_json": (b"The capital of France is Lyon\n", "broken JSON"),
    "number": (b"17\n", "found a number, expected a JSON object"),
    "fraction": (b"1.5\n", "found a number, expected a JSON object"),
    "truth": (b"true\n", "found true or false, expected a JSON object"),
    "text": (b'"17"\n', "found text, expected a JSON object"),
    "unknown_shape": (b'{"ask": "?", "answer": "!"}\n', "the keys 'ask', 'answer'"),
    "one_unknown_key": (b'{"question": "?"}\n', "with the key 'question', expected"),
    "empty_object": (b"{}\n", "a record with no keys, expected"),
    "unknown_field": (GOOD.replace("}", ', "targe": "x"}').encode() + b"\n", "unknown field `targe`"),
    "missing_subject": (b'{"prompt": "{} is in", "target": "Asia"}\n', "without a subject"),
    "null_for_target_new": (b'{"prompt": "a", "target_new": null, "src": "x"}\n', "the keys 'prompt'"),
    "blank_target": (GOOD.replace("Lyon", " \\t").encode() + b"\n", "blank `target`"),
    "blank_subject": (GOOD.replace('"France"', '""').encode() + b"\n", "blank `subject`"),
    "blank_rephrase": (GOOD.replace("}", ', "rephrases": [""]}').encode() + b"\n", "a blank text in its `rephrases`"),
    "blank_probe": (GOOD.replace("}", ', "locality": [{"prompt": " "}]}').encode() + b"\n", "blank `prompt`"),
    "number_for_text": (GOOD.replace('"Lyon"', "17").encode() + b"\n", "Expected `str`, got `int`"),
    "null_for_text": (GOOD.replace('"Lyon"', "null").encode() + b"\n", "with the keys 'subject', 'prompt', 'target'"),
    "text_for_list": (GOOD.replace("}", ', "rephrases": "a"}').encode() + b"\n", "Expected `array`, got `str`"),
    "bad_date": (GOOD.replace("}", ', "date": "last week"}').encode() + b"\n", "ISO 8601"),
    "fever_label": (b'{"claim": "Grass is red.", "label": "MAYBE"}\n', "the label 'MAYBE'"),
    "fever_blank": (b'{"claim": " ", "label": "REFUTES"}\n', "blank `prompt`"),
    "counterfact_blank": (b'{"prompt": "a", "target_new": " ", "subject": "b"}\n', "blank `target`"),
    "zsre_wrong_type": (b'{"subject": "a", "src": "b?", "alt": "c", "answers": 5}\n', "found 5 (int) as `answers`"),
}


def write(path: Path, *lines: bytes) -> str:
    path.write_bytes(b"".join(lines))
    return str(path)


def facts_of(*sources: str, **options: Any) -> list[Fact]:
    return [record.fact for record in read_facts(sources, **options)]


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_line_is_named_or_skipped_with_a_count(tmp_path: Path, name: str) -> None:
    line, reason = BAD_LINES[name]
    path = write(tmp_path / "news.jsonl", GOOD.encode() + b"\n", line)
    with pytest.raises(BadInputError, match=f"^{re.escape(path)}:2: found .*expected .*; ") as caught:
        facts_of(path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3
    report = ReadReport()
    after = write(tmp_path / "after.jsonl", GOOD.encode() + b"\n", line, b"" if name == "cut_off" else GOOD.encode())
    assert facts_of(after, skip_bad=True, report=report) == [FACT] * (1 if name == "cut_off" else 2)
    assert report.bad == 1
    assert report.skipped_bad[0].startswith(f"{after}:2: found")


@pytest.mark.parametrize("name", sorted(set(BAD_LINES) - {"cut_off", "no_json", "bad_utf8_outside_text", "utf16"}))
def test_bad_element_is_named(tmp_path: Path, name: str) -> None:
    line, _ = BAD_LINES[name]
    path = write(tmp_path / "news.json", b"[\n", GOOD.encode(), b",\n", line, b",", GOOD.encode(), b"]")
    with pytest.raises(BadInputError, match=f"^{re.escape(path)}:3: found .*expected .*; "):
        facts_of(path)
    report = ReadReport()
    facts_of(path, skip_bad=True, report=report)
    assert report.bad == 1
    assert report.read in (1, 2)  # after a defect of the array itself nothing more can be told apart


@pytest.mark.parametrize("tail", [b"", b",", b", ]", b"}", b"]]", b', {"subject": "Fr', b" 17]", b"] x", b", tru"])
def test_broken_array_is_bad_after_its_sound_part(tmp_path: Path, tail: bytes) -> None:
    path = write(tmp_path / "news.json", b"\n[", GOOD.encode(), tail)
    with pytest.raises(BadInputError, match=r":2: "):
        facts_of(path)
    report = ReadReport()
    assert facts_of(path, skip_bad=True, report=report) == [FACT]
    assert report.bad == 1


def test_sound_variations_are_read(tmp_path: Path) -> None:
    padded = GOOD.replace("Lyon", " Lyon ").encode()
    crlf = write(tmp_path / "crlf.jsonl", GOOD.encode(), b"\r\n\r\n", padded, b"\r\n", GOOD.encode())
    array = write(tmp_path / "array.json", b" \r\n[", GOOD.encode(), b" , ", padded, b"\n]\n\n")
    assert facts_of(crlf) == [FACT] * 3
    assert [(r.line, r.number) for r in read_facts([crlf])] == [(1, 0), (3, 1), (4, 2)]
    assert facts_of(array) == [FACT] * 2
    for name, content in (("empty.jsonl", b""), ("blank.jsonl", b"\n \n"), ("none.json", b"[]")):
        assert facts_of(write(tmp_path / name, content)) == []


def test_byte_order_mark(tmp_path: Path) -> None:
    for name, content in (("bom.jsonl", GOOD.encode()), ("bom.json", b"[" + GOOD.encode() + b"]")):
        path = write(tmp_path / name, b"\xef\xbb\xbf", content)
        with pytest.raises(BadInputError, match=":1: found a byte order mark"):
            facts_of(path)
        assert facts_of(path, skip_bad=True) == [FACT]


def test_places_are_file_digest_and_number(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", GOOD.encode(), b"\nbad\n", GOOD.encode(), b"\n")
    same = write(tmp_path / "same.jsonl", Path(one).read_bytes())
    other = write(tmp_path / "other.jsonl", Path(one).read_bytes(), b"\n")
    places = [[(r.file_digest, r.number) for r in read_facts([p], skip_bad=True)] for p in (one, same, other)]
    assert [number for _, number in places[0]] == [0, 2]
    assert places[0] == places[1]
    assert places[0][0][0] != places[2][0][0]


def test_content_digest_is_that_of_the_content(tmp_path: Path) -> None:
    reordered = json.dumps(dict(reversed(json.loads(GOOD).items())))
    first, second, third = facts_of(
        write(tmp_path / "a.jsonl", f"{GOOD}\n{reordered}\n{GOOD.replace('Lyon', 'Nice')}".encode())
    )
    assert first.digest == second.digest == FACT.digest
    assert first.digest != third.digest
    # Stores hold these digests: a change here makes every kept store forget what it has consumed.
    assert FACT.digest == "e68afc6df0c743fa606137ffb63112ae"


def test_globs_directories_and_missing_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        write(tmp_path / name, GOOD.replace("Lyon", name[0]).encode())
    assert [f.target for f in facts_of(str(tmp_path / "*.jsonl"))] == ["a", "b"]
    assert can_read_twice([str(tmp_path / "*.jsonl")])
    assert not can_read_twice(["-"])
    with pytest.raises(UsageError, match="found the folder"):  # before the file in front of it is read
        next(iter(read_facts([str(tmp_path / "a.jsonl"), str(tmp_path)])))
    for wrong in (str(tmp_path / "*.csv"), str(tmp_path / "none.jsonl"), str(tmp_path)):
        with pytest.raises(UsageError, match="expected"):
            facts_of(wrong)
    with pytest.raises(UsageError, match="pass"):
        list(read_facts("news.jsonl"))


def test_standard_input_and_pipes(tmp_path: Path) -> None:
    program = (
        "import sys; from lifelong_edit.facts import read_facts; "
        "print(*(r.file_digest for r in read_facts(sys.argv[1:])))"
    )
    path = write(tmp_path / "a.jsonl", GOOD.encode(), b"\n", GOOD.encode())
    digest = next(iter(read_facts([path]))).file_digest
    run = [sys.executable, "-c", program]
    out = subprocess.run([*run, "-"], input=Path(path).read_bytes(), capture_output=True, check=True)
    assert out.stdout.decode().split() == [digest] * 2
    piped = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "{program}" <(cat {path})'], capture_output=True, check=True
    )
    assert piped.stdout.decode().split() == [digest] * 2


@pytest.mark.filterwarnings("ignore")
def test_data_set_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = tmp_path / "rows"
    rows.mkdir()
    write(rows / "train.jsonl", GOOD.encode(), b"\n", GOOD.replace("}", ', "id": "x"}').encode(), b"\n")
    write(rows / "test.jsonl", GOOD.replace("Lyon", "Nice").encode(), b"\n")
    records = list(read_facts([f"hf:{rows}"]))
    assert [r.fact for r in records] == [FACT, Fact(subject=FACT.subject, prompt=FACT.prompt, target="Lyon", id="x")]
    assert [(r.line, r.number) for r in records] == [(1, 0), (2, 1)]
    assert records[0].file_digest == next(iter(read_facts([f"hf:{rows}:train"]))).file_digest
    (test,) = read_facts([f"hf:{rows}:test"])
    assert test.fact.target == "Nice"
    assert test.file_digest != records[0].file_digest
    for wrong in (f"hf:{rows}:nope", f"hf:{tmp_path}/absent"):
        with pytest.raises(UsageError, match="hf:"):
            facts_of(wrong)


def test_foreign_shapes(tmp_path: Path) -> None:
    original = {
        "case_id": 7,
        "requested_rewrite": {
            "prompt": "{} is in",
            "relation_id": "P17",
            "subject": "Lyon",
            "target_new": {"str": "Spain", "id": "Q29"},
            "target_true": {"str": "France", "id": "Q142"},
        },
        "paraphrase_prompts": ["Noise. Lyon lies in"],
        "neighborhood_prompts": ["Nice is in"],
        "attribute_prompts": [],
    }
    claim = {"id": 3, "claim": "Grass is red.", "label": "REFUTES"}
    proved = {**claim, "label": "SUPPORTS", "evidence": "Some grass is red."}
    path = write(tmp_path / "mixed.json", json.dumps([original, claim, proved]).encode())
    first, second, third = facts_of(path)
    assert first == Fact(
        subject="Lyon",
        prompt="Lyon is in",
        target="Spain",
        id="counterfact-7",
        relation="P17",
        target_true="France",
        counterfact_rephrase="Noise. Lyon lies in",
        locality=(Probe("Nice is in", "France"),),
    )
    assert (second.prompt, second.target) == (
        'Claim: "Grass is red." Question: Is this claim true or false? Answer:',
        "False",
    )
    assert third.prompt.startswith('Evidence: "Some grass is red." Claim: ')
    assert third.target == "True"


REAL = {
    "data/counterfact/counterfact-edit.json": (10_000, {}),
    "data/counterfact/counterfact-train.json": (10_000, {}),
    "data/zsre/zsre_mend_eval_portability_gpt4.json": (1_037, {}),
    "data/zsre/zsre_mend_train-1k.json": (998, {Skip.NO_TARGET: 2}),
    "data/fever/fever_labelled_dev.json": (13_332, {Skip.NOT_ENOUGH_INFO: 6_666}),
    "data/fever/fever_symmetric_dev.jsonl": (708, {}),
    "data/fever/fever_symmetric_test.jsonl": (712, {}),
    "data/hallucination/hallucination-edit.json": (600, {}),
    "data/hallucination/hallucination-train.json": (306, {}),
    "models/trex-gpt2-mini/facts_train.jsonl": (1_537, {}),
    "models/trex-gpt2-mini/facts_stream.jsonl": (2_000, {}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(shared: Path, name: str) -> None:
    read, skips = REAL[name]
    report = ReadReport()
    records = list(read_facts([str(shared / name)], report=report))
    assert (report.read, dict(report.skips), report.bad) == (read, skips, 0)
    assert [r.number for r in records] == sorted({r.number for r in records})
    text = (shared / name).read_text().splitlines()
    assert all("{" in text[r.line - 1] for r in records[::97])
    if "symmetric" in name:  # each claim stands there both true and false: only its evidence tells which
        assert len({r.fact.subject for r in records}) <= read // 2
        assert len({r.fact.prompt for r in records}) == len({(r.fact.prompt, r.fact.target) for r in records})


def test_arrays_are_read_in_bounded_memory(tmp_path: Path) -> None:
    """Taking 2,000 elements of a large array reads little more than their bytes."""
    path = write(tmp_path / "large.json", b"[", (GOOD.encode() + b",\n") * 100_000, GOOD.encode(), b"]")
    with Path(path).open("rb") as stream:
        elements = read_elements(stream)
        for _ in range(2000):
            next(elements)
        assert stream.tell() < 2000 * (len(GOOD) + 2) + (1 << 17)


def test_prompts_to_preserve(tmp_path: Path) -> None:
    lines = write(tmp_path / "prompts.txt", "The capital of Perú is\n\n  Water boils at\n".encode())
    records = write(
        tmp_path / "p.jsonl", b'{"prompt": "Gold is"}\n{"prompt": "Tin is", "target": "a metal"}\n', GOOD.encode()
    )
    taught = write(tmp_path / "t.jsonl", GOOD.replace("}", ', "target_true": "Paris"}').encode())
    assert list(read_prompts([lines])) == [Probe("The capital of Perú is"), Probe("Water boils at")]
    assert [(p.prompt, p.target) for p in read_prompts([records])] == [
        ("Gold is", None),
        ("Tin is", "a metal"),
        ("The capital of France is", "Lyon"),
    ]
    assert list(read_prompts([taught])) == [Probe("The capital of France is", "Paris", "France")]
    again = '"rephrases": ["France is run from", "The capital of France is", "a", "b", "c"]'
    more = write(tmp_path / "m.jsonl", GOOD.replace("}", f", {again}}}").encode())
    assert [p.prompt for p in read_prompts([more])] == ["The capital of France is", "France is run from", "a", "b"]
    bad = write(tmp_path / "bad.txt", b"fine\n\xff\n")
    with pytest.raises(BadInputError, match=r"bad\.txt:2: "):
        list(read_prompts([bad]))
    blank = write(tmp_path / "blank.jsonl", b'{"prompt": " "}')
    with pytest.raises(BadInputError, match=r"blank\.jsonl:1: "):
        list(read_prompts([blank]))
    wrong = write(tmp_path / "wrong.jsonl", b'{"promt": "Gold is"}')
    with pytest.raises(BadInputError, match=r"wrong\.jsonl:1: .*'promt'.*of a prompt to preserve `prompt` alone"):
        list(read_prompts([wrong]))


FRAGMENTS = st.sampled_from(
    [
        GOOD.encode(),
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b"\n",
        b'"',
        b"\\",
        b"\x00",
        b"\xef\xbb\xbf",
        b"1e999",
        b"NaN",
        b"\xff",
    ]
)


@settings(max_examples=300, deadline=None)
@given(content=st.one_of(st.binary(max_size=200), st.lists(FRAGMENTS, max_size=12).map(b"".join)))
def test_any_bytes_give_facts_or_bad_input(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = write(tmp_path_factory.getbasetemp() / "any.jsonl", content)
    report = ReadReport()
    kept = facts_of(path, skip_bad=True, report=report)
    assert report.read == len(kept)
    try:
        assert facts_of(path) == kept
        assert report.bad == 0
    except BadInputError as error:
        assert report.bad > 0
        assert str(error) == report.skipped_bad[0]
