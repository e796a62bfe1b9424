"""One batch of facts: passes of tracing, asking and solving, from a state to a proposed step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lifelong_edit.editors.contract import Asker, Editor
from lifelong_edit.editors.malmen.network import NetworkSet, read_checkpoint
from lifelong_edit.editors.registry import make_editor
from lifelong_edit.editors.ridge.conflictkeys import centred_keys, conflict_of
from lifelong_edit.errors import StepRefusedError, UsageError
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.models import LoadedModel
from lifelong_edit.models.devices import solve_device
from lifelong_edit.numerics.grams import ExactGram, FactKeys, to_grid
from lifelong_edit.numerics.solver import Factor, Held, Solution, factorise, solve, woodbury_is_cheaper
from lifelong_edit.numerics.textgram import TextGrams
from lifelong_edit.policies.scoring import fixed_scorer
from lifelong_edit.settings import Settings
from lifelong_edit.stores.tensors import Dense, Factors, Shift, materialise
from lifelong_edit.tracing.derived import derived_rows
from lifelong_edit.tracing.preservation import (
    Tensors,
    load_preserved,
    lowest_keys,
    prepare_preserved,
    prepare_text,
    preserved_phase,
)
from lifelong_edit.tracing.rows import Row, draw, fact_rows, subjects_of, without_mention
from lifelong_edit.tracing.trace import Trace, trace


@dataclass
class SolveState:
    """Where a batch starts: ΔW per module (d_in, d_out), the live facts, their keys, the editor's own state.

    digest: content digest of the state (weights, live set, what was fixed at `init`); every draw is a function of it.
    """

    shifts: dict[str, Tensor]
    live: dict[str, Fact]
    keys: dict[str, FactKeys]
    editor_state: dict[str, np.ndarray] = field(default_factory=dict)
    digest: str = ""

    def follow(
        self,
        facts: Sequence[Fact],
        keys: Mapping[str, FactKeys],
        editor_state: Mapping[str, np.ndarray],
        retired: Sequence[str] = (),
    ) -> None:
        """Take over a step's live set, keys and editor state. Keys stay the same objects for the grams."""
        for digest in retired:
            self.live.pop(digest, None)
            self.keys.pop(digest, None)
        self.live.update((fact.digest, fact) for fact in facts)
        self.keys.update((digest, found) for digest, found in keys.items() if digest in self.live)
        self.editor_state = dict(editor_state) or self.editor_state

    def apply(self, proposal: Proposal, facts: Sequence[Fact], retired: Sequence[str] = ()) -> None:
        """Move on by a proposal that no log keeps: weights and all."""
        for name, shift in proposal.shift.items():
            before, change = self.shifts.get(name), torch.from_numpy(materialise(shift))
            self.shifts[name] = change if before is None else before + change.to(before.device)
        self.follow(facts, proposal.keys, proposal.editor_state, retired)


@dataclass
class Proposal:
    """What a batch would change: a shift per module, keys of the facts traced, the editor's state, a report."""

    shift: dict[str, Shift]
    keys: dict[str, FactKeys]
    editor_state: dict[str, np.ndarray]
    report: dict[str, object]


Say = Callable[[str], None]


def silent(phase: str) -> None:
    """Says nothing."""


def prepare(
    loaded: LoadedModel,
    settings: Settings,
    *,
    text: Sequence[str],
    preserve: Sequence[Probe] = (),
    say: Say = silent,
) -> Tensors:
    """Everything that `init` fixes, as arrays: text grams, key grids, preserved prompts, conflict centre."""
    loaded.set_shifts({})
    say("measuring the text")
    fixed = prepare_text(loaded, text, settings.text_tokens, settings.micro_batch, settings.gram_rank, say)
    place = solve_device(loaded.device)
    scale = {m.name: torch.from_numpy(fixed[f"scale/{m.name}"]).to(place) for m in loaded.modules}
    say(preserved_phase(preserve))
    fixed |= prepare_preserved(loaded, preserve, settings.preserved_tokens, settings.micro_batch, scale)
    if "preserved/keys" in fixed:
        fixed["conflict/mean"] = fixed["preserved/keys"].mean(0)
    else:
        guard = [row.tolist() for row in fixed["guard/windows"]]
        starts = [window[: 4 + i % 24] for i, window in enumerate(guard * 8)]
        fixed["conflict/mean"] = lowest_keys(loaded, starts, settings.micro_batch).mean(0).cpu().numpy()
    return fixed


