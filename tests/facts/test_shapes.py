"""Every public shape is read whole: each field is used or named, and nothing else is left."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.facts import (
    MULTI_HOP,
    Fact,
    Probe,
    Reader,
    ReadReport,
    Skip,
    UnusedFieldsWarning,
    as_batch,
    mapping_of,
    read_facts,
    read_relations,
    relations_of,
)
from tests.facts.samples import SAMPLES, Sample

REPOSITORY = Path(__file__).resolve().parents[2]
RELATIONS = relations_of({"P17": ["{} is in", "[X] is located in [Y]."], "capital": "The capital of {subject} is"})
READER = Reader(relations=RELATIONS)


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for part in value.values():
            yield from texts_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from texts_in(part)
    elif isinstance(value, str) and value.strip():
        yield value.strip()


def at(value: Any, path: str) -> Iterator[Any]:
    """What stands at a path of unused fields."""
    name, _, rest = path.partition(".")
    bare, whole = name.removesuffix("[1:]").removesuffix("[]"), not name.endswith("[1:]")
    held = value.get(bare) if isinstance(value, dict) else None
    for part in held if isinstance(held, list) and name.endswith("[]") else [held]:
        if rest:
            yield from at(part, rest)
        elif whole:
            yield part
        else:
            yield part if isinstance(part, dict) else part[1:]


@pytest.mark.parametrize("name", SAMPLES)
def test_every_field_is_used_or_named(name: str) -> None:
    sample: Sample = SAMPLES[name]
    found = READER(sample.record)
    assert sorted(found.unused) == sorted(sample.unused)
    last = found.facts[-1]
    assert (len(found.facts), len(last.locality), len(last.portability)) == sample[2:]
    # Whatever text stands in the record stands in a fact, or at a path that is named.
    kept = json.dumps([fact.__struct_fields__ and str(fact) for fact in found.facts], ensure_ascii=False)
    named = [text for path in found.unused for part in at(sample.record, path) for text in texts_in(part)]
    skipped = {"system", "user", "assistant", "human", "gpt", "two_hop", "regular", "SUPPORTS", "REFUTES"}
    for text in set(texts_in(sample.record)) - set(named) - skipped:
        pieces = [piece for piece in text.rstrip(".").replace("{}", "|").split("|") if piece.strip()]
        told = [json.dumps(str(piece), ensure_ascii=False)[1:-1].strip() for piece in pieces]
        lost = [piece for piece in told if piece.replace("'", "\\'") not in kept and piece not in kept]
        assert not lost or text in ("31 January 2022", "The capital of Peru is Lima.") or _is_cut(text, last), text


def _is_cut(text: str, fact: Fact) -> bool:
    return f"{fact.prompt} {fact.target}" == text.rstrip(".")


def test_no_field_beside_those_that_a_shape_has_is_lost() -> None:
    """Dates, sources and the like are taken from every shape; what nobody knows is named, whatever the shape."""
    further = {"date": "2024-05", "source": "gazette", "author": "me", "colour": "red"}
    for name, sample in SAMPLES.items():
        if name in ("native", "FastEdit", "mzsRE", "WikiDYK"):
            continue
        found = READER(sample.record | further)
        assert {(fact.date, fact.source) for fact in found.facts} == {("2024-05", "gazette")}, name
        author = "author" in found.unused or found.facts[0].author == "me"
        assert author and "colour" in found.unused, name
    with pytest.raises(BadInputError, match="unknown field `colour`"):
        READER(SAMPLES["native"].record | further)


def test_what_probes_test_travels_with_them() -> None:
    (recent,) = READER(SAMPLES["KnowEdit WikiData_recent"].record).facts
    assert [probe.kind for probe in recent.portability] == ["Logical_Generalization", "Reasoning", "Subject_Aliasing"]
    assert recent.portability[0].answers == ("Leo XIV", "Prevost")
    first, last = READER(SAMPLES["MQuAKE-CF"].record).facts
    assert not first.portability and (first.prompt, first.question) == (
        "Niels Bohr is a citizen of",
        "Of which country is Niels Bohr a citizen?",
    )
    assert {probe.kind for probe in last.portability} == {MULTI_HOP}
    assert last.portability[0].answers == ("Arica", "San Marcos de Arica")
    (big,) = READER(SAMPLES["WikiBigEdit"].record).facts
    assert [probe.kind for probe in big.portability] == ["persona", MULTI_HOP]
    (ripple,) = READER(SAMPLES["RippleEdits, counterfactual"].record).facts
    assert (ripple.prompt, ripple.target, ripple.target_true) == ("The capital of Peru is", "Cusco", "Lima")
    (dyk,) = READER(SAMPLES["WikiDYK"].record).facts
    assert (dyk.date, dyk.target, len(dyk.rephrases)) == ("2022-01-31", "walking", 1)


@pytest.mark.parametrize(
    ("prompt", "subject", "right"),
    [
        ("{} was the founder of", "Ada", "Ada was the founder of"),
        ("{subject} was the founder of", "Ada", "Ada was the founder of"),
        ("In C, {{}} is", "C", "In C, {} is"),
        ("{{subject}} of", None, "{subject} of"),
        ("The end of {x} is", "Ada", "The end of {x} is"),
        ("{} was the founder of", None, "without a subject"),
        ("{} of Ada is", "Ada", "names its subject already"),
    ],
)
def test_places_are_filled_or_refused(prompt: str, subject: str | None, right: str) -> None:
    fields = {} if subject is None else {"subject": subject}
    for record in (
        {"prompt": prompt, "target": "x"},
        {"prompt": prompt, "target_new": "x"},
        {"prompt": "y", "target": "x", "rephrases": [prompt]},
        {"prompt": "y", "target_new": "x", "rephrase": prompt},
        {"prompt": "y", "completion": "x", "rephrases": [prompt]},
    ):
        if "{" in right or "was" in right or "of {x}" in right:
            (fact,) = Reader()(record | fields).facts
            assert right in (fact.prompt, *fact.rephrases)
        else:
            with pytest.raises(BadInputError, match=right):
                Reader()(record | fields)


def test_null_means_absent_wherever_it_stands() -> None:
    plain = {"subject": "Peru", "prompt": "The capital of Peru is", "target": "Lima"}
    nulls = {name: None for name in Fact.__struct_fields__ if name not in plain}
    probe = {"prompt": "The capital of Chile is", "target": None, "subject": None}
    (fact,) = Reader()(plain | nulls | {"locality": [probe]}).facts
    assert fact == Fact(**plain, locality=(Probe("The capital of Chile is"),))
    (other,) = Reader()({"question": "Where?", "answer": "Here", "subject": None, "rephrases": None}).facts
    assert (other.subject, other.rephrases) == (None, ())


def test_listed_facts_come_back_exactly_or_not_at_all(tmp_path: Path) -> None:
    fact = Fact(subject="Peru", prompt="The capital of {} is ", target="Lima", rephrases=("{}?",))
    listed = {"digest": fact.digest, "subject": "Peru", "prompt": fact.prompt, "target": "Lima", "rephrases": ["{}?"]}
    assert Reader()(listed).facts == (fact,)  # to the byte, with what an earlier release let in
    aside = {name: value for name, value in listed.items() if name != "digest"} | {"prompt": "The capital of {} is"}
    put = Fact(subject="Peru", prompt="The capital of {} is", target="Lima", rephrases=("{}?",))
    assert Reader()(aside | {"quarantined": {"fact": put.digest}}).facts == (put,)
    assert Reader()(aside).facts[0].prompt == "The capital of Peru is"
    assert Reader()(listed | {"state": "live"}).facts == (fact,)
    assert Reader()(listed | {"state": "retracted"}).skip is Skip.NOT_IN_FORCE
    with pytest.raises(BadInputError, match="holds another fact"):
        Reader()(listed | {"target": "Cusco"})
    with pytest.raises(BadInputError, match="unknown field `state`"):
        Reader()({"prompt": "a", "target": "b", "state": "live"})


def test_fields_under_other_names_are_mapped() -> None:
    reader = Reader(mapping_of(["prompt=ask, target=said.value", "rephrases=alike"]))
    record = {
        "ask": "Where is {}?",
        "said": {"value": ["Here", "There"], "by": "me"},
        "alike": "{}, where?",
        "subject": "Oslo",
    }
    found = reader(record | {"colour": "red", "prompt": "its own"})
    (fact,) = found.facts
    assert (fact.prompt, fact.target, fact.rephrases) == ("Where is Oslo?", "Here", ("Oslo, where?",))
    assert sorted(found.unused) == ["colour", "prompt", "said", "target[1:]"]
    for wrong in ("prompt", "prompt=a", "prompt=a,target=", "prompt=a,target=b,colour=c", "prompt=a,target=b,prompt=c"):
        with pytest.raises(UsageError, match="--map"):
            mapping_of(wrong)
    with pytest.raises(BadInputError, match="without 'ask', which --map calls its prompt"):
        reader({"said": {"value": "Here"}})


def test_relations_make_facts_of_triples(tmp_path: Path) -> None:
    path = tmp_path / "relations.toml"
    path.write_text(
        'capital = ["The capital of {} is", "[X] is governed from [Y]."]\n[born]\nprompt = "{subject} was born in"\n'
    )
    reader = Reader(relations=read_relations(path))
    (fact,) = reader({"subject": "Peru", "relation": "capital", "object": "Lima", "date": "2024"}).facts
    assert fact == Fact(
        subject="Peru", prompt="The capital of Peru is", target="Lima", relation="capital", date="2024",
        rephrases=("Peru is governed from",),
    )  # fmt: skip
    assert reader({"head": "Ada", "predicate": "born", "tail": "London"}).facts[0].prompt == "Ada was born in"
    for record in (
        {"subject": "a", "relation": "none", "object": "b"},
        SAMPLES["triple (Wikidata, T-REx, ParaRel)"].record,
    ):
        with pytest.raises(BadInputError, match=r"template for it .*capital"):
            reader(record)
        with pytest.raises(BadInputError, match="no templates were given"):
            Reader()(record)
    for wrong in ('a = "no place"', 'a = "{} and {}"', "a = 5", "[a]\nrephrases = []", "a ="):
        path.write_text(wrong)
        with pytest.raises(BadInputError, match="template"):
            read_relations(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_relations(tmp_path / "none.toml")


def test_places_of_records_of_several_facts_stay_apart(tmp_path: Path) -> None:
    chain = SAMPLES["MQuAKE-CF"].record
    native = SAMPLES["native"].record
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in (native, chain, {"bad": 1}, native)))
    report = ReadReport()
    records = list(read_facts([str(path)], skip_bad=True, report=report))
    assert [(record.line, record.number) for record in records] == [(1, 0), (2, 1), (2, 2), (4, 4)]
    assert (report.read, report.bad, report.shapes) == (4, 1, {"native": 2, "rewrite": 1})
    assert "answer_alias (1)" in report.describe()[0]


def test_what_a_block_says_several_of_is_not_lost() -> None:
    wanted = [{"prompt": "a", "answer": ["b", "c"]}, {"prompt": "d", "answer": "e"}]
    found = Reader()({"success": wanted, "date": "2031", "locality": ["f"], "id": 4})
    assert [(fact.prompt, fact.target, fact.date) for fact in found.facts] == [("a", "b", "2031"), ("d", "e", "2031")]
    assert (found.unused, found.facts[0].id, found.facts[1].id) == (("success[1:]",), "sanitation-4", None)
    assert [len(fact.locality) for fact in found.facts] == [1, 0]
    block = {"reliability": {"prompt": "a", "answer": ["b", "c"]}, "fact": "x", "generality": {"prompt": "d"}}
    found = Reader()(block)
    assert (found.facts[0].target, sorted(found.unused)) == ("b", ["fact", "reliability[1:]"])


def test_python_is_told_what_is_not_used() -> None:
    with pytest.warns(UnusedFieldsWarning, match=r"batch: .*cond \(2\)"):
        as_batch([SAMPLES["zsRE (MEND)"].record] * 2)
    report = ReadReport()
    assert len(as_batch(SAMPLES["MQuAKE-CF"].record, report=report)) == 2
    assert report.unused["single_hops"] == 1


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "conversation of 2 turns"),
        ({"messages": [{"role": "user", "content": ["a"]}, {"role": "assistant", "content": "b"}]}, "as a message"),
        ({"messages": "a"}, "expected objects"),
        ({"requested_rewrite": {"subject": "a", "prompt": "{} is"}}, "without"),
        ({"edit": "a"}, "expected an object"),
        ({"edit": {"prompt": "Nothing to cut here."}}, "ends in `is`"),
        ({"question": "a", "answer": "b", "sub_question": ["c", "d"], "sub_answer": ["e"]}, "expected as many"),
        ({"success": {"prompt": "a"}}, "without a prompt or an answer"),
        ({"eval": {"paraphrase": {"prompt": "a"}}, "fact": "b"}, "`reliability`"),
        ({"question": "a", "answer": 2}, r"found 2 \(int\) as `answer`"),
        ({"prompt": "a", "target_new": "b", "locality": 5}, "as `locality`"),
    ],
)  # fmt: skip
def test_what_a_shape_cannot_be_is_refused(record: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInputError, match=told):
        Reader()(record)


def test_the_page_of_shapes_is_current(tmp_path: Path) -> None:
    """`make docs` writes it: `python scripts/shapes-docs.py docs/record-shapes.md`."""
    script, page = REPOSITORY / "scripts" / "shapes-docs.py", REPOSITORY / "docs" / "record-shapes.md"
    document = runpy.run_path(str(script))["document"]
    assert page.read_text(encoding="utf-8") == document()
