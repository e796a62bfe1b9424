"""What one edit adds to a store, rule by rule, as `scripts/edit-bytes.py` measured it. No torch."""

from __future__ import annotations

import functools
from pathlib import Path

import msgspec

SIZES = Path(__file__).with_name("sizes.json")


class Sizes(msgspec.Struct, frozen=True):
    """Of a batch of so many facts into the bundled model: bytes for each of them, by rule."""

    facts: int
    bytes: dict[str, int]


@functools.cache
def sizes() -> Sizes:
    """What was measured."""
    return msgspec.json.decode(SIZES.read_bytes(), type=Sizes)
