"""UltraEdit: the identity hypernetwork with a running normaliser (arXiv 2505.14679)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lifelong_edit.bench import Bench, Say, State, silent
from lifelong_edit.editors.contract import Brought, Change, Entries, Lesson, Whole, moved_by, require_live
from lifelong_edit.editors.ridge.editor import RidgeEditor, log_ridge_of
from lifelong_edit.editors.ridge.targets import Asker, Moments, Seen
from lifelong_edit.editors.ridge.together import CHUNK, slices, traced_keys
from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.stores import KEYS, MOMENTS, WEIGHTS, digest_bytes


class NormalisedTargets:
    """d = −η ‖ĥ‖² ĝ with ĥ, ĝ normalised by mean and deviation over all edits so far.

    In this project's joint solve ĝ is not centred, so that a row without gradient asks for nothing.
    The moments (count, mean, sum of squared distances) are a part of the store's state.
    """

    # Moments are taken over each edit once.
    recalls = False

    def __init__(self, eta: float, centre: bool) -> None:
        self.eta, self.centre = eta, centre

    def ready(self, seen: Seen, moments: Moments) -> Asker:
        """The rule with the moments of earlier edits and of the rows seen."""
        found = {n: _joined(moments, n, torch.cat([seen.keys[n], seen.gradients[n]], -1)) for n in seen.keys}
        kept = {f"{n}/{what}": t.numpy() for n, m in found.items() for what, t in zip(PARTS, m, strict=True)}

        def ask(module: str, keys: Tensor, gradients: Tensor) -> Tensor:
            count, mean, squares = (m.to(keys) for m in found[module])
            if count < 2:  # no deviation to measure by: facts that say nothing at this module's positions
                return torch.zeros_like(gradients)
            deviation = (squares / (count - 1).clamp_min(1)).sqrt() + 1e-8
            width = keys.shape[1]
            key = (keys - mean[:width]) / deviation[:width]
            gradient = (gradients - mean[width:] if self.centre else gradients) / deviation[width:]
            return -self.eta * key.square().sum(-1, keepdim=True) * gradient

        return Asker(ask, kept)

    def ridge(self, module: str) -> float | None:
        """λ = 1, as published."""
        return 1.0


STEP = 1e-6
"""η unless the settings say otherwise, as published."""
PARTS = ("count", "mean", "squares")


def _joined(state: Moments, name: str, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and sum of squared distances of earlier rows and these together (Chan et al. 1979)."""
    rows = rows.cpu().double()
    count = torch.tensor(float(len(rows)), dtype=torch.float64)
    mean = rows.mean(0) if len(rows) else rows.new_zeros(rows.shape[1])  # none: no fact mentions its subject
    squares = (rows - mean).square().sum(0)
    if f"{name}/count" not in state:
        return count, mean, squares
    old_count, old_mean, old_squares = (torch.from_numpy(np.array(state[f"{name}/{part}"])) for part in PARTS)
    total = count + old_count
    share = count / total.clamp_min(1)
    change = mean - old_mean
    return total, old_mean + change * share, old_squares + squares + change.square() * share * old_count


class UltraEditor(RidgeEditor):
    """The rule at work. Its asks depend on the order in which facts come, so it relearns them in an order of their own.

    A solve over all facts together, as the other rules of the family make it, is none of UltraEdit's: with the moments
    of all facts and its own step it asks for next to nothing.
    """

    def relearn(
        self,
        facts: Sequence[Fact],
        *,
        start: Mapping[str, Tensor] | None = None,
        identity: str = "",
        say: Say = silent,
    ) -> Change:
        """All facts again from the base, batch after batch in the order of their digests, with empty moments."""
        require_live(facts)
        if start is not None:
            raise UsageError(
                "editor ultraedit relearns from the base alone, since its moments are those of the facts in their "
                "order; found a warm start, expected none; leave --start out"
            )
        ordered = sorted(facts, key=lambda fact: fact.digest)
        # Draws are a function of the facts alone, as the order is.
        state = State(digest=digest_bytes(*(fact.digest.encode() for fact in ordered)))
        batches = list(slices(ordered, CHUNK))
        told: list[Mapping[str, object]] = []
        for number, batch in enumerate(batches, start=1):
            change = self.learn(state, Lesson(batch))
            state = moved_by(state, change, batch)
            told.append(change.report)
            say(f"batch {number} of {len(batches)}: {len(batch)} facts learned again")
        weights = {name: shift.cpu().numpy() for name, shift in state.shifts.items()}
        report: dict[str, object] = {"passes": len(batches), "batches": told}
        parts: dict[str, Brought] = {
            WEIGHTS: Whole(weights),
            KEYS: Entries(lambda: traced_keys(self.bench, self.settings, ordered, state.shifts), whole=True),
            MOMENTS: Whole(state.parts[MOMENTS]),
        }
        return Change(parts, report)


def make(bench: Bench) -> UltraEditor:
    """The rule with the store's step."""
    options = RidgeEditor.options_of(bench)
    eta = STEP if options.eta is None else options.eta
    return UltraEditor(bench, NormalisedTargets(eta, centre=options.ask == "published"))


def usual(bench: Bench) -> Mapping[str, float]:
    """What settings that may be none come to on a bench, see `Rule.usual`."""
    return {"eta": STEP, "log_ridge": log_ridge_of(bench, 1.0)}