class Bench:
    """A model with what its store fixed at `init`: made once, used for every batch."""

    def __init__(
        self, loaded: LoadedModel, settings: Settings, fixed: Tensors, networks: NetworkSet | Path | None = None
    ) -> None:
        self.loaded, self.settings = loaded, settings
        networks = read_checkpoint(networks) if isinstance(networks, Path) else networks
        if networks is not None and settings.editor == "malmen":
            networks.check(loaded.modules)
            networks = networks.to(loaded.device)
        self.editor: Editor = make_editor(settings, networks)
        device = loaded.device
        self.names = [m.name for m in loaded.modules]
        self.at_subject = frozenset(m.name for m in loaded.modules if m.positions == "subject")
        self.text_gram = TextGrams(fixed, self.names, device)
        self.scale = {n: torch.from_numpy(fixed[f"scale/{n}"]).to(solve_device(device)) for n in self.names}
        self.conflict_mean = torch.from_numpy(fixed["conflict/mean"]).to(device)
        self.scorer = fixed_scorer(fixed)
        self.guard_windows = torch.from_numpy(fixed["guard/windows"].astype(np.int64))
        self.preserved = load_preserved(fixed, loaded.modules, self.conflict_mean, settings.seed)
        self.live_gram = {n: ExactGram(n, self.scale[n]) for n in self.names}
        self.preserved_gram = {n: ExactGram(n, self.scale[n]) for n in self.names}

    @property
    def published(self) -> bool:
        """Whether batches are solved as the original MALMEN does: one pass, P = 0, prompts only."""
        return self.settings.ask == "published"

    def ridge(self, module: str) -> float:
        """λ of a module's solve: the editor's own, the setting's exp(ℓ)·trace(C₀)/d_in, or 1."""
        own = self.editor.ridge(module)
        if self.settings.log_ridge is not None:
            return math.exp(self.settings.log_ridge) * self.text_gram.trace(module) / self.text_gram.width(module)
        return 1.0 if own is None else own

    def preservation(self, module: str, live: Mapping[str, FactKeys], subjects: frozenset[str] = frozenset()) -> Tensor:
        """P = c₀C₀ + c₁ Σ kᵀk over preserved prompts + Σ kᵀk over `live`, (d_in, d_in) float64.

        live: the live facts that are not among the rows. subjects: case-folded ones that facts have changed; what
        preserved prompts say of them may change. All others are held by their keys in the base model, rows or not.
        """
        if self.published:
            return torch.zeros_like(self.text_gram[module])
        s, held = self.settings, self.preserved.keys_outside(subjects) if self.settings.preserved_keys else {}
        c0 = s.subject_c0 if module in self.at_subject else s.c0
        gram = self.text_gram.add_to(self.live_gram[module].over(live), module, c0)
        return gram.add_(self.preserved_gram[module].over(held), alpha=s.preserved_keys) if held else gram


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


def select_rows(
    bench: Bench,
    state: SolveState,
    facts: Sequence[Fact],
    live: Sequence[str],
    hidden: frozenset[str] = frozenset(),
    conflict: Mapping[str, np.ndarray] | None = None,
    replaced: Mapping[str, Sequence[Fact]] | None = None,
) -> list[Row]:
    """The rows of a batch: new facts, a sample of earlier live ones, preserved prompts near the batch.

    live: digests of the live facts that may be rehearsed, sorted. hidden: further case-folded subjects
    that must not become preserved rows. conflict, replaced: as of `edit_batch`.
    """
    s, tokenizer = bench.settings, bench.loaded.tokenizer
    if bench.published:
        return fact_rows(tokenizer, facts, s.phrasings)
    batch = tuple(f.digest for f in facts)
    rehearsed = [state.live[live[i]] for i in draw(len(live), s.rehearse, "rehearsal", s.seed, state.digest, batch)]
    rows = fact_rows(tokenizer, facts, s.phrasings, replaced=replaced)
    rows += fact_rows(tokenizer, rehearsed, s.phrasings, "rehearsal")
    if s.preserved and bench.preserved.probes:
        near = centred_keys(bench, conflict or conflict_of(bench, facts), facts)
        subjects = hidden | changed_subjects(state, facts)
        rows += bench.preserved.rows(s.preserved, near, s.preserved_weight, subjects, s.seed, state.digest, batch)
    elif s.preserved:
        known = [*facts, *(state.live[digest] for digest in live)]
        rows += derived_rows(bench.loaded, s, known, s.preserved, s.seed, state.digest, batch)
    return rows


def changed_subjects(state: SolveState, facts: Sequence[Fact]) -> frozenset[str]:
    """Case-folded subjects of the facts and of all live ones: what preserved prompts say of them may change."""
    return subjects_of((*facts, *state.live.values()))


