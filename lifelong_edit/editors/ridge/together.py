"""Solving again over all live facts together (design: reconsolidation), so that old edits are not slowly forgotten.

Solving again from what is stored would change nothing: successive solves are recursive least squares. What stored rows
cannot know is that keys go stale when lower modules change, and that value differences were asked for at weights that
no longer exist. So all live facts and the preserved prompts are traced again, in several passes. Knows no store.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lifelong_edit.bench import Bench, Say, silent
from lifelong_edit.editors.contract import Bookmark, Brought, Change, Entries, Whole, require_live
from lifelong_edit.editors.ridge.held import Preservation
from lifelong_edit.editors.ridge.passes import SumSystem, System, fact_keys, one_pass
from lifelong_edit.editors.ridge.rows import derived
from lifelong_edit.editors.ridge.settings import RidgeSettings
from lifelong_edit.editors.ridge.targets import Asker, Seen, Targets
from lifelong_edit.errors import StepRefusedError
from lifelong_edit.facts import Fact
from lifelong_edit.models import BASE
from lifelong_edit.numerics.lowrank import Gram
from lifelong_edit.stores import KEYS, WEIGHTS, FactKeys
from lifelong_edit.tracing.rows import Row, draw, drawn_rows, fact_rows, subjects_of
from lifelong_edit.tracing.trace import trace, traces

T = TypeVar("T")
CHUNK = 64
"""Facts, or four times as many preserved prompts, that are traced and summed at a time: memory stays flat."""
WINDOW = 4
"""Passes whose losses are looked at together."""
SAMPLE = 256
"""Facts whose gradients at the base weights make the output metric and the step."""
MARK_EVERY = 10.0
"""Seconds between two times that a solve keeps how far it is."""
NEAR = 1024
"""Facts, at the most, near which preserved prompts are looked for."""


class Together:
    """One solve over all facts: its settings, the rule as it asks here, and the passes so far."""

    def __init__(
        self,
        bench: Bench,
        settings: RidgeSettings,
        targets: Targets,
        preservation: Preservation,
        ridges: Mapping[str, float],
        bookmark: Bookmark | None = None,
    ) -> None:
        self.bench, self.settings, self.targets = bench, settings, targets
        self.preservation, self.ridges, self.bookmark = preservation, ridges, bookmark
        self._marked = time.monotonic()

    def solve(
        self, facts: Sequence[Fact], start: Mapping[str, Tensor] | None, identity: str, say: Say = silent
    ) -> Change:
        """Solve for the facts and the preserved prompts together, see `Editor.relearn`.

        Rows are taken in the order of the facts' digests: in each pass the prompts and `reconsolidation_phrasings` of
        each fact's phrasings, drawn afresh. Every pass moves all modules from one trace; the last is the one with which
        the loss has `settled`, or number `reconsolidation_passes`. The solve is the joint one, whatever the setting
        `ask` says of batches.
        """
        require_live(facts)
        bench, s, facts = self.bench, self.settings, sorted(facts, key=lambda fact: fact.digest)
        drawn = (s.seed, identity, tuple(f.digest for f in facts))
        asker = self.ready(facts, drawn)
        subjects = subjects_of(facts)
        fixed = bench.loaded.world.kept(
            bench.names, lambda n: self.preservation.gram(n, s, s.reconsolidation_keys, {}, subjects)
        )
        near = self.directions(facts)
        shifts = bench.loaded.zeros()
        shifts = shifts if start is None else {n: start[n].to(shifts[n]) for n in shifts}
        made = [] if bench.preserved.probes and not s.derived else self._derived(facts, drawn)
        # Token numbers are a hundred times smaller than what a pass makes of them, and a tenth of its time to find.
        own = [fact_rows(bench.loaded, part, s.phrasings, closed=s.closes) for part in slices(facts, CHUNK)]
        shifts, losses, counts = self.begun(shifts)
        while len(losses) < s.reconsolidation_passes and not settled(losses, s.reconsolidation_gain):
            kept = made + bench.preserved.rows(
                s.reconsolidation_preserved, near, s.preserved_weight, subjects, *drawn, len(losses)
            )
            parts = [drawn_rows(p, s.reconsolidation_phrasings, s.seed, identity, len(losses)) for p in own]
            shifts, loss = self.once(len(losses), asker, shifts, fixed, [*parts, *slices(kept, 4 * CHUNK)])
            losses.append(loss / len(facts))
            counts = {"facts": sum(map(len, parts)), "preserved": len(kept)}
            say(f"pass {len(losses)} over {len(facts)} facts and {len(kept)} preserved prompts: loss {losses[-1]:.3f}")
            self.mark(shifts, losses, counts)
        report: dict[str, object] = {"passes": len(losses), "loss": losses, "rows": counts, "norm": norms_of(shifts)}
        brought: dict[str, Brought] = {
            WEIGHTS: Whole({name: shift.cpu().numpy() for name, shift in shifts.items()}),
            KEYS: Entries(partial(traced_keys, bench, s, facts, shifts), whole=True),
        }
        return Change(brought, report)

    def begun(self, shifts: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[float], dict[str, int]]:
        """ΔW, losses and rows of the passes that this very solve made before it was killed; else it begins here."""
        kept = self.bench.loaded.world.lead(lambda: None if self.bookmark is None else self.bookmark.read())
        if kept is None:
            return shifts, [], {"facts": 0, "preserved": 0}
        found = {n: torch.from_numpy(kept[f"shift/{n}"]).to(shift) for n, shift in shifts.items()}
        facts, preserved = kept["counts"].tolist()
        return found, kept["losses"].tolist(), {"facts": facts, "preserved": preserved}

    def mark(self, shifts: Mapping[str, Tensor], losses: Sequence[float], counts: Mapping[str, int]) -> None:
        """Keep how far the solve is, where that is not much of its time."""
        if self.bookmark is None or not self.bench.loaded.world.leads or time.monotonic() - self._marked < MARK_EVERY:
            return
        arrays: dict[str, np.ndarray] = {f"shift/{n}": shift.cpu().numpy() for n, shift in shifts.items()}
        figures = {"losses": np.array(losses), "counts": np.array([counts["facts"], counts["preserved"]])}
        self.bookmark.write({**arrays, **figures})
        self._marked = time.monotonic()

    def once(
        self,
        number: int,
        asker: Asker,
        shifts: Mapping[str, Tensor],
        fixed: Mapping[str, Gram],
        parts: Sequence[Sequence[Row]],
    ) -> tuple[dict[str, Tensor], float]:
        """ΔW after pass `number`, counted from 0, over rows in parts, and the facts' summed loss before it.

        Every pass but the first lets go of a share of ΔW before it traces. fixed: P by module; of several processes
        each has that of its own modules.
        """
        kept = 1 - self.settings.reconsolidation_decay
        shifts = {n: kept * shift for n, shift in shifts.items()} if number else shifts
        system = SumSystem({n: gram.clone() for n, gram in fixed.items()}, self.ridges)
        loss = self.sum_up(system, asker, shifts, parts)
        found = self.bench.loaded.world.named(shifts, lambda n: system.shift(n).to(shifts[n]))
        return {n: shift + found[n] for n, shift in shifts.items()}, loss

    def sum_up(
        self, system: System, asker: Asker, shifts: Mapping[str, Tensor], parts: Sequence[Sequence[Row]]
    ) -> float:
        """Hand all rows, traced at ΔW, to a system; the facts' summed loss there.

        Of as many parts as there are processes the micro-batches are shared out together; what is summed is summed part
        by part all the same.
        """
        loss, loaded = 0.0, self.bench.loaded
        with loaded.at(shifts):
            for group in slices(parts, loaded.world.at_once):
                found = traces(loaded, group, self.bench.settings.micro_batch)
                for rows, traced in zip(group, found, strict=True):
                    one_pass(self.bench, asker, rows, system, self.settings.preserved_step, traced)
                    loss += sum(row.weight * float(traced.losses[i]) for i, row in enumerate(rows) if row.kind == "new")
        return loss

    def ready(self, facts: Sequence[Fact], drawn: tuple[object, ...]) -> Asker:
        """The rule made ready at the base weights on a sample of the facts."""
        sample = [facts[i] for i in draw(len(facts), SAMPLE, "metric", *drawn)]
        with self.bench.loaded.at(BASE):
            return self.targets.ready(self.seen(sample), {})

    def seen(self, facts: Sequence[Fact]) -> Seen:
        """What all rows of the facts show at the model as it stands."""
        rows = fact_rows(self.bench.loaded, facts, self.settings.phrasings, closed=self.settings.closes)
        traced = trace(self.bench.loaded, rows, self.settings.micro_batch)
        return Seen(traced.keys, traced.gradients, float(traced.losses.sum()))

    def _derived(self, facts: Sequence[Fact], drawn: tuple[object, ...]) -> list[Row]:
        """Preserved rows made from the facts, for a store that has none or asks for them: at most as many as facts."""
        count = min(len(facts), self.settings.reconsolidation_preserved)
        return derived(self.bench, self.settings, facts, count, *drawn)

    def directions(self, facts: Sequence[Fact]) -> Tensor:
        """Directions of up to NEAR facts, near which preserved prompts are looked for, (n, d_in)."""
        found = self.bench.conflict_keys(facts[:: -(-len(facts) // NEAR)])
        return torch.from_numpy(found).to(self.bench.loaded.device)


def traced_keys(
    bench: Bench, s: RidgeSettings, facts: Sequence[Fact], shifts: Mapping[str, Tensor]
) -> Iterator[dict[str, FactKeys]]:
    """The keys of facts at the base weights plus `shifts`, CHUNK facts at a time."""
    for part in slices(facts, CHUNK):
        rows = fact_rows(bench.loaded, part, s.phrasings, closed=s.closes)
        with bench.loaded.at(shifts):
            traced = trace(bench.loaded, rows, s.micro_batch, gradients=False)
        yield fact_keys(bench, traced, rows, bench.conflict_of(part))


def settled(losses: Sequence[float], gain: float) -> bool:
    """Whether the last WINDOW passes lowered the loss by less than the share `gain` of the first one each.

    Compared are means, with the WINDOW passes before them: the draw of phrasings makes the loss of one uncertain. With
    a `gain` of 0 it never has.
    """
    if not gain or len(losses) < 2 * WINDOW:
        return False
    before, after = sum(losses[-2 * WINDOW : -WINDOW]) / WINDOW, sum(losses[-WINDOW:]) / WINDOW
    return before - after < WINDOW * gain * losses[0]


def norms_of(shifts: Mapping[str, Tensor]) -> dict[str, float]:
    """‖ΔW‖ by module. Raises StepRefusedError where a number is not finite: of the last pass no further one tells."""
    norms = {n: float(shift.norm()) for n, shift in shifts.items()}
    if not all(map(math.isfinite, norms.values())):
        raise StepRefusedError("a weight shift is not finite; expected numbers; the reconsolidation was refused")
    return norms


def slices(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Items in their order, `size` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
