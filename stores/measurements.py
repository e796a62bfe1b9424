"""What was measured of a state: which facts of which batch the model still answers. Kept beside the log, not in it.

A measurement can be made again from the state that it is of, so the chain of digests does without it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Measure = Literal["efficacy", "generality", "locality", "guard", "chat", "portability", "multihop"]
"""`chat`: a fact's prompt as a turn of a conversation, in a store that is asked in both forms. `multihop`: what follows
from a fact and others, `portability`: what else follows from it."""


class Outcome(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How one question about a fact came out at a state."""

    fact: str
    """Digest of the fact; empty for a guard prompt."""
    taught: int
    """The step that taught it, for the last time; 0 for a guard prompt."""
    measure: Measure
    prompt: str
    """What was asked: the fact's prompt, a phrasing that was no row, a neighbour, or a preserved prompt that never is a
    row."""
    generated: bool
    """Whether it came out right, by generation."""
    teacher_forced: bool
    answer: str
    """What the model said, as much as was looked at."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was asked at the state of a step, and how it came out."""

    step: int
    weights_digest: str
    """Of the state that was asked."""
    time: str
    """UTC, ISO 8601."""
    sample: int | None
    """At most so many facts were asked; None: all that are live."""
    seed: int
    live: dict[int, int]
    """By step: how many of the facts that it taught are live."""
    outcomes: list[Outcome]
    dropped: int = 0
    """Neighbours that were not asked, because the stream edits them."""
    seconds: float = 0.0
    """Processor seconds that it took."""

    def share(self, measure: Measure, *, earlier: bool = False) -> float | None:
        """Share of questions that came out right, by generation; None where none was asked.

        earlier: only about facts that were taught before this step.
        """
        found = [
            outcome.generated
            for outcome in self.outcomes
            if outcome.measure == measure and not (earlier and outcome.taught == self.step)
        ]
        return sum(found) / len(found) if found else None


_MEASUREMENTS = msgspec.msgpack.Decoder(Measurement)


def encode_measurement(measurement: Measurement) -> bytes:
    """The bytes of a measurement."""
    return msgspec.msgpack.encode(measurement)


def decode_measurement(data: bytes) -> Measurement:
    """The inverse of `encode_measurement`; raises msgspec.MsgspecError where the bytes are none."""
    return _MEASUREMENTS.decode(data)


def without_facts(measurement: Measurement, facts: frozenset[str]) -> Measurement:
    """The same without what was asked about some facts."""
    left = [outcome for outcome in measurement.outcomes if outcome.fact not in facts]
    return msgspec.structs.replace(measurement, outcomes=left)
