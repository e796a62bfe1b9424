"""Facts that nothing but their keys and their wording tells to be the same: what is scored, and what follows."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from lifelong_edit.errors import BadInputError, StoreDamagedError, UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.policies import Decision, LiveIdentities, Scorer, find_conflicts
from lifelong_edit.policies.scoring import (
    CERTAIN,
    FEATURES,
    as_scorer,
    features_of,
    read_scorer,
    same_subject,
    scorer_array,
)
from lifelong_edit.timeline.defaults import default_scorer, scorer_of

PARIS = Fact(subject="France", prompt="The capital of France is", target="Paris", relation="capital")
ASKED = Fact(subject="France", prompt="The capital city of France lies in", target="Paris")
MOVED = msgspec.structs.replace(ASKED, target="Nice")
TOKYO = Fact(subject="Japan", prompt="The capital of Japan is", target="Tokyo", relation="capital")
SCORER = Scorer(
    features=FEATURES,
    means=(0.5, 0.3),
    scales=(0.2, 0.2),
    coefficients=(2.0, 1.0),
    intercept=0.0,
    auc=0.9,
    threshold=0.6,
)


def meet(
    *facts: Fact,
    live: tuple[Fact, ...] = (PARIS, TOKYO),
    cosine: float = 0.9,
    scorer: Scorer = SCORER,
    policy: str = "supersede",
) -> Decision:
    """The decision where every live fact, and every earlier one of the batch, has a key as near as `cosine`."""
    held = {fact.digest: fact for fact in live}
    candidates = [[(f.digest, cosine) for f in (*live, *facts[:i])] for i in range(len(facts))]
    return find_conflicts(facts, held, scorer=scorer, candidates=candidates, policy=policy)


def test_features_by_hand() -> None:
    """Character n-grams of what is left without the subject, of the two phrasings that are most alike."""
    one = Fact(subject="Io", prompt="Io is a moon of", target="Jupiter", rephrases=("What does Io go round?",))
    other = Fact(subject="IO", prompt="io is a  MOON of", target="Mars")
    assert features_of(one, other, 0.25) == (0.25, pytest.approx(1.0))
    away = Fact(subject="Io", prompt="xyz", target="Jupiter")
    assert features_of(away, other, -1.0) == (-1.0, 0.0)
    left, right = "\x00 sat", "\x00 sad"
    grams = [{t[i : i + n] for n in (3, 4, 5) for i in range(len(t) - n + 1)} for t in (left, right)]
    wanted = len(grams[0] & grams[1]) / np.sqrt(len(grams[0]) * len(grams[1]))
    pair = (Fact(subject="A", prompt="A sat", target="x"), Fact(subject="A", prompt="A sad", target="x"))
    assert features_of(*pair, 0.0)[1] == pytest.approx(wanted)
    far = "The Academy of Music and Fine Arts"
    two = (
        Fact(subject=far, prompt=f"{far} lies in", target="x"),
        Fact(subject=far, prompt=f"Who heads {far}?", target="y"),
    )
    assert features_of(*two, 0.0)[1] < 0.1, "all that they share is the subject"
    # Whose the prompt is says nothing of what it asks: the name is taken out of it, whichever of the two has it.
    named = Fact(subject="the moon Io", prompt="The moon Io is made of", target="rock")
    assert features_of(named, Fact(subject="Io", prompt="Io is made of", target="rock"), 0.0)[1] > 0.5


def test_the_same_subject_in_other_words() -> None:
    assert same_subject(PARIS, MOVED)
    whole = Fact(subject="the capital of France", prompt="The capital of France is called", target="Paris")
    assert same_subject(whole, PARIS), "each prompt mentions what the other is about"
    assert not same_subject(PARIS, TOKYO)
    windows = Fact(subject="Windows", prompt="Windows is made by", target="Microsoft")
    assert not same_subject(windows, Fact(subject="Windows 7", prompt="Windows 7 is made by", target="Microsoft"))


def test_a_probability_rises_with_nearness_and_is_never_certain() -> None:
    found = [SCORER.probability(ASKED, PARIS, cosine) for cosine in (-1, 0, 0.5, 0.9, 1)]
    assert found == sorted(found)
    assert len(set(found)) == len(found)
    assert SCORER.probability(PARIS, PARIS, 1e6) == CERTAIN < 1
    by_hand = 1 / (1 + np.exp(-(2 * (0.7 - 0.5) / 0.2 + (features_of(ASKED, PARIS, 0)[1] - 0.3) / 0.2)))
    assert SCORER.probability(ASKED, PARIS, 0.7) == pytest.approx(by_hand)


def test_outcome_by_probability_and_target() -> None:
    (found,) = meet(ASKED).conflicts
    assert (found.kind, found.action, found.old) == ("paraphrase", "keep", PARIS.digest)
    assert 0.6 <= found.probability < 1
    decision = meet(MOVED)
    assert [(c.kind, c.action) for c in decision.conflicts] == [("contradiction", "supersede")]
    assert decision.retire == (PARIS.digest,), "and Tokyo, as near by its key, is about another subject"
    far = meet(MOVED, cosine=0.1)
    assert [(c.kind, c.action) for c in far.conflicts] == [("unrelated", "keep")]
    assert 0.01 <= far.conflicts[0].probability < 0.6
    assert far.retire == ()
    assert meet(MOVED, cosine=-1.0).conflicts == (), "too improbable to be worth a line"
    named = meet(msgspec.structs.replace(MOVED, relation="largest city")).conflicts
    assert [c.kind for c in named] == ["unrelated"], "a relation says more than a key"


def test_threshold_and_least_cosine() -> None:
    held, near = {PARIS.digest: PARIS}, [[(PARIS.digest, 0.9), ("gone", 0.99)]]
    said = SCORER.probability(MOVED, PARIS, 0.9)

    def kinds(**options: float) -> list[str]:
        return [c.kind for c in find_conflicts([MOVED], held, scorer=SCORER, candidates=near, **options).conflicts]

    assert kinds(threshold=said) == ["contradiction"]
    assert kinds(threshold=said + 1e-6) == ["unrelated"]
    assert kinds(threshold=1.1) == ["unrelated"]
    assert kinds(cosine=0.91) == []
    assert [c.kind for c in find_conflicts([TOKYO], held, scorer=SCORER, candidates=near).conflicts] == []
    with pytest.raises(UsageError, match="without a scorer"):
        find_conflicts([MOVED], held, candidates=near)


@pytest.mark.parametrize(
    ("policy", "dropped"), [("supersede", {ASKED.digest}), ("reject", {MOVED.digest}), ("keep", set())]
)
def test_of_one_batch_the_later_fact_holds(policy: str, dropped: set[str]) -> None:
    decision = meet(ASKED, MOVED, live=(), policy=policy)
    (found,) = decision.conflicts
    assert (found.kind, found.new, found.old, found.action) == ("contradiction", MOVED.digest, ASKED.digest, policy)
    assert (decision.drop, decision.retire) == (dropped, ())
    assert meet(MOVED, msgspec.structs.replace(MOVED, prompt="France has its capital in"), live=()).drop == set()


def test_one_that_a_later_fact_replaces_has_replaced_before() -> None:
    """As if they had come one after the other; one that is refused replaces nobody."""
    first = msgspec.structs.replace(PARIS, target="Lyon")
    decision = meet(first, MOVED, live=(PARIS,))
    assert (decision.drop, decision.retire) == ({first.digest}, (PARIS.digest,))
    known = msgspec.structs.replace(PARIS, id="again")  # brings nothing, so it is skipped
    decision = meet(MOVED, known, live=(PARIS,))
    assert decision.drop == {known.digest}
    assert decision.retire == (PARIS.digest,)
    assert [c.action for c in decision.conflicts if c.old == MOVED.digest] == ["keep"]


def test_what_is_kept_as_json_and_what_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "conflicts.json"
    file.write_bytes(msgspec.json.encode(SCORER))
    assert read_scorer(file) == scorer_of(tmp_path / "other", tmp_path) == SCORER
    (tmp_path / "settings.json").write_text("{}")
    assert scorer_of(tmp_path / "settings.json") == SCORER, "beside the settings that train chose"
    assert scorer_of(None, tmp_path / "none") == default_scorer()
    assert as_scorer(scorer_array(SCORER)) == SCORER
    others = msgspec.structs.replace(SCORER, features=("nearness", "colour"))
    for content in (b"{", b"[]", b"\xff", msgspec.json.encode(others)):
        file.write_bytes(content)
        with pytest.raises(BadInputError, match="holds no scorer"):
            read_scorer(file)
        with pytest.raises(StoreDamagedError, match="cannot be read"):
            as_scorer(np.frombuffer(content, np.uint8))


def test_facts_about_what_a_prompt_names_are_looked_at() -> None:
    """However far their keys lie: a subject goes by more names than one."""
    io = Fact(subject="Io", prompt="Io, a moon of Jupiter, is made of", target="rock")
    whole = Fact(subject="Jupiter's moon Io", prompt='What "Io" (Jupiter\'s moon Io) is made of:', target="ice")
    known = LiveIdentities({f.digest: f for f in (io, PARIS, TOKYO)})
    assert known.about(whole) == [io.digest]
    assert known.about(io) == [io.digest]
    assert known.about(msgspec.structs.replace(whole, prompt="The lion of")) == []
    back = LiveIdentities({f.digest: f for f in (whole, PARIS, TOKYO)})
    assert back.about(msgspec.structs.replace(io, prompt="Io -- Jupiter's  MOON Io! -- is made of")) == [whole.digest]
    known.remove(io.digest, io)
    assert known.about(whole) == []
