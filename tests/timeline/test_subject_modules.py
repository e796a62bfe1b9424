"""Stores for modules that are edited at the subject, stores that knew none, and stores without preserved prompts."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from lifelong_edit.errors import BadInputError
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.stores import EditLog, decode_tensors, digest_bytes, encode_tensors
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.defaults import default_scorer
from lifelong_edit.timeline.model import begin
from lifelong_edit.timeline.states import keys_at

Start = Callable[..., Timeline]
Batch = Callable[..., list[Fact]]
Gate = Callable[..., dict[str, Any]]


def test_a_store_remembers_where_its_modules_are_edited(
    start_store: Start, tmp_path: Path, batch: Batch, lenient: Gate
) -> None:
    with start_store(tmp_path / "store", modules=("1@subject", "3")) as timeline:
        timeline.apply(batch(0), gate=lenient)
        wanted = timeline.apply(batch(1), gate=lenient)
    names = {"transformer.h.1.mlp.c_proj": "subject", "transformer.h.3.mlp.c_proj": "answer"}
    with Timeline.open(tmp_path / "store") as again:
        assert {m.name: m.positions for m in again.bench().loaded.modules} == names
        again.rollback(1)
        assert again.apply(batch(1), gate=lenient, again=True).weights_digest == wanted.weights_digest
    with start_store(tmp_path / "answer", modules=("1", "3")) as other:  # the digest does depend on it
        other.apply(batch(0), gate=lenient)
        assert other.apply(batch(1), gate=lenient).weights_digest != wanted.weights_digest


def test_stored_conflict_keys_stay_though_facts_are_rehearsed(
    start_store: Start, tmp_path: Path, batch: Batch, lenient: Gate
) -> None:
    with start_store(tmp_path / "store", rehearse=50) as timeline:
        for i in range(3):
            timeline.apply(batch(i), gate=lenient)
        log, history = timeline._log, timeline.history()
        states = [keys_at(log, history, step) for step in (1, 2, 3)]
    for earlier, later in itertools.pairwise(states):
        for fact, keys in earlier.items():
            assert later[fact].conflict.tobytes() == keys.conflict.tobytes()
            assert any((later[fact].rows[name] != rows).any() for name, rows in keys.rows.items())  # others do not


@pytest.fixture
def old_store(tiny_gpt2: Path, sentences: list[str], start_store: Start, tmp_path: Path) -> Path:
    """A store as it was made before there were modules at the subject, or a scorer: no word of them in step 0."""
    with start_store(tmp_path / "pattern", modules=("2-3",)) as pattern:
        settings = pattern.settings
    preserve = [Probe(prompt=s.rsplit(" ", 1)[0], subject=f"none {i}") for i, s in enumerate(sentences)]
    options: dict[str, Any] = {
        "hypernetwork": None,
        "scorer": default_scorer(),
        "revision": None,
        "trust_remote_code": False,
    }
    text = [" ".join(sentences * 20)]
    beginning = begin(str(tiny_gpt2), settings, preserve=preserve, text=text, **options)
    record, blobs = beginning.record, dict(beginning.blobs)
    arrays = decode_tensors(blobs.pop(str(record.fixed)), "fixed")
    newer = ("preserved/subjects", "conflict/scorer")
    fixed = encode_tensors({name: array for name, array in arrays.items() if name not in newer})
    assert len(fixed) < sum(np.asarray(array).nbytes for array in arrays.values()) + 20_000
    provenance = msgspec.to_builtins(record.provenance)
    del provenance["config"]["model"]["subject_modules"]
    for name in ("reconsolidation_decay", "conflict_probability"):
        del provenance["config"]["settings"][name]
    record = msgspec.structs.replace(record, fixed=digest_bytes(fixed), provenance=provenance)
    blobs[digest_bytes(fixed)] = fixed
    path = tmp_path / "old"
    EditLog.create(path, record, blobs=blobs, weights=beginning.weights).close()
    return path


def test_a_store_from_before_opens_and_goes_on(old_store: Path, batch: Batch, lenient: Gate) -> None:
    with Timeline.open(old_store) as timeline:
        assert timeline.config.model.subject_modules == ()
        assert [m.positions for m in timeline.bench().loaded.modules] == ["answer", "answer"]
        assert len(timeline.bench().preserved.probes) == 8
        assert timeline.bench().scorer is None
        timeline.apply(batch(0), gate=lenient)
        wanted = timeline.reconsolidate(guard=False)
    with Timeline.open(old_store) as again:
        assert again.staleness()["live"] == 3
        again.rollback(1)
        assert again.reconsolidate(guard=False).weights_digest == wanted.weights_digest
        near = msgspec.structs.replace(
            batch(0)[0], prompt=f"{batch(0)[0].rephrases[0]} now", relation=None, rephrases=()
        )
        (found,) = again.apply([near], gate=lenient).report["conflicts"]
        assert found["old"] == batch(0)[0].digest
        cosine = float(np.prod(again.bench().conflict_keys([near.prompt, batch(0)[0].prompt]), axis=0).sum())
        assert found["probability"] == pytest.approx(default_scorer().probability(near, batch(0)[0], cosine), abs=1e-4)


def mixed(number: int) -> Fact:
    """Facts of two relations about different subjects: each has a question that no fact answers."""
    name = f"Vienna {number}"
    prompt = (f"The capital of {name} is", f"The river of {name} is")[number % 2]
    return Fact(subject=name, prompt=prompt, target="Paris", relation=("capital", "river")[number % 2])


def test_a_store_without_preserved_prompts_holds_derived_ones(
    start_store: Start, tmp_path: Path, lenient: Gate
) -> None:
    """And a canonical reconsolidation stays a function of the live facts alone."""
    facts = [mixed(i) for i in range(6)]
    steps = []
    for name, order in (("one", facts), ("two", facts[::-1])):
        with start_store(tmp_path / name, preserve=[]) as timeline:
            assert timeline.bench().preserved.probes == []
            for start in (0, 3):
                step = timeline.apply(order[start : start + 3], gate=lenient)
            assert 0 < step.report["editor"]["rows"]["preserved"] <= 4  # no more than the settings say
            steps.append(timeline.reconsolidate(guard=False))
    first, second = (step.report["editor"]["rows"]["preserved"] for step in steps)
    assert 0 < first == second <= len(facts)
    assert steps[0].weights_digest == steps[1].weights_digest
    with start_store(tmp_path / "three", preserve=[], reconsolidation_preserved=0) as bare:
        bare.apply(facts, gate=lenient)
        assert bare.reconsolidate(guard=False).weights_digest != steps[0].weights_digest


def test_a_fact_whose_prompts_do_not_mention_its_subject(start_store: Start, tmp_path: Path, lenient: Gate) -> None:
    """It is taught at the answer alone, and the report says so; where nothing is edited there it is refused."""
    other = Fact(subject="Kenia", prompt="The currency of Kenya is", target="London")
    sound = Fact(subject="Kenya", prompt="The capital of Kenya is", target="Paris")
    with start_store(tmp_path / "both", modules=("1@subject", "3")) as timeline:
        report = timeline.apply([other, sound], gate=lenient).report["editor"]
        assert report["without_mention"] == [other.digest]
        assert report["positions"]["transformer.h.1.mlp.c_proj"] > 0
    with start_store(tmp_path / "subject", modules=("1-2@subject",)) as timeline:
        with pytest.raises(BadInputError, match="names no subject, and all edited modules are edited at the subject"):
            timeline.apply([Fact(prompt="Kenya's currency is the", target="euro")])
        with pytest.raises(BadInputError, match="does not mention its subject 'Kenia'"):
            timeline.apply([sound, other], gate=lenient)
        assert timeline.apply([sound], gate=lenient).report["editor"]["without_mention"] == []
    with start_store(tmp_path / "answer", modules=("3",)) as timeline:
        assert timeline.apply([other], gate=lenient).report["editor"]["without_mention"] == []
        bare = Fact(prompt="Kenya's currency is the", target="euro")  # needs no subject here
        timeline.apply([bare], gate=lenient)
        assert timeline.facts() == [other, bare]
