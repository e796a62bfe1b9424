"""What is asked after each step of a stream, and kept: the forgetting matrix, row by row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from lifelong_edit.eval.metrics.verdicts import ask_pairs, ask_unchanged, base_answers
from lifelong_edit.eval.reports.sampling import Sampler
from lifelong_edit.facts import MULTI_HOP, Fact, Probe, read_facts
from lifelong_edit.policies import EveryNSteps, FixedSize
from lifelong_edit.scheduler import BatchEvent, ReconsolidationEvent, Scheduler
from lifelong_edit.stores import Measurement
from lifelong_edit.timeline import Timeline

NewStore = Callable[[str], Path]


def facts(count: int) -> list[Fact]:
    """With two phrasings, of which one is a row, and two neighbours, of which one is a fact of the stream."""
    return [
        Fact(
            subject=f"Vienna {n}",
            prompt=f"The capital of Vienna {n} is",
            target=("Paris", "London", "Warsaw")[n % 3],
            rephrases=(f"Vienna {n} is governed from", f"The seat of Vienna {n} is"),
            portability=(
                Probe(f"One who lives in Vienna {n} is governed from", "Kenya", aliases=("Paris", "London", "Warsaw")),
                Probe(f"The currency of the capital of Vienna {n} is", "yen", kind=MULTI_HOP),
                Probe(f"Vienna {n} asks"),
            ),
            locality=(Probe(f"The capital of Vienna {n + 1} is"), Probe(f"The capital of Berlin {n} is")),
        )
        for n in range(count)
    ]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Nine facts in a file."""
    file = tmp_path / "facts.jsonl"
    file.write_text("".join(f"{json.dumps(msgspec.to_builtins(fact))}\n" for fact in facts(9)))
    return str(file)


@pytest.fixture(autouse=True)
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard without objections: a model with random weights is no judge of text."""
    monkeypatch.setattr("lifelong_edit.timeline.solving.objections", lambda before, after: [])


def stream(
    store: Path, path: str, size: int | None, stop: int | None = None
) -> list[BatchEvent | ReconsolidationEvent]:
    """Batches of three, reconsolidated after two; as if killed right after event number `stop`."""
    with Timeline.open(store) as timeline:
        asking = Sampler(timeline, size)
        scheduler = Scheduler(
            timeline,
            batching=FixedSize(3),
            reconsolidation=EveryNSteps(2),
            measure=lambda _, step: asking(step),
        )
        return list(islice(scheduler.run(read_facts([path])), stop))


def kept(store: Path) -> list[Measurement]:
    """Without times."""
    with Timeline.open(store, read_only=True) as timeline:
        return [msgspec.structs.replace(found, time="", seconds=0) for found in timeline.measurements()]


def test_each_step_is_asked_and_what_came_out_kept(new_store: NewStore, path: str) -> None:
    store = new_store("a")
    events = stream(store, path, 100)
    found = kept(store)
    assert [m.step for m in found] == [e.step for e in events] == [1, 2, 3, 4]
    assert [msgspec.structs.replace(e.measured, time="", seconds=0) for e in events if e.measured] == found
    assert [m.live for m in found] == [{1: 3}, {1: 3, 2: 3}, {1: 3, 2: 3}, {1: 3, 2: 3, 4: 3}]
    assert Counter(o.measure for o in found[3].outcomes if o.fact) == dict.fromkeys(
        ("efficacy", "generality", "portability", "multihop", "locality"), 9
    )
    taught = {o.fact: o.taught for o in found[3].outcomes if o.fact}
    assert [taught[fact.digest] for fact in facts(9)] == [1] * 3 + [2] * 3 + [4] * 3
    with Timeline.open(store, read_only=True) as timeline:
        assert [timeline.show(m.step).weights_digest for m in found] == [m.weights_digest for m in found]


def test_it_is_what_the_metrics_say(new_store: NewStore, path: str) -> None:
    store = new_store("a")
    stream(store, path, 100)
    outcomes = kept(store)[-1].outcomes
    with Timeline.open(store, read_only=True) as timeline, timeline.at(4).standing() as loaded:
        for measure, pairs in (
            ("efficacy", [(fact.prompt, fact.target) for fact in facts(9)]),
            ("generality", [(text, fact.target) for fact in facts(9) for text in fact.rephrases]),
            ("multihop", [(fact.portability[1].prompt, "yen") for fact in facts(9)]),
        ):
            results = {pair[0]: result for pair, result in zip(pairs, ask_pairs(loaded, pairs), strict=True)}
            for outcome in outcomes:
                if outcome.measure == measure:
                    wanted = results[outcome.prompt]
                    assert (outcome.generated, outcome.teacher_forced) == (wanted.generated, wanted.teacher_forced)
                    assert outcome.answer == wanted.answer.strip()
        asked = {o.prompt: o for o in outcomes if o.measure == "portability"}
        assert len(asked) == 9
        for probe in (fact.portability[0] for fact in facts(9)):
            outcome = asked[probe.prompt]
            said = ask_pairs(loaded, [(probe.prompt, answer) for answer in probe.answers])
            assert outcome.generated == any(result.generated for result in said)
            assert outcome.teacher_forced == any(result.teacher_forced for result in said)
        guards = [o for o in outcomes if o.measure == "guard"]
        probes = [o for o in outcomes if o.measure == "locality"]
        assert {o.prompt for o in probes} == {f"The capital of Berlin {n} is" for n in range(9)}
        for outcome in (*guards, *probes):
            preserved = timeline.bench().preserved
            known = {
                probe.prompt: answer.ids for probe, answer in zip(preserved.probes, preserved.answers, strict=True)
            }
            answer = known.get(outcome.prompt) or base_answers(loaded, [(outcome.prompt, None)])[0]
            (result,) = ask_unchanged(loaded, [outcome.prompt], [answer])
            assert outcome.generated == result.generated and outcome.teacher_forced == result.teacher_forced


def test_neighbours_that_the_stream_edits_are_dropped_and_counted(new_store: NewStore, path: str) -> None:
    """Each fact's first neighbour is the next fact, but for the last one of all."""
    store = new_store("a")
    stream(store, path, 100)
    assert [m.dropped for m in kept(store)] == [2, 5, 5, 8]