def ready_editor(bench: Bench, state: SolveState, rows: Sequence[Row]) -> Asker:
    """The editor made ready on the gradients of the solve's own facts at the base weights (ΔW = 0).

    Of rehearsed facts one row each is enough: they are there so that the metric is not the new batch's alone.
    """
    own, seen = list[Row](), set[str | None]()
    for row in rows:
        recalled = row.kind == "rehearsal" and row.fact not in seen and bench.editor.recalls
        if row.kind == "new" or recalled:
            own.append(row)
            seen.add(row.fact)
    bench.loaded.set_shifts({})
    traced = trace(bench.loaded, own, bench.settings.micro_batch)
    return bench.editor.ready(traced.keys, traced.gradients, state.editor_state, float(traced.losses.sum()))


def solve_pass(
    bench: Bench, asker: Asker, traced: Trace, rows: Sequence[Row], held: Held
) -> dict[str, tuple[Tensor, Solution]]:
    """Asking and solving after one trace, all modules from the same one (Jacobi): D and solution per module."""
    solved = {}
    for name in bench.names:
        weights = traced.weights(rows, name)
        values = asker.ask(name, traced.keys[name], asking(bench, traced, rows, name))
        preserved, factor = held[name]
        solved[name] = (values, solve(traced.keys[name], values, weights, preserved, bench.ridge(name), factor))
    return solved


def asking(bench: Bench, traced: Trace, rows: Sequence[Row], module: str) -> Tensor:
    """The gradients that are asked with, (n, d_out): those of preserved rows at their own, smaller step."""
    gradients = traced.gradients[module]
    if bench.published:
        return gradients
    preserved = traced.kinds(rows, module, "preserved")[:, None]
    return torch.where(preserved, bench.settings.preserved_step * gradients, gradients)


def hold(
    bench: Bench, live: Mapping[str, FactKeys], rows: Sequence[Row], passes: int, subjects: frozenset[str] = frozenset()
) -> Held:
    """P per module for all passes of a batch, with a factor of P + λI where Woodbury will use it more than once."""
    held: dict[str, tuple[Tensor | None, Factor | None]] = {}
    for module in bench.loaded.modules:
        name, positions = module.name, sum(row.positions_in(module) for row in rows)
        preserved = None if bench.published else bench.preservation(name, live, subjects)
        worth = passes > 1 and woodbury_is_cheaper(positions, module.d_in)
        held[name] = (preserved, factorise(preserved, bench.ridge(name)) if worth and preserved is not None else None)
    return held


def edit_batch(
    bench: Bench,
    state: SolveState,
    facts: Sequence[Fact],
    *,
    retire: Sequence[str] = (),
    conflict: Mapping[str, np.ndarray] | None = None,
    replaced: Mapping[str, Sequence[Fact]] | None = None,
) -> Proposal:
    """Propose the step that teaches `facts`, replacing the live facts whose digests are in `retire`.

    conflict: the facts' conflict keys (and maybe others'), as of `conflict_of`, where they are known already.
    replaced: by digest of a new fact the earlier ones, live or not, in whose words it is taught too.
    A replaced fact leaves P and the rehearsal rows before its successor is solved. Raises StepRefusedError
    where a number of the solve is not finite; the model is left at the state's weights plus the proposal.
    """
    if not facts:
        raise UsageError("a batch without facts was given; expected at least one")
    clock, s, loaded = _Clock(), bench.settings, bench.loaded
    live = [d for d in sorted(state.live) if d not in set(retire)]
    conflict = conflict or conflict_of(bench, facts)
    rows = select_rows(bench, state, facts, live, conflict=conflict, replaced=replaced)
    unsaid = without_mention(loaded.modules, facts, rows)
    clock.lap("rows")
    # The published rules know no metric at the base weights: they are ready with what the pass itself traces.
    asker = None if bench.published else ready_editor(bench, state, rows)
    clock.lap("metric")
    among = {r.fact for r in rows}
    passes = 1 if bench.published else s.passes
    others = {d: state.keys[d] for d in live if d not in among}
    held = hold(bench, others, rows, passes, changed_subjects(state, facts))
    clock.lap("preservation")
    parts: dict[str, list[tuple[Tensor, Solution]]] = {n: [] for n in bench.names}
    shifts = {
        n: state.shifts.get(n, torch.zeros(m.d_in, m.d_out)) for n, m in zip(bench.names, loaded.modules, strict=True)
    }
    losses: list[float] = []
    enough = False
    while not enough:
        loaded.set_shifts(shifts)
        traced = trace(loaded, rows, s.micro_batch)
        clock.lap("trace")
        losses.append(float(traced.losses[torch.tensor([r.kind == "new" for r in rows])].mean()))
        asker = asker or bench.editor.ready(traced.keys, traced.gradients, state.editor_state)
        solved = solve_pass(bench, asker, traced, rows, held)
        shifts = {n: shifts[n] + solved[n][1].shift.float().to(shifts[n].device) for n in bench.names}
        for n in bench.names:
            parts[n].append(solved[n])
        clock.lap("solve")
        if len(losses) < passes:
            continue
        shift = {n: total_shift(parts[n]) for n in bench.names}
        keys, taken = keys_after(bench, state, shift, rows, conflict)
        enough = bench.published or taken >= s.taken_enough or len(losses) == passes + s.more_passes
        clock.lap("keys")
    report = {
        "seconds": clock.seconds,
        "rows": {kind: sum(r.kind == kind for r in rows) for kind in ("new", "rehearsal", "preserved")},
        "positions": {m.name: sum(r.positions_in(m) for r in rows) for m in loaded.modules},
        "passes": len(losses),
        "loss": losses,
        "norm": {n: float(np.linalg.norm(materialise(d))) for n, d in shift.items()},
        "without_mention": unsaid,
    }
    return Proposal(shift, keys, {} if asker is None else asker.state, report)


