"""The rule at work: keys and what holds still as in the ridge family, values by a search instead of one gradient."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from lifelong_edit.bench import Bench, Say, State, silent
from lifelong_edit.editors.contract import (
    Added,
    Arrays,
    Brought,
    Change,
    Entries,
    Given,
    Lesson,
    Whole,
    require_batch,
    require_live,
)
from lifelong_edit.editors.ridge.clock import Clock
from lifelong_edit.editors.ridge.passes import fact_keys
from lifelong_edit.editors.ridge.rows import changed_subjects, rehearsed
from lifelong_edit.editors.ridge.together import norms_of, slices
from lifelong_edit.editors.search.around import Around, around_grams
from lifelong_edit.editors.search.contexts import contexts_of, drawn_contexts
from lifelong_edit.editors.search.material import (
    Material,
    anchored_rows,
    behind_contexts,
    swapped_prompts,
)
from lifelong_edit.editors.search.searching import ThroughSolve, Variables
from lifelong_edit.editors.search.settings import SearchSettings
from lifelong_edit.facts import Fact, general_names
from lifelong_edit.models import BASE, LoadedModel, Shifts
from lifelong_edit.numerics.grams import ExactGram, rows_among, scaled_rows
from lifelong_edit.numerics.lowrank import Gram, few_enough
from lifelong_edit.numerics.solver import solve
from lifelong_edit.settings import StoreSettings
from lifelong_edit.stores import KEYS, WEIGHTS, FactKeys, smaller
from lifelong_edit.tracing.derived import answered_rows
from lifelong_edit.tracing.rows import AnyOf, Row, RowKind, draw, subjects_of
from lifelong_edit.tracing.trace import trace
from lifelong_edit.tracked import Without, in_order

NAMED = 50
"""Subjects that the preserved prompts should speak of: with fewer, names that everybody knows of stand beside them."""
NEAR = 256
"""Facts, at the most, near which preserved prompts are looked for."""
READ = 4
"""Contexts behind which a fact's key is read, beside its own words: what is changed there is to be changed in all."""
TRACED = 64
"""Facts whose rows are traced at a time where all are."""


