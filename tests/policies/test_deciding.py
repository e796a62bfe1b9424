"""Which of two facts has the last word: sources, then dates, then the order of arrival."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.facts.dates import is_later, span_of
from lifelong_edit.policies import ConflictPolicy, find_conflicts, prevails

TRUSTED = ("registry", "Newsroom")
OLD = Fact(subject="France", prompt="The capital of France is", target="Paris", relation="capital")
NEW = msgspec.structs.replace(OLD, target="Lyon")


def variant(fact: Fact, **changes: object) -> Fact:
    return msgspec.structs.replace(fact, **changes)


def arrive(facts: Sequence[Fact], trusted: Sequence[str] = (), policy: ConflictPolicy = "supersede") -> list[Fact]:
    """What is in force after the facts have come one by one."""
    live: dict[str, Fact] = {}
    for fact in facts:
        if fact.digest in live:
            continue
        decision = find_conflicts([fact], live, policy=policy, trusted=trusted)
        for digest in decision.retire:
            del live[digest]
        if fact.digest not in decision.drop:
            live[fact.digest] = fact
    return list(live.values())


def test_a_date_covers_what_it_names() -> None:
    day = 86_400_000_000
    lengths = {"2024": 366, "2023": 365, "2024-02": 29, "9999-12": 31, "2024-W10": 7, "2024-02-29": 1, "20240229": 1}
    assert {date: (span_of(date)[1] - span_of(date)[0]) // day for date in lengths} == lengths
    assert span_of("2024-03-01T01:30+02:00")[0] == span_of("2024-02-29T23:30")[0] == span_of("2024-02-29T23:30Z")[1]
    assert span_of("0001-01-01T00:00+01:00")[0] < 86_400_000_000  # no overflow at the ends
    for wrong in ("", "last week", "2024-13", "202402", "2024-2-1", "0000"):
        with pytest.raises(BadInputError, match="ISO 8601"):
            span_of(wrong)
        with pytest.raises(BadInputError, match="ISO 8601"):
            variant(OLD, date=wrong)


def test_dates_are_compared_as_far_as_both_go() -> None:
    later = [("2024", "2023"), ("2024-01", "2023"), ("2024-03-02", "2024-03-01"), ("2024-03-02T00:00", "2024-03-01")]
    later += [("2024-03-01T12:00:01", "2024-03-01T12:00"), ("2024-03-01T12:00", "2024-03-01T12:30+01:00")]
    for one, other in later:
        assert is_later(one, other)
        assert not is_later(other, one)
    for one, other in [("2024", "2024-03-01"), ("2024-03", "2024-03-31T23:59"), ("2024-03-01T00:00", "2024-03-01")]:
        assert not is_later(one, other)
        assert not is_later(other, one)


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        ({}, {}, (True, None)),
        ({"date": "2020"}, {"date": "2020"}, (True, None)),
        ({"date": "2020"}, {"date": "2020-05-01"}, (True, None)),
        ({"date": "2019"}, {}, (True, None)),
        ({"date": "2021"}, {"date": "2020"}, (True, "date")),
        ({"date": "2019"}, {"date": "2020"}, (False, "date")),
        ({"source": "newsroom"}, {"source": "blog"}, (True, "source")),
        ({"source": "NEWSROOM "}, {"source": "Registry"}, (False, "source")),
        ({}, {"source": "newsroom"}, (False, "source")),
        ({"source": "a blog"}, {"source": "another"}, (True, None)),
        ({"source": "registry", "date": "2019"}, {"source": "newsroom", "date": "2020"}, (True, "source")),
        ({"source": "newsroom", "date": "2019"}, {"source": "newsroom", "date": "2020"}, (False, "date")),
    ],
)
def test_sources_before_dates_before_arrival(
    new: dict[str, str], old: dict[str, str], expected: tuple[bool, str | None]
) -> None:
    assert prevails(variant(NEW, **new), variant(OLD, **old), TRUSTED) == expected


def test_a_trusted_source_may_be_a_pattern() -> None:
    trusted = ("Gazette [A] *", "gazette*")
    ranks = {"Gazette [A] *": 0, "GAZETTE 2031/3": 1, "a gazette": 2, " ": 2}
    for (one, rank), (other, than) in itertools.permutations(ranks.items(), 2):
        expected = (True, None) if rank == than else (rank < than, "source")
        assert prevails(variant(NEW, source=one), variant(OLD, source=other), trusted) == expected


def test_an_older_fact_is_outranked_and_the_log_says_by_what() -> None:
    new, old = variant(NEW, date="2019", source="registry"), variant(OLD, date="2020", source="blog")
    held = {old.digest: old}
    for policy in ("supersede", "quarantine"):
        decision = find_conflicts([new], held, policy=policy)
        assert [(c.action, c.by) for c in decision.conflicts] == [("outranked", "date")]
        assert (decision.retire, decision.drop, decision.quarantine) == ((), {new.digest}, frozenset())
        assert decision.turned_away == {new.digest}
    decision = find_conflicts([new], held, trusted=TRUSTED)
    assert [(c.action, c.by) for c in decision.conflicts] == [("supersede", "source")]
    # These two look at neither: one refuses what comes later, the other refuses nothing.
    for policy in ("reject", "keep"):
        assert [(c.action, c.by) for c in find_conflicts([new], held, policy=policy).conflicts] == [(policy, policy)]


def test_quarantine_puts_the_new_one_aside() -> None:
    decision = find_conflicts([NEW], {OLD.digest: OLD}, policy="quarantine")
    assert [(c.action, c.by) for c in decision.conflicts] == [("quarantine", "quarantine")]
    assert (decision.retire, decision.drop, decision.quarantine) == ((), {NEW.digest}, {NEW.digest})
    # What a newer fact outranks is not put aside on account of another one.
    other = variant(OLD, target="Nice", date="2021")
    new, held = variant(NEW, date="2020"), {f.digest: f for f in (OLD, other)}
    decision = find_conflicts([new], held, policy="quarantine")
    assert {c.old: c.action for c in decision.conflicts} == {OLD.digest: "keep", other.digest: "outranked"}
    assert (decision.drop, decision.quarantine) == ({new.digest}, frozenset())


def test_a_duplicate_renews_what_it_repeats() -> None:
    """Otherwise what comes late from between the two dates would win."""
    first, again = variant(OLD, date="2019"), variant(OLD, date="2021")
    between = variant(NEW, date="2020")
    for order in itertools.permutations([first, between, again]):
        assert [f.target for f in arrive(order)] == ["Paris"], [f.date for f in order]
    assert arrive([again, first]) == [again]
    assert arrive([variant(OLD, source="blog"), variant(OLD, source="registry")], TRUSTED)[0].source == "registry"
    # Phrasings do not leave with the older one, dates do not leave for want of one in the newer.
    phrased = variant(first, rephrases=("France has its capital in",))
    assert arrive([phrased, again]) == [phrased, again]
    assert arrive([again, phrased]) == [again, phrased]
    assert arrive([first, variant(phrased, date=None)]) == [first, variant(phrased, date=None)]
    assert arrive([variant(first, date=None), phrased]) == [phrased]


dates = st.dates().map(str)
facts = st.builds(
    lambda target, date, subject, more: variant(
        OLD, target=target, date=date, subject=subject, prompt=f"{subject} is", rephrases=more
    ),
    st.sampled_from(["Paris", "Lyon", "Nice"]),
    dates,
    st.sampled_from(["France", "Gaul"]),
    st.sampled_from([(), ("France has its capital in",)]),
)


@given(st.lists(facts, max_size=7, unique_by=lambda f: (f.subject, f.date)), st.randoms(use_true_random=False))
def test_where_dates_decide_the_order_of_arrival_does_not_matter(found: list[Fact], random: object) -> None:
    """Of each question the answer in force is the one of the latest date, and only that."""
    latest = {subject: max((f for f in found if f.subject == subject), key=lambda f: span_of(str(f.date)), default=None)
              for subject in ("France", "Gaul")}  # fmt: skip
    expected = {(fact.subject, fact.target) for fact in latest.values() if fact is not None}
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for order in (found, shuffled):
        assert {(fact.subject, fact.target) for fact in arrive(order)} == expected


@given(st.permutations([("registry", "Paris"), ("Newsroom", "Lyon"), ("blog", "Nice")]), dates, dates)
def test_where_sources_decide_neither_dates_nor_arrival_matter(
    order: list[tuple[str, str]], one: str, other: str
) -> None:
    given_dates = itertools.cycle([one, None, other])
    came = [variant(OLD, target=t, source=s, date=d) for (s, t), d in zip(order, given_dates, strict=False)]
    assert [fact.source for fact in arrive(came, TRUSTED)] == ["registry"]


@given(st.lists(st.sampled_from("ABC"), min_size=1, max_size=8))
def test_without_dates_the_last_one_holds(targets: list[str]) -> None:
    assert [fact.target for fact in arrive([variant(OLD, target=t) for t in targets])] == [targets[-1]]


def test_a_to_b_to_a_with_and_without_dates() -> None:
    for years in ([None, None, None], ["2019", "2020", "2021"], ["2019", None, "2021"], ["2020", "2020", "2020"]):
        came = [variant(OLD, target=t, date=y) for t, y in zip(["A", "B", "A"], years, strict=True)]
        assert [f.target for f in arrive(came[:2])] == ["B"]
        assert arrive(came) == [came[-1]]


def test_a_callable_decides() -> None:
    seen = []

    def judge(new: Fact, old: Fact, kind: str, probability: float) -> str | None:
        seen.append((new.target, old.target, kind, probability))
        return "quarantine" if kind == "contradiction" and new.target == "Lyon" else None

    held = {OLD.digest: OLD}
    decision = find_conflicts([NEW, variant(OLD, id="2"), variant(OLD, target="Nice")], held, policy=judge)
    assert seen == [(t, "Paris", k, 1.0) for t, k in
                    [("Lyon", "contradiction"), ("Paris", "duplicate"), ("Nice", "contradiction")]]  # fmt: skip
    by = "callable test_a_callable_decides.<locals>.judge"
    found = [(c.action, c.by) for c in decision.conflicts]
    assert found == [("quarantine", by), ("skip", "kind"), ("supersede", "supersede")]
    assert decision.quarantine == {NEW.digest}


def test_an_unknown_answer_is_an_error() -> None:
    held = {OLD.digest: OLD}
    for wrong in ("newest", "outranked", True):
        with pytest.raises(UsageError, match="expected one of supersede, skip, reject, keep, quarantine, or None"):
            find_conflicts([NEW], held, policy=lambda *_, answer=wrong: answer)
    with pytest.raises(UsageError, match="conflict_policy is 'newest'"):
        Settings(conflict_policy="newest")
