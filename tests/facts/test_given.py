"""Facts, prompts and texts from Python code: as strictly looked at as those of files, and told apart by their place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import msgspec
import numpy as np
import pandas as pd
import pytest

from lifelong_edit.errors import BadInputError, StoreDamagedError, UsageError
from lifelong_edit.facts import Fact, Probe, Record, read_facts
from lifelong_edit.facts.given import as_batch, as_digests, as_probes, as_texts
from lifelong_edit.facts.stored import decode_fact, doubt, encode_fact

SMALL: dict[str, Any] = {"subject": "France", "prompt": "The capital of France is", "target": "Lyon"}
FACT = Fact(**SMALL)
FULL = SMALL | {
    "id": "7", "relation": "capital", "rephrases": ["France has the capital"], "date": "2031-02", "source": "gazette",
    "locality": [{"prompt": "The capital of Spain is", "target": "Madrid"}],
    "portability": [{"prompt": "Lyon lies in"}],
    "target_true": "Paris", "counterfact_rephrase": "No. France has", "author": "me",
}  # fmt: skip
NAN = float("nan")

# field, value: what neither a file nor Python may bring, and what the sentence names.
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"source": NAN}, "`source`"),
    "number": ({"target": 5}, "`target`"),
    "number for a name": ({"author": 5.5}, "`author`"),
    "none": ({"target": None}, "`target`"),
    "truth": ({"relation": True}, "`relation`"),
    "bytes": ({"prompt": b"x"}, "`prompt`"),
    "blank": ({"subject": " \t"}, "`subject`"),
    "empty": ({"target": ""}, "`target`"),
    "nul": ({"prompt": "a\x00b"}, "NUL character in the `prompt`"),
    "surrogate": ({"target": "\ud800"}, "surrogate in the `target`"),
    "nul in an optional field": ({"source": "a\x00"}, "`source`"),
    "letters for phrasings": ({"rephrases": "Indonesia"}, "`rephrases`"),
    "no phrasings": ({"rephrases": None}, "`rephrases`"),
    "numbers for phrasings": ({"rephrases": ["x", 5]}, "`rephrases`"),
    "none among phrasings": ({"rephrases": ["x", None]}, "`rephrases`"),
    "blank phrasing": ({"rephrases": [" "]}, "`rephrases`"),
    "nul in a phrasing": ({"rephrases": ["\x00"]}, "`rephrases`"),
    "text for a probe": ({"locality": ["The capital of Spain is"]}, "`locality`"),
    "one probe": ({"locality": Probe("The capital of Spain is")}, "`locality`"),
    "probe with another field": ({"portability": [{"prompt": "x", "answer": "y"}]}, "`portability`"),
    "blank probe": ({"locality": [{"prompt": " "}]}, "`prompt`"),
    "number in a probe": ({"locality": [{"prompt": "x", "target": 5}]}, "`target` of a probe"),
    "date": ({"date": "last week"}, "`date`"),
    "number for a date": ({"date": 2031}, "`date`"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_file_may_not_hold_no_fact_is_made_of(name: str, tmp_path: Path) -> None:
    changes, told = BAD[name]
    with pytest.raises(BadInputError, match=r"^found .*expected ") as caught:
        Fact(**SMALL | changes)
    assert told in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(BadInputError, match=r"^found "):
        msgspec.structs.replace(FACT, **changes)
    if (
        name != "no phrasings"
        and not isinstance(changes.get("prompt"), bytes)
        and not isinstance(changes.get("locality"), Probe)
    ):
        (tmp_path / "bad.jsonl").write_text(json.dumps(SMALL | changes))
        with pytest.raises(BadInputError):
            list(read_facts([str(tmp_path / "bad.jsonl")]))


def test_a_fact_has_the_digest_that_its_record_has_whatever_holds_its_parts(tmp_path: Path) -> None:
    (tmp_path / "full.jsonl").write_text(json.dumps(FULL))
    (record,) = read_facts([str(tmp_path / "full.jsonl")])
    assert record.fact.digest == "b3a0829d0958943e54bbe6d3e33aa417"  # as the first release had it
    for given in (FULL, FULL | {"rephrases": tuple(FULL["rephrases"]), "locality": [Probe(**FULL["locality"][0])]}):
        made = Fact(**given)
        assert (made, made.digest) == (record.fact, record.fact.digest)
        assert isinstance(made.rephrases, tuple) and isinstance(made.locality, tuple)
    assert Fact(**SMALL, rephrases=[], locality=[]).digest == FACT.digest
    assert (
        Fact(**SMALL | {"target": np.str_("Lyon")}, rephrases=[np.str_("a")]).digest
        == Fact(**SMALL, rephrases=["a"]).digest
    )
    assert type(Fact(**SMALL | {"target": np.str_("Lyon")}).target) is str
    assert msgspec.structs.replace(FACT, target="Nice").target == "Nice"
    assert FACT.digest == "e68afc6df0c743fa606137ffb63112ae"


@pytest.mark.parametrize("value", [5, NAN, "", " ", "a\x00", None, ["x"]])
def test_a_probe_is_checked_too(value: Any) -> None:
    with pytest.raises(BadInputError, match="`prompt`"):
        Probe(value)
    if value not in ("", " ", None):
        with pytest.raises(BadInputError, match="`relation`"):
            Probe("x", relation=value)


# -- batches


def frame(**columns: list[Any]) -> pd.DataFrame:
    return pd.DataFrame({name: [value, value] for name, value in SMALL.items()} | columns)


def test_a_batch_is_taken_in_all_the_forms_that_it_comes_in() -> None:
    record = Record(FACT, "a.jsonl", 1, "a" * 32, 0)
    other = Fact(**SMALL | {"subject": "Spain"})
    for given in (FACT, SMALL, [FACT], (SMALL,), iter([SMALL]), {"f": FACT}.values(), pd.DataFrame([SMALL])):
        assert as_batch(given) == [FACT]
    assert as_batch([record, SMALL, other]) == [record, FACT, other]
    assert as_batch([]) == as_batch(pd.DataFrame()) == []
    claim = {"claim": "Grass is red.", "label": "REFUTES", "id": 3}
    counterfact = {"prompt": "The capital of France is", "target_new": "Lyon", "subject": "France"}
    (one, two) = as_batch([claim, counterfact])
    assert isinstance(one, Fact) and (one.target, one.id, two) == ("False", "fever-3", FACT)
    assert as_batch([claim | {"label": "NOT ENOUGH INFO"}, SMALL]) == [FACT]
    assert as_batch([SMALL | {"id": 7}]) == as_batch([SMALL | {"id": np.int64(7)}]) == [Fact(**SMALL, id="7")]
    assert as_batch([SMALL | {"prompt": " The capital of France is "}]) == [FACT]


def test_a_record_that_comes_back_from_review_keeps_its_place_in_quarantine() -> None:
    (found,) = as_batch(SMALL | {"quarantined": {"fact": "f" * 32, "step": 3, "met": []}})
    assert isinstance(found, Record) and (found.fact, found.entry, found.places) == (FACT, "f" * 32, ())


def test_in_a_table_what_has_no_value_is_absent() -> None:
    full = {name: value for name, value in FULL.items() if name != "id"}
    rows = [full, SMALL]
    for marks in ([None], [NAN], [pd.NA], [pd.NaT], [np.float32("nan")]):
        table = pd.DataFrame([full, SMALL], dtype=object)
        table = table.where(table.notna(), marks[0])
        assert as_batch(table) == [Fact(**full), FACT]
    assert as_batch(pd.DataFrame(rows).to_dict("records")) == [Fact(**full), FACT]
    assert as_batch(datasets.Dataset.from_list(rows)) == [Fact(**full), FACT]
    dates = frame(date=[pd.Timestamp("2031-01-01"), pd.Timestamp("2031-01-01T12:30")])
    assert [fact.date for fact in as_batch(dates) if isinstance(fact, Fact)] == ["2031-01-01", "2031-01-01T12:30:00"]
    assert as_batch(frame(rephrases=[np.array(["a"], object), None])) == [Fact(**SMALL, rephrases=("a",)), FACT]


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        (5, UsageError, r"found 5 \(int\) as `batch`"),
        (None, UsageError, "found None"),
        ("news.jsonl", UsageError, "found 'news.jsonl'.*read_facts"),
        (Path("news.jsonl"), UsageError, "read_facts"),
        ([FACT, 5], BadInputError, r"^batch\[1\]: found 5 \(int\)"),
        (["Lyon"], BadInputError, r"^batch\[0\]: found 'Lyon' \(str\)"),
        ([Probe("x")], BadInputError, r"^batch\[0\]: found Probe"),
        ([SMALL, SMALL | {"target": 5}], BadInputError, r"^batch\[1\]: .*target.*dtype=str"),
        ([SMALL | {"target": NAN}], BadInputError, r"^batch\[0\]: .*without a value: 'target'"),
        ([SMALL | {"targe": "x"}], BadInputError, r"^batch\[0\]: .*unknown field `targe`"),
        ([SMALL | {"rephrases": "Indonesia"}], BadInputError, r"^batch\[0\]: .*rephrases"),
        ([{"a": "b"}], BadInputError, r"^batch\[0\]: found a record with the key 'a'"),
        ([{}], BadInputError, r"^batch\[0\]: found a record with no keys"),
        ([SMALL | {"target": "\ud800"}], BadInputError, r"^batch\[0\]: .*surrogate"),
        (frame(target=[1, 2]), BadInputError, r"^batch\[0\]: .*target.*dtype=str"),
        (frame(target=["Lyon", None]), BadInputError, r"^batch\[1\]: .*without a value: 'target'"),
        (frame(when=["a", "b"], targe=["c", "d"]), BadInputError, "^batch: found the columns 'when', 'targe', "),
        (frame().drop(columns="target"), BadInputError, r"^batch\[0\]: found a record with the keys"),
        (frame().T, BadInputError, r"^batch\[0\]: found a record with the keys '0', '1'"),
        (pd.concat([frame(), frame()[["target"]]], axis=1), BadInputError, "column 'target' twice"),
        (frame(date=["soon", None]), BadInputError, r"^batch\[0\]: .*date"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_list([SMALL])}), UsageError, "the splits train as"),
        ([Fact(**SMALL | {"prompt": "{} has the capital"})], BadInputError, r"^batch\[0\]: found {} in"),
        ([Record("x", "a", 1, "a", 0)], BadInputError, r"^batch\[0\]: found Record"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_is_no_batch_is_told_with_its_place(given: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told) as caught:
        as_batch(given)
    assert "expected" in str(caught.value)


def test_facts_are_named_by_digests_and_by_themselves() -> None:
    record = Record(FACT, "a.jsonl", 1, "a" * 32, 0)
    assert as_digests("abcd") == as_digests(["abcd"]) == ["abcd"]
    for given in (FACT, record, SMALL, [FACT], [record], [SMALL], pd.DataFrame([SMALL])):
        assert as_digests(given) == [FACT.digest]
    assert as_digests(iter(["abcd", FACT])) == ["abcd", FACT.digest]
    for bad in ([], pd.DataFrame()):
        with pytest.raises(UsageError, match="no fact was given"):
            as_digests(bad)
    for bad in (5, None, [5], [None]):
        with pytest.raises((UsageError, BadInputError), match=r"found (5|None)"):
            as_digests(bad)  # type: ignore[arg-type]


def test_prompts_and_texts_are_taken_as_files_hold_them() -> None:
    probe = Probe("The capital of Spain is", "Madrid")
    given = [probe, "The capital of Spain is", {"prompt": "x"}, FULL, Fact(**FULL)]
    own = [
        Probe("The capital of France is", "Paris", "France", "capital"),
        Probe("France has the capital", "Paris", "France", "capital"),
    ]
    assert as_probes(given) == [probe, Probe("The capital of Spain is"), Probe("x"), *own, *own]
    assert as_texts(("a", "b")) == ["a", "b"]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: as_probes("prompts.txt"), "found one text as `preserve`"),
        (lambda: as_probes([5]), r"^preserve\[0\]: found 5"),
        (lambda: as_probes(["x", " "]), r"^preserve\[1\]: found a probe with a blank `prompt`"),
        (lambda: as_probes([{"prompt": 5}]), r"^preserve\[0\]: found "),
        (lambda: as_probes([{"prompt": "x\x00"}]), r"^preserve\[0\]: found a NUL"),
        (lambda: as_probes(5), "found 5"),
        (lambda: as_texts("prose"), "found one text as `text`"),
        (lambda: as_texts([5]), r"^text\[0\]: found 5"),
        (lambda: as_texts(["a", "\ud800"]), r"^text\[1\]: .*surrogate"),
        (lambda: as_texts(5), "found 5"),
    ],
)
def test_what_is_no_prompt_or_text_is_told_with_its_place(call: Callable[[], object], told: str) -> None:
    with pytest.raises((UsageError, BadInputError), match=told):
        call()


# -- what a store keeps


def test_a_fact_is_kept_as_what_it_is_read_back_as() -> None:
    full = Fact(**FULL)
    kept = encode_fact(full)
    assert kept == msgspec.json.encode(full) and decode_fact(kept, full.digest) == full
    assert doubt(kept, full.digest) is None
    assert "another fact, of digest " + full.digest in str(doubt(kept, "0" * 32))


@pytest.mark.parametrize("field", ["digest", "source", "rephrases", "target"])
def test_what_would_be_read_back_as_another_fact_is_not_kept(field: str) -> None:
    """However it got round the checks."""
    fact = Fact(**SMALL)
    if field == "digest":
        vars(fact)["digest"] = "0" * 32
    else:
        msgspec.structs.force_setattr(fact, field, {"source": NAN, "rephrases": "abc", "target": "a\x00"}[field])
    with pytest.raises(BadInputError, match=f"cannot be kept as {fact.digest}"):
        encode_fact(fact)


OLD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nan": ({"source": None}, {}),
    "nul": ({"prompt": "a\x00b"}, {"prompt": "a\x00b"}),
    "number": ({"id": 5}, {"id": "5"}),
    "letters": ({"rephrases": "abc"}, {"rephrases": ("a", "b", "c")}),
    "blank phrasing": ({"rephrases": [" "]}, {"rephrases": (" ",)}),
    "date": ({"date": "last week"}, {}),
    "number in a probe": ({"locality": [{"prompt": "x", "target": 5}]}, {"locality": (("x", "5"),)}),
}


@pytest.mark.parametrize("name", OLD)
def test_what_an_earlier_release_kept_is_read_under_its_digest(name: str) -> None:
    """Such a record may be damage or not, which `fsck` says; the rest of its store has to stay within reach."""
    changes, expected = OLD[name]
    fact = decode_fact(json.dumps(SMALL | changes).encode(), "1" * 32)
    assert fact.digest == "1" * 32
    found = {name: value for name, value in msgspec.structs.asdict(fact).items() if value not in (None, ())}
    if "locality" in found:
        found["locality"] = tuple((probe.prompt, probe.target) for probe in found["locality"])
    assert found == SMALL | expected


def test_what_today_refuses_is_no_damage_if_it_reads_as_it_was_written() -> None:
    fact = Fact(**SMALL)
    msgspec.structs.force_setattr(fact, "prompt", "a\x00b")
    assert doubt(msgspec.json.encode(fact), fact.digest) is None


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"5", b"{}", b'{"subject": "a", "prompt": "b"}', b"\xff", b"[" * 9999]
)
def test_bytes_that_are_no_fact_are_damage(data: bytes) -> None:
    with pytest.raises(StoreDamagedError, match=f"record facts/{'1' * 32} is no fact"):
        decode_fact(data, "1" * 32)
    with pytest.raises(StoreDamagedError, match="is no fact"):
        doubt(data, "1" * 32)
