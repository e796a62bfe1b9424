"""The split of FEVER's claims: what is judged is about nothing on which something was trained, in no wording given."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.bench_fever import ARMS, NEIGHBOURS, SAME, parted
from benchmarks.fever import (
    ASKED_WORDINGS,
    LABELS,
    SHARES,
    TAUGHT_WORDINGS,
    Claim,
    claims,
    claims_of,
    flipped,
    labelled,
    part_of,
)
from lifelong_edit.editors.registry import rule_of

CLAIM = Claim("The capital of France is Lyon.", "REFUTES", "France")


def test_pages_of_one_claim_are_in_one_part(shared: Path) -> None:
    """And so are those of claims that have a page in common with it, however long the chain."""
    about = {claim.text: claim.about for claim in claims()}
    part_of_page: dict[str, str] = {}
    for text, _, pages in labelled():
        for page in pages:
            assert part_of_page.setdefault(page, part_of(about[text])) == part_of(about[text])
    sizes = Counter(part_of(name) for name in about.values())
    assert sum(sizes.values()) == len(about) > 13_000
    for part, share in SHARES.items():
        assert sizes[part] / len(about) == pytest.approx(share, abs=0.05)
        own = claims_of(part)
        assert {claim.text for claim in own} == {text for text, name in about.items() if part_of(name) == part}
        assert 0.4 < sum(claim.label == "SUPPORTS" for claim in own) / len(own) < 0.6


def test_no_wording_that_is_asked_is_given() -> None:
    assert not set(ASKED_WORDINGS) & set(TAUGHT_WORDINGS)
    assert CLAIM.worded("In fact, {}.") == "In fact, The capital of France is Lyon."
    (fact,) = flipped([CLAIM], ["SUPPORTS"], [CLAIM])
    assert (fact.prompt, fact.target, fact.target_true) == (CLAIM.text, "REFUTES", "SUPPORTS")
    assert len(set(fact.rephrases)) == 2 and set(fact.rephrases) <= {CLAIM.worded(t) for t in TAUGHT_WORDINGS}
    assert {flipped([CLAIM], [label], [CLAIM])[0].target for label in LABELS} == set(LABELS)


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_is_of_a_rule_that_takes_classifiers(name: str) -> None:
    arm = ARMS[name]
    assert "classify" in rule_of(arm.editor).tasks and bool(arm.train) == ("network" in rule_of(arm.editor).needs)
    assert arm.settings({}).editor == arm.editor


@pytest.mark.parametrize("count", [1, 64, 1024])
def test_what_is_asked_beside_is_about_other_things(shared: Path, count: int) -> None:
    """Nothing about what any flipped claim is about; some further ones are, which are told apart."""
    mine, others, same = parted(claims_of("judged"), count)
    assert (len(mine), len(others), len(same)) == (count, NEIGHBOURS, SAME)
    assert not {c.about for c in mine + same} & {c.about for c in others}
    assert len({c.text for c in mine + others + same}) == count + NEIGHBOURS + SAME
    assert others == parted(claims_of("judged"), 64)[1], "the same claims, however many are flipped"
