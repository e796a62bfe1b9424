"""Dictionaries that are followed by what changed: whoever follows comes to what a look at all of it gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifelong_edit.facts import Fact
from lifelong_edit.tracing.rows import AnyOf, Subjects
from lifelong_edit.tracked import Follower, Tracked, Without, in_order

NAMES = st.sampled_from("abcdef")
CHANGES = st.lists(st.tuples(st.sampled_from(["set", "del", "update", "or", "pop", "default", "last", "clear"]), NAMES))


def change(held: dict[str, int], how: str, name: str, value: int) -> None:
    """One change, of whichever kind a dictionary has."""
    if how == "set":
        held[name] = value
    elif how == "del" and name in held:
        del held[name]
    elif how == "update":
        held.update({name: value}, g=value)
    elif how == "or":
        held |= {name: value}
    elif how == "pop":
        held.pop(name, None)
    elif how == "default":
        held.setdefault(name, value)
    elif how == "last" and held:
        held.popitem()
    elif how == "clear":
        held.clear()


@given(CHANGES, st.integers(1, 4), st.sets(NAMES))
def test_it_is_a_dictionary_and_says_what_changed(changes: list[tuple[str, str]], every: int, apart: set[str]) -> None:
    plain, tracked, follower = {"a": -1}, Tracked({"a": -1}), Follower()
    assert follower.changed(Without(tracked, apart)) is None, "at first everything may be other"
    seen = {name: value for name, value in plain.items() if name not in apart}
    for number, (how, name) in enumerate(changes):
        change(plain, how, name, number)
        change(tracked, how, name, number)
        assert list(tracked.items()) == list(plain.items())
        assert list(in_order(tracked)) == sorted(plain)
        left = Without(tracked, {name} if number % 2 else apart)
        wanted = {n: value for n, value in plain.items() if n not in left.without}
        assert dict(left) == wanted and len(left) == len(wanted) and list(in_order(left)) == sorted(wanted)
        if number % every == 0:
            names = follower.changed(left)
            assert names is not None
            for changed in names:
                seen.pop(changed, None)
                if changed in left:
                    seen[changed] = left[changed]
            assert seen == wanted


def test_what_notes_nothing_cannot_be_followed() -> None:
    follower, tracked = Follower(), Tracked({"a": 1})
    assert follower.changed({"a": 1}) is None and follower.changed({"a": 1}) is None
    assert follower.changed(tracked) is None and follower.changed(tracked) == set()
    assert follower.changed(Tracked(tracked)) is None, "another one, though it is equal"
    with pytest.raises(KeyError):
        Without(tracked, {"a"})["a"]
    with pytest.raises(KeyError):
        Tracked[int]().pop("a")
    with pytest.raises(KeyError):
        Tracked[int]().popitem()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=20), st.booleans())
def test_subjects_of_facts_that_come_and_go(changes: list[tuple[int, int]], notes: bool) -> None:
    """Several facts are about one subject, which is there as long as one of them is."""
    live: dict[str, Fact] = Tracked() if notes else {}
    subjects = Subjects()
    for number, about in changes:
        if str(number) in live:
            del live[str(number)]
        else:
            live[str(number)] = Fact(prompt=f"Number {number} of Town {about} is", target="x", subject=f"Town {about}")
        found = AnyOf({"hidden"}, subjects.follow(live))
        for i in range(3):
            assert (f"town {i}" in found) == any(fact.subject == f"Town {i}" for fact in live.values())
        assert "hidden" in found