class SearchEditor:
    """Facts in, value differences searched with the edit in place, a weight shift out."""

    def __init__(self, bench: Bench) -> None:
        assert isinstance(bench.settings, SearchSettings)  # the registry pairs rules with their settings
        self.bench, self.settings = bench, bench.settings
        self.contexts, self.around = contexts_of(bench.fixed.rule), Around(bench)
        self._live = {n: ExactGram(n, bench.scale[n]) for n in bench.names}

    @property
    def phrasings(self) -> int:
        """How many of a fact's rephrases are taught beside its prompt."""
        return self.settings.phrasings

    def require(self, fact: Fact) -> None:
        """Whatever the model can take: without a mention of its subject a fact is edited at its prompt's last token."""

    def kept_rows(self, facts: Sequence[Fact]) -> Sequence[Row]:
        """The rows of facts in their own words, each edited at one token."""
        return [row for rows in self.rows(facts, "new").values() for row in rows]

    def overlay(self, state: State) -> Shifts:
        """W₀ + ΔW."""
        return Shifts(state.shifts)

    # -- a batch

    def learn(self, state: State, lesson: Lesson) -> Change:
        """What teaching a batch would change, see `Editor.learn`."""
        require_batch(lesson.facts)
        clock, s, bench = Clock(), self.settings, self.bench
        gone = set(lesson.retire)
        live = in_order(Without(state.live, gone))
        drawn = (s.seed, state.digest, tuple(f.digest for f in lesson.facts))
        again = rehearsed(state, live, s.rehearse, s.seed, drawn[2])
        facts = [*lesson.facts, *again]
        rows = self.rows(lesson.facts, "new", lesson.replaced) | self.rows(again, "rehearsal")
        subjects = changed_subjects(state, lesson)
        conflict = dict(lesson.conflict) or bench.conflict_of(lesson.facts)
        material = self.material(facts, rows, subjects, bench.centred_keys(conflict, lesson.facts), drawn)
        clock.lap("rows")
        shifts = self.shifts_of(state)
        others = Without(state.keys, gone | rows.keys())
        variables = self.variables(material, shifts, self.held(others, subjects))
        clock.lap("preservation")
        search = ThroughSolve(bench, s, variables, material, drawn, shifts=shifts)
        known = {fact.digest: state.keys[fact.digest].conflict for fact in again} | conflict
        for rounds in (s.rounds, s.more_rounds):
            search.run(rounds)
            clock.lap("search")
            keys, taken = self.keys_after(search.shifts(), rows, known)
            clock.lap("keys")
            if taken >= s.taken_enough:
                break
        shift = {
            n: smaller((left @ variables.right[n]).cpu().numpy(), left.cpu().numpy(), variables.right[n].cpu().numpy())
            for n, left in variables.left.items()
        }
        report = search.report() | {"taken": taken, "rows": material.counts()}
        report |= {"seconds": clock.seconds, "norm": norms_of(variables.shifts())}
        return Change({WEIGHTS: Added(shift), KEYS: Entries(lambda: iter([keys]))}, report)

    def rows(
        self, facts: Sequence[Fact], kind: RowKind, replaced: Mapping[str, Sequence[Fact]] | None = None
    ) -> dict[str, list[Row]]:
        """By digest the rows of facts in their own words, each edited at one token."""
        return anchored_rows(self.bench, self.settings, facts, kind, replaced)

    def shifts_of(self, state: State) -> dict[str, Tensor]:
        """ΔW of a state, zeros where it has none."""
        modules = self.bench.loaded.modules
        return {m.name: state.shifts.get(m.name, torch.zeros(m.d_in, m.d_out)) for m in modules}

    def material(
        self,
        facts: Sequence[Fact],
        rows: Mapping[str, list[Row]],
        subjects: Container[str],
        near: Tensor,
        drawn: tuple[object, ...],
    ) -> Material:
        """What a search for facts may ask. near: (n, d_in), directions near which preserved prompts are drawn."""
        bench, s = self.bench, self.settings
        behind = [behind_contexts(bench, fact, self.contexts, rows[fact.digest][0].kind) for fact in facts]
        named = [p.subject for p in bench.preserved.probes if p.subject is not None]
        named = named if len(set(named)) >= NAMED else [*named, *general_names()]
        taken = AnyOf(subjects, subjects_of(facts))
        swapped = swapped_prompts(facts, named, s.swapped, taken, *drawn)
        kept = bench.preserved.rows(s.preserved, near, 1.0, subjects, *drawn)
        options = {"tokens": s.preserved_tokens, "micro_batch": s.micro_batch}
        kept = kept + answered_rows(bench.loaded, swapped, weight=1.0, **options)
        return Material([rows[f.digest] for f in facts], behind, kept)

    def held(self, others: Mapping[str, FactKeys], subjects: Container[str]) -> dict[str, Gram]:
        """P by module, (d_in, d_in) float64: text, all tokens of preserved prompts, the other live facts."""
        grams, s = {name: self._text_and(name, others) for name in self.bench.names}, self.settings
        self.around.add_to(grams, s.around, subjects)
        return grams

    def _text_and(self, module: str, others: Mapping[str, FactKeys]) -> Gram:
        """c₀C₀ and the gram of the other live facts: by its rows where text is kept as a factor and they are few."""
        bench, text = self.bench, self.bench.text_gram.low_rank(module, self.settings.c0)
        if text is not None:
            # half for what all tokens of the preserved prompts add, which is kept as a factor of the same rank
            among = rows_among(module, others.values(), len(text.rest))
            if few_enough(2 * len(text.rows) + among, len(text.rest)):
                return text.plus(scaled_rows(module, (others[d] for d in in_order(others)), bench.scale[module]))
        return bench.text_gram.add_to(self._live[module].over(others), module, self.settings.c0)

    def variables(self, material: Material, shifts: Mapping[str, Tensor], held: Mapping[str, Gram]) -> Variables:
        """The value differences to be searched for, all zero, at the facts' keys as they are at ΔW."""
        bench, s = self.bench, self.settings
        read = [[*own, *behind[:READ]] for own, behind in zip(material.rows, material.behind, strict=True)]
        rows = [row for own in read for row in own]
        fact = torch.tensor([i for i, own in enumerate(read) for _ in own])
        prompt = torch.tensor([row is own[0] for own in read for row in own])
        with bench.loaded.at(shifts):
            traced = trace(bench.loaded, rows, s.micro_batch, gradients=False)
        found = Variables.none()
        for module in bench.loaded.modules:
            name, of = module.name, traced.row[module.name].cpu()
            chosen = torch.ones(len(of), dtype=torch.bool) if module.positions == "subject" else prompt[of]
            keys, own = traced.keys[name][chosen.to(bench.loaded.desk(name))], fact[of][chosen]
            whole = module.positions == "subject"
            group, owner = (own, torch.arange(len(read))) if whole else (torch.arange(len(own)), own)
            ridge = math.exp(s.log_ridge) * bench.text_gram.trace(name) / bench.text_gram.width(name)
            weights = (1 / torch.bincount(group).float())[group]
            solved = solve(keys, keys.new_zeros(len(keys), 1), weights.to(keys.device), held[name], ridge)
            found.add(bench, name, keys, solved.influence(), group, owner)
        return found

    def keys_after(
        self, shifts: Mapping[str, Tensor], rows: Mapping[str, list[Row]], conflict: Mapping[str, object]
    ) -> tuple[dict[str, FactKeys], float]:
        """Keys of facts at the weights that a step leaves, and the share of the new ones answered in every form."""
        own = [row for found in rows.values() for row in found]
        with self.bench.loaded.at(shifts):
            traced = trace(self.bench.loaded, own, self.settings.micro_batch, gradients=False)
        first = {(row.fact, row.form): i for i, row in reversed(list(enumerate(own))) if row.kind == "new"}
        missed = {fact for (fact, _), i in first.items() if float(traced.worst[i]) >= math.log(2)}
        taken = 1 - len(missed) / max(1, len({fact for fact, _ in first}))
        return fact_keys(self.bench, traced, own, conflict), taken  # type: ignore[arg-type]

    def keys_at(
        self,
        shifts: Mapping[str, Tensor],
        facts: Sequence[Fact],
        conflict: Arrays,
        replaced: Mapping[str, Sequence[Fact]] | None = None,
    ) -> dict[str, FactKeys]:
        """Keys of facts at ΔW, see `KeepsKeys`."""
        return self.keys_after(shifts, self.rows(facts, "new", replaced), conflict)[0]

    # -- all facts together

    def relearn(
        self,
        facts: Sequence[Fact],
        *,
        start: Mapping[str, Tensor] | None = None,
        identity: str = "",
        say: Say = silent,
    ) -> Change:
        """What searching again for all facts would change, see `Editor.relearn`."""
        require_live(facts)
        bench, s, facts = self.bench, self.settings, sorted(facts, key=lambda fact: fact.digest)
        drawn = (s.seed, identity, tuple(f.digest for f in facts))
        rows, subjects = self.rows(facts, "new"), subjects_of(facts)
        sample = [facts[i] for i in draw(len(facts), NEAR, "near", *drawn)]
        near = torch.from_numpy(bench.conflict_keys([f.prompt for f in sample])).to(bench.loaded.device)
        material = self.material(facts, rows, subjects, near, drawn)
        shifts = self.shifts_of(State(shifts=dict(start or {})))
        variables = self.variables(material, shifts, self.held({}, subjects))
        search = ThroughSolve(bench, s, variables, material, drawn, s.reconsolidation_facts, say, shifts=shifts)
        search.run(s.reconsolidation_rounds)
        found = search.shifts()
        report = search.report() | {"norm": norms_of(found)}
        brought: dict[str, Brought] = {
            WEIGHTS: Whole({name: shift.cpu().numpy() for name, shift in found.items()}),
            KEYS: Entries(partial(self._all_keys, facts, found), whole=True),
        }
        return Change(brought, report)

    def _all_keys(self, facts: Sequence[Fact], shifts: Mapping[str, Tensor]) -> Iterator[dict[str, FactKeys]]:
        for part in slices(facts, TRACED):
            yield self.keys_after(shifts, self.rows(part, "new"), self.bench.conflict_of(part))[0]


def make(bench: Bench) -> SearchEditor:
    """The rule with what it fixed at `init`."""
    return SearchEditor(bench)


def fix(loaded: LoadedModel, settings: StoreSettings, given: Given) -> Arrays:
    """Contexts, and the grams of all tokens of the preserved prompts, on the base model."""
    assert isinstance(settings, SearchSettings)
    with loaded.at(BASE):
        contexts = drawn_contexts(loaded, given.text, settings.contexts, settings.context_tokens, settings.seed)
        return contexts | around_grams(loaded, given.preserve, settings.micro_batch, settings.gram_rank)