def test_at_most_as_many_as_said(new_store: NewStore, path: str) -> None:
    store = new_store("a")
    stream(store, path, 4)
    for found in kept(store):
        asked = Counter(o.taught for o in found.outcomes if o.measure == "efficacy")
        assert sum(asked.values()) <= 4 and max(asked) == max(found.live)
        assert sum(o.measure == "guard" for o in found.outcomes) <= 1
        assert found.sample == 4


@pytest.mark.parametrize("stop", range(1, 5))
def test_cut_off_anywhere_and_started_again_it_is_all_there(new_store: NewStore, path: str, stop: int) -> None:
    whole, cut = new_store("whole"), new_store("cut")
    stream(whole, path, 5)
    stream(cut, path, 5, stop)
    stream(cut, path, 5)
    assert kept(cut) == kept(whole)


def test_killed_between_the_commit_and_its_measurement(
    new_store: NewStore, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run asks before its first edit."""
    whole, cut = new_store("whole"), new_store("cut")
    stream(whole, path, 5)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Timeline, "keep_measurement", killed)
        stream(cut, path, 5)
    with Timeline.open(cut, read_only=True) as timeline:
        assert timeline.head == 1 and not timeline.measurements()
    stream(cut, path, 5)
    assert kept(cut) == kept(whole)


def test_it_decides_nothing(new_store: NewStore, path: str) -> None:
    """The same steps, to the last digit, whether they are asked or not."""
    asked, not_asked = new_store("asked"), new_store("not")
    stream(asked, path, 5)
    with Timeline.open(not_asked) as timeline:
        list(Scheduler(timeline, batching=FixedSize(3), reconsolidation=EveryNSteps(2)).run(read_facts([path])))
        wanted = [record.weights_digest for record in timeline.log()]
    with Timeline.open(asked, read_only=True) as timeline:
        assert [record.weights_digest for record in timeline.log()] == wanted
    assert not kept(not_asked)


def test_a_state_that_was_gone_back_to_keeps_its_own(new_store: NewStore, path: str) -> None:
    """What was measured of the steps beside the line is not among that of the line."""
    store = new_store("a")
    stream(store, path, 5)
    with Timeline.open(store) as timeline:
        timeline.rollback(2)
        assert [m.step for m in timeline.measurements()] == [1, 2, 3, 4]
        assert [m.step for m in timeline.measurements("head")] == [1, 2]
        assert Sampler(timeline, 5)(timeline.head).step == 2
