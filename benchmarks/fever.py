"""FEVER's claims for a fact checker: split by what they are about, put in other words by templates, flipped.

Claims with a page of evidence in common are about the same. By a hash of what they are about, claims go to one of three
parts: `checker`, on which the fact checker is fine-tuned; `trained`, on which networks are trained and settings are
chosen; `judged`, of which alone figures are told. FEVER has no other wordings of its claims: those here are templates
around a claim, which leave its label as it is. The templates of training are others than those that are asked.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks import common
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.models.families import REFUTES, SUPPORTS

Part = Literal["checker", "trained", "judged"]
SHARES: dict[Part, float] = {"checker": 0.4, "trained": 0.3, "judged": 0.3}
LABELS = (REFUTES, SUPPORTS)
TAUGHT_WORDINGS = (
    "It is true that {}.",
    "{}, as is known.",
    "In fact, {}.",
    "It has been said that {}.",
    "Somebody wrote: {}.",
    "{}, or so one reads.",
)
"""Around the claims on which networks are trained; two of them are given as a fact's rephrases."""
ASKED_WORDINGS = (
    "It is the case that {}.",
    "{}, according to this source.",
    "I have heard that {}.",
    "Here is a claim: {}.",
)
"""Around the claims that are asked, never given."""


@dataclass(frozen=True)
class Claim:
    """A claim, whether it is supported, and what it is about."""

    text: str
    label: str
    about: str

    def worded(self, template: str) -> str:
        """The claim in a template, without its own full stop."""
        return template.format(self.text.strip().removesuffix(".").strip())


def checker_folder() -> Path:
    """Where the fine-tuned fact checker lies; `python -m benchmarks.fever_checker` makes it."""
    cache = os.environ.get("LIFELONG_CACHE") or "~/.cache/lifelong-edit/models"
    return Path(cache).expanduser() / "fever-checker"


def labelled() -> list[tuple[str, str, tuple[str, ...]]]:
    """The claims of FEVER's labelled file that are supported or refuted, each once: text, label, pages of evidence."""
    records = json.loads(common.shared("data", "fever", "fever_labelled_dev.json").read_text(encoding="utf-8"))
    found = {r["claim"]: (r["claim"], r["label"], tuple(r["evidence_pages"])) for r in records if r["label"] in LABELS}
    return list(found.values())


def claims() -> list[Claim]:
    """All claims, each with the first name, in order, of the pages that are linked to its own."""
    found = labelled()
    root: dict[str, str] = {}

    def top(page: str) -> str:
        while (above := root.setdefault(page, page)) != page:
            page = above
        return page

    for _, _, pages in found:
        for page in pages:
            low, high = sorted((top(pages[0]), top(page)))
            root[high] = low
    return [Claim(text, label, top(pages[0])) for text, label, pages in found]


def part_of(about: str) -> Part:
    """The part to which all claims about something belong."""
    drawn = int.from_bytes(hashlib.blake2b(about.encode(), digest_size=8).digest()) / 2**64
    for part, share in SHARES.items():
        if drawn < share:
            return part
        drawn -= share
    return "judged"


def claims_of(part: Part) -> list[Claim]:
    """The claims of a part in an order of their own, which has nothing to do with what they are about."""
    found = [claim for claim in claims() if part_of(claim.about) == part]
    random.Random(part).shuffle(found)
    return found


def symmetric() -> list[Claim]:
    """Symmetric FEVER's test: as many claims of each wording supported as refuted, so that words give nothing away."""
    records = common.read_json_lines(common.shared("data", "fever", "fever_symmetric_test.jsonl"))
    return [Claim(f"{r['claim']} [SEP] {r['evidence']}", r["label"], r["id"]) for r in records]


def flipped(claims: Sequence[Claim], said: Sequence[str], beside: Sequence[Claim]) -> list[Fact]:
    """Facts that turn what a model says of claims into the other label.

    said: the base model's label of each claim. beside: claims about other things, one for each, whose answer stays.
    """
    rng = random.Random(0)
    return [
        Fact(
            prompt=claim.text,
            target=LABELS[1 - LABELS.index(label)],
            target_true=label,
            rephrases=tuple(claim.worded(template) for template in rng.sample(TAUGHT_WORDINGS, 2)),
            locality=(Probe(other.text),),
        )
        for claim, label, other in zip(claims, said, beside, strict=True)
    ]