def total_shift(passes: Sequence[tuple[Tensor, Solution]]) -> Shift:
    """The shift of all passes of one module, from each one's D and solution: as factors where these are smaller.

    Raises StepRefusedError where a number is not finite.
    """
    dense = sum((solution.shift for _, solution in passes), start=torch.zeros(())).float().cpu().numpy()
    if not np.isfinite(dense).all():
        raise StepRefusedError("a weight shift is not finite; expected numbers; the step was refused")
    rows = sum(len(values) for values, _ in passes)
    if rows * sum(dense.shape) >= dense.size:
        return Dense(dense)
    left = torch.cat([solution.influence() for _, solution in passes], dim=1)
    right = torch.cat([values for values, _ in passes])
    return Factors(left.float().cpu().numpy(), right.float().cpu().numpy())


def keys_after(
    bench: Bench,
    state: SolveState,
    shift: Mapping[str, Shift],
    rows: Sequence[Row],
    conflict: Mapping[str, np.ndarray],
) -> tuple[dict[str, FactKeys], float]:
    """Keys of the new and rehearsed facts, traced once more at the weights that the step leaves.

    conflict: the conflict keys of the new ones, digest → (d_in,).
    Beside them the share of new facts whose prompt is answered, every token of it more probable than all else together.
    """
    loaded = bench.loaded
    moved = {}
    for name, part in shift.items():
        before = state.shifts.get(name)
        change = torch.from_numpy(materialise(part))
        moved[name] = change if before is None else before + change.to(before.device)
    loaded.set_shifts(moved)
    own = [r for r in rows if r.fact is not None]
    traced = trace(loaded, own, bench.settings.micro_batch, gradients=False)
    first = {row.fact: i for i, row in reversed(list(enumerate(own))) if row.kind == "new"}
    taken = sum(float(traced.worst[i]) < math.log(2) for i in first.values()) / len(first)
    known = {digest: keys.conflict for digest, keys in state.keys.items()}
    return fact_keys(bench, traced, own, {**known, **conflict}), taken


def fact_keys(
    bench: Bench, traced: Trace, rows: Sequence[Row], conflict: Mapping[str, np.ndarray]
) -> dict[str, FactKeys]:
    """The keys of fact rows in a trace, on the grid, by fact; rows of no fact are passed over.

    conflict: digest → (d_in,), the facts' conflict keys, which no trace at edited weights can tell.
    """
    for name in bench.names:
        # A finite shift can still overflow a layer above it; on the grid that would become a silent zero.
        if not bool(torch.isfinite(traced.keys[name]).all()):
            raise StepRefusedError(f"a key of {name} is not finite after the step; expected numbers; it was refused")
    units = {n: to_grid(traced.keys[n], bench.scale[n]) for n in bench.names}
    facts = dict.fromkeys(row.fact for row in rows if row.fact is not None)
    spans: dict[str, dict[str, list[int]]] = {n: {digest: [] for digest in facts} for n in bench.names}
    for name, where in spans.items():
        for position, row in enumerate(traced.row[name].tolist()):
            digest = rows[row].fact
            if digest is not None:
                where[digest].append(position)
    return {
        digest: FactKeys({n: units[n][spans[n][digest]] for n in bench.names}, conflict[digest]) for digest in facts
    }
