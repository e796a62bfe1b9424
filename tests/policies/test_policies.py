"""Batches, conflicts, snapshots: each decision a function of what it is shown."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact, Record
from lifelong_edit.policies import FixedSize, find_conflicts, identities

PARIS = Fact(subject="France", prompt="The capital of France is", target="Paris", relation="capital")
LYON = Fact(subject="France", prompt="France is governed from", target="Lyon", relation="Capital")
TOKYO = Fact(subject="Japan", prompt="The capital of Japan is", target="Tokyo", relation="capital")


def records(facts: list[Fact]) -> list[Record]:
    return [Record(fact, "f", number + 1, "d", number) for number, fact in enumerate(facts)]


def cut(size: int, facts: list[Fact]) -> list[list[Fact]]:
    return [[r.fact for r in batch] for batch in FixedSize(size).cut(records(facts))]


def live(*facts: Fact) -> dict[str, Fact]:
    return {fact.digest: fact for fact in facts}


def test_identity_ignores_case_space_and_compatibility_forms() -> None:
    same = msgspec.structs.replace(PARIS, subject="ＦＲＡＮＣＥ", prompt=" the capital  of france is")
    assert set(identities(same)) == set(identities(PARIS))
    assert set(identities(PARIS)) & set(identities(LYON))
    assert not set(identities(PARIS)) & set(identities(TOKYO))
    assert len(identities(PARIS)) == len(identities(msgspec.structs.replace(PARIS, relation=" "))) + 1


def test_a_phrasing_of_the_same_subject_is_the_same_question() -> None:
    """Without a relation: asked in a rephrase of the one in force, or rephrased as it is asked."""
    old = Fact(subject="Sweden", prompt="The capital of Sweden is", target="Lund", rephrases=("Sweden is ruled from",))
    turned = Fact(subject="sweden", prompt="Sweden is  ruled from", target="Uppsala", rephrases=(old.prompt,))
    near = Fact(subject="Sweden", prompt="The Swedes are governed from", target="Uppsala", rephrases=old.rephrases)
    for new in (turned, near):
        assert find_conflicts([new], live(old)).retire == (old.digest,)
    other = Fact(subject="Norway", prompt="Norway is ruled from", target="Uppsala", rephrases=("Sweden is ruled from",))
    assert find_conflicts([other], live(old)).conflicts == ()


def test_facts_without_a_subject_are_told_apart_by_what_they_ask() -> None:
    ask, again = "Who rules Sweden?", "Who governs Sweden?"
    old = Fact(prompt=ask, target="Lund", rephrases=(again,), relation="rule")
    for new in (Fact(prompt=ask, target="Oslo"), Fact(prompt=again, target="Oslo")):
        assert find_conflicts([new], live(old)).retire == (old.digest,)
    # A relation says nothing where nobody knows of whom, and no subject is not the same subject.
    for other in (Fact(prompt="Who rules Norway?", target="Oslo", relation="rule"), Fact(prompt="Where?", target="x")):
        assert find_conflicts([other], live(old)).conflicts == ()
    named = Fact(subject="Sweden", prompt="Sweden is ruled by", target="Oslo", rephrases=(again,), relation="rule")
    assert find_conflicts([named], live(old)).conflicts == ()


def test_batches_are_of_one_size_and_end_before_a_contradiction() -> None:
    many = [msgspec.structs.replace(TOKYO, subject=f"s{i}", prompt=f"p{i}") for i in range(5)]
    assert [len(batch) for batch in cut(2, many)] == [2, 2, 1]
    assert cut(8, [PARIS, TOKYO, LYON, PARIS]) == [[PARIS, TOKYO], [LYON], [PARIS]]
    assert cut(8, [PARIS, PARIS, TOKYO]) == [[PARIS, PARIS, TOKYO]]
    assert cut(3, []) == []
    with pytest.raises(UsageError):
        FixedSize(0)


def test_batches_are_cut_lazily() -> None:
    def endless() -> Iterator[Record]:
        while True:
            yield records([PARIS])[0]

    assert len(next(FixedSize(4).cut(endless()))) == 4


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy")), max_size=30),
    st.integers(min_value=1, max_value=5),
)
def test_batches_keep_order_and_hold_no_contradiction(pairs: list[tuple[str, str]], size: int) -> None:
    facts = [Fact(subject=s, prompt=f"{s} is", target=t) for s, t in pairs]
    batches = cut(size, facts)
    assert [fact for batch in batches for fact in batch] == facts
    for batch, following in zip(batches, [*batches, []][1:], strict=True):
        assert 1 <= len(batch) <= size
        assert len({f.prompt for f in batch}) == len({(f.prompt, f.target) for f in batch})
        # None ends early without cause.
        assert (
            not following
            or len(batch) == size
            or any(f.prompt == following[0].prompt and f.target != following[0].target for f in batch)
        )


@pytest.mark.parametrize(
    ("policy", "retired", "dropped"), [("supersede", True, False), ("reject", False, True), ("keep", False, False)]
)
def test_contradiction_by_policy(policy: str, retired: bool, dropped: bool) -> None:
    decision = find_conflicts([LYON], live(PARIS, TOKYO), policy=policy)
    (conflict,) = decision.conflicts
    assert (conflict.kind, conflict.action, conflict.probability) == ("contradiction", policy, 1.0)
    assert (conflict.new, conflict.old) == (LYON.digest, PARIS.digest)
    assert decision.retire == ((PARIS.digest,) if retired else ())
    assert decision.drop == (frozenset({LYON.digest}) if dropped else frozenset())


def test_duplicate_is_skipped_unless_it_brings_phrasings() -> None:
    renamed = msgspec.structs.replace(PARIS, id="again")
    richer = msgspec.structs.replace(PARIS, rephrases=("France's capital is",))
    assert find_conflicts([renamed], live(PARIS)).drop == {renamed.digest}
    decision = find_conflicts([richer], live(PARIS))
    assert (decision.retire, decision.drop) == ((PARIS.digest,), frozenset())


def test_what_is_dropped_replaces_nothing() -> None:
    """Reject wins: a fact refused on account of one live fact must not take another one away."""
    same = msgspec.structs.replace(LYON, id="1", rephrases=())
    held = live(PARIS, LYON)
    decision = find_conflicts([same], held)
    assert decision.drop == {same.digest}
    assert decision.retire == ()


def test_unknown_policy() -> None:
    with pytest.raises(UsageError, match="supersede, reject, keep"):
        find_conflicts([PARIS], {}, policy="newest")
