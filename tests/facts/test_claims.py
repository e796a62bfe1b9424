"""Claims as they are read and verbalised, and texts with labels."""

from __future__ import annotations

import pytest

from lifelong_edit.errors import BadInputError
from lifelong_edit.facts import Fact, Reader, claim_of, verbalise_claim


@pytest.mark.parametrize("evidence", [None, 'It is "Vienna".\nSo they say.'])
@pytest.mark.parametrize("claim", ["The sky is blue.", 'He said: "Claim: "no" Question: why?"'])
def test_a_verbalised_claim_is_found_again(claim: str, evidence: str | None) -> None:
    assert claim_of(verbalise_claim(claim, evidence)) == (claim, evidence)


@pytest.mark.parametrize("text", ["The sky is blue.", 'Claim: "The sky is blue."', "Claim: Question: Answer:"])
def test_any_other_text_is_a_claim_itself(text: str) -> None:
    assert claim_of(text) == (text, None)


def test_a_text_with_a_label_is_a_fact() -> None:
    (fact,) = Reader()({"text": " The sky is blue. ", "label": "TRUE", "id": 3}).facts
    assert fact == Fact(prompt="The sky is blue.", target="TRUE", id="3")
    (named,) = Reader()({"text": "The sky is blue.", "label": "TRUE", "subject": "sky"}).facts
    assert named.subject == "sky"
    with pytest.raises(BadInputError):
        Reader()({"text": " ", "label": "TRUE"})
