"""Solving again for all facts batch after batch, for rules whose asks depend on the order in which facts come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lifelong_edit.bench import Say, State, silent
from lifelong_edit.editors.contract import Brought, Change, Editor, Lesson, Whole, moved_by, require_cold, require_live
from lifelong_edit.editors.ridge.together import CHUNK, slices
from lifelong_edit.facts import Fact
from lifelong_edit.stores import WEIGHTS, Entry, digest_bytes


def batch_after_batch(
    editor: Editor,
    facts: Sequence[Fact],
    start: Mapping[str, Tensor] | None,
    rule: str,
    reason: str,
    say: Say = silent,
    size: int = CHUNK,
) -> tuple[Change, State]:
    """All facts again from the base, `size` at a time in the order of their digests: a function of the facts alone.

    What it brings is weights and the parts that replace, with nothing of an earlier history in them; beside it the
    state that it leads to. Raises UsageError without facts, and for a warm start, with the rule's own reason.
    """
    require_live(facts)
    require_cold(start, f"editor {rule} relearns from the base alone, since {reason}")
    ordered = sorted(facts, key=lambda fact: fact.digest)
    # Draws are a function of the facts alone, as the order is.
    state = State(digest=digest_bytes(*(fact.digest.encode() for fact in ordered)))
    batches = list(slices(ordered, size))
    told: list[Mapping[str, object]] = []
    for number, batch in enumerate(batches, start=1):
        change = editor.learn(state, Lesson(batch))
        state = moved_by(state, change, batch)
        told.append(change.report)
        say(f"batch {number} of {len(batches)}: {len(batch)} facts learned again")
    parts: dict[str, Brought] = {WEIGHTS: Whole({n: shift.cpu().numpy() for n, shift in state.shifts.items()})}
    for name, content in state.parts.items():
        parts[name] = Whole({n: array for n, array in content.items() if not isinstance(array, Entry)})
    return Change(parts, {"passes": len(batches), "batches": told}), state
