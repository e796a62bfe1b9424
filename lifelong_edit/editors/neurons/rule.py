"""The rule at work: gates by a ridge regression, values by a search, both entries of each fact."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lifelong_edit.bench import Bench, Say, State, silent
from lifelong_edit.editors.contract import Arrays, Change, Entries, Given, Keyless, Lesson, require_batch, require_live
from lifelong_edit.editors.locate.targets import answered
from lifelong_edit.editors.neurons.gates import Regression, Shut, gates_of
from lifelong_edit.editors.neurons.grown import Grown
from lifelong_edit.editors.neurons.overlay import Neurons
from lifelong_edit.editors.neurons.reading import is_gated, states_of, stream_scale
from lifelong_edit.editors.neurons.searching import OfValues, Thinned, ended
from lifelong_edit.editors.neurons.settings import NeuronsSettings
from lifelong_edit.editors.neurons.sites import SITES, readers_of
from lifelong_edit.editors.ridge.clock import Clock
from lifelong_edit.editors.ridge.together import slices
from lifelong_edit.editors.search.around import encoded_questions
from lifelong_edit.editors.search.contexts import contexts_of, drawn_contexts
from lifelong_edit.editors.search.material import behind_contexts, prompts_in, swapped_prompts
from lifelong_edit.editors.search.searching import Variables, narrowed
from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact, Probe, general_names
from lifelong_edit.models import BASE, EditableModule, Encoded, LoadedModel, Overlay
from lifelong_edit.settings import StoreSettings
from lifelong_edit.stores import Entry
from lifelong_edit.tasks import WIDTH, Cutter, task_of
from lifelong_edit.tracing.derived import answered_rows
from lifelong_edit.tracing.rows import Row, RowKind, subjects_of
from lifelong_edit.tracing.text import guarding

PART = "neurons"
GRAM, TOTAL, KEPT, LEVEL = "neurons/gram/", "neurons/total/", "neurons/kept/", "neurons/level/"
GATE, VALUE, OWN, APART = "gate/", "value/", "own/", "apart/"
FEW = 100
"""Facts for which all of the weight `others` is meant: fewer weigh less."""
CUT = 3
"""Contexts behind which the last word of a subject is read without the rest of it."""


@dataclass(frozen=True)
class Seen:
    """What MLPs read of one fact, in float32 or as an entry keeps it: of the many live facts few are asked for all.

    rows: by kind and output projection, (m, d).
    """

    rows: Mapping[str, npt.NDArray[Any]]

    def own(self, name: str) -> Tensor:
        """At its subject, its prompt first, (m, d) float32."""
        return torch.from_numpy(self.rows[OWN + name].astype(np.float32))

    def apart(self, name: str) -> Tensor:
        """At the last word of its subject where the rest of it is missing, (m, d) float32."""
        return torch.from_numpy(self.rows[APART + name].astype(np.float32))


def firsts(known: Iterable[Seen], name: str) -> Tensor:
    """What is read of each fact at its subject in its prompt, (n, d) float32."""
    return torch.from_numpy(np.stack([seen.rows[OWN + name][0] for seen in known]).astype(np.float32))


@dataclass
class Met:
    """What gates are told apart from: facts, and preserved prompts. themes: of each; states: by module (n, d)."""

    themes: list[str]
    states: dict[str, Tensor]

    def at(self, name: str, gates: Tensor, themes: Sequence[str], least: float) -> list[Tensor]:
        """Of each gate of a module the states at which it reads more than that, of other themes than its own, (m, d).

        gates: (n, d), each of the theme beside it.
        """
        numbers = {theme: i for i, theme in enumerate(dict.fromkeys([*self.themes, *themes]))}
        mine, theirs = (torch.tensor([numbers[theme] for theme in of]) for of in (themes, self.themes))
        opened = (self.states[name] @ gates.T > least) & (theirs[:, None] != mine)
        return [self.states[name][opened[:, i]] for i in range(len(gates))]


@dataclass
class Grew:
    """Neurons of facts, in their order. gates, values: by module (n, d). losses: of rounds. report: of the search."""

    gates: dict[str, Tensor]
    values: dict[str, Tensor]
    losses: list[float]
    report: dict[str, object]


class NeuronsEditor(Keyless):
    """Facts in, for each of them a gate and a value out."""

    def __init__(self, bench: Bench) -> None:
        assert isinstance(bench.settings, NeuronsSettings)  # the registry pairs rules with their settings
        self.site = SITES[bench.loaded.modules[0].positions]
        self.bench, self.settings = bench, self.site.asking(bench.settings)
        self.gating = self.settings.gating(self.site.positions)
        self.contexts = contexts_of(bench.fixed.rule)
        self.readers = readers_of(bench.loaded)
        fixed = {n: torch.from_numpy(a).double() for n, a in bench.fixed.rule.items() if n.startswith((GRAM, TOTAL))}
        self._shut = {name: Shut(fixed[GRAM + name], fixed[TOTAL + name]) for name in bench.names}
        kept = {name: bench.fixed.rule.get(KEPT + name) for name in bench.names}
        self._kept = {name: torch.from_numpy(states).float() for name, states in kept.items() if states is not None}
        self._level = {n: self._level_of(n) for n in bench.names}

    @property
    def phrasings(self) -> int:
        """How many of a fact's rephrases are taught beside its prompt."""
        return self.settings.phrasings

    @property
    def _weights(self) -> tuple[float, float]:
        return self.gating.own, self.gating.apart

    @cached_property
    def _cutter(self) -> Cutter | None:
        """How rows are cut: measured by passes, which who only looks at a state need not wait for."""
        return self.bench.task.cutter(self.bench.loaded)

    def overlay(self, state: State) -> Overlay:
        """The base model with the neurons of the live facts."""
        entries = state.parts.get(PART, {})
        return self._standing({digest: entries[digest] for digest in sorted(entries)}) if entries else BASE

    # -- a batch

    def learn(self, state: State, lesson: Lesson) -> Change:
        """What teaching a batch would change, see `Editor.learn`."""
        require_batch(lesson.facts)
        clock, new = Clock(), {fact.digest for fact in lesson.facts}
        gone, themes = set(lesson.retire) | new, {self.site.theme(fact) for fact in lesson.facts}
        live = {d: state.parts.get(PART, {})[d] for d in sorted(state.live) if d not in gone}
        kin = [state.live[d] for d in live if self.site.theme(state.live[d]) in themes]
        facts = [*lesson.facts, *kin]
        rows = self._rows(lesson.facts, "new", lesson.replaced) | self._rows(kin, "rehearsal")
        known = {d: Seen(entry.rows) for d, entry in live.items()} | self._read(facts, rows)
        clock.lap("rows")
        everyone = {**{d: state.live[d] for d in live}, **{fact.digest: fact for fact in facts}}
        others = [everyone[d] for d in live if everyone[d] not in kin]
        shut = self._shut_for(facts, subjects_of(everyone.values()) | lesson.hidden, known)
        met = self._met(list(everyone.values()), known, lesson.hidden)
        gates = {name: self._gates(name, shut[name], facts, met, known) for name in shut}
        moved = self._confused(shut, others, self._met(facts, known), met, live, known)
        clock.lap("gates")
        beside = {fact.digest: live[fact.digest] for fact in others} | moved
        start = {d: live[d] for d in live if d in {fact.digest for fact in kin}}
        grew = self._grow(facts, rows, gates, self._standing(beside).grown, start, self.settings.rounds)
        clock.lap("search")
        entries = moved | self._entries(facts, grew, known)
        report = grew.report | {"kin": len(kin), "gates moved": len(moved), "seconds": clock.seconds}
        return Change({PART: Entries(lambda: iter([entries]))}, report)

    def _rows(
        self, facts: Sequence[Fact], kind: RowKind, replaced: Mapping[str, Sequence[Fact]] | None = None
    ) -> dict[str, list[Row]]:
        return self.site.rows(self.bench, self.settings, facts, kind, replaced)

    def _read(self, facts: Sequence[Fact], rows: Mapping[str, Sequence[Row]]) -> dict[str, Seen]:
        """By digest what is read of each fact: in its own words, then behind contexts; and with its subject cut."""
        asked: list[list[Row]] = []
        for fact in facts:
            asked.append([*rows[fact.digest], *behind_contexts(self.bench, fact, self.contexts, "new")])
            cut = self.site.cut(fact)
            asked.append([] if cut is None else behind_contexts(self.bench, cut, ["", *self.contexts[:CUT]], "new"))
        flat = [row.encoded for found in asked for row in found]
        with self.bench.loaded.at(BASE):
            states = states_of(self.bench.loaded, self.readers, flat, self.settings.micro_batch, self.site.positions)
        ends = np.cumsum([0, *map(len, asked)])

        def of(kind: str, part: int) -> dict[str, npt.NDArray[Any]]:
            found = {}
            for name, read_at in states.items():
                none = torch.empty(0, len(self._shut[name].total))
                found[kind + name] = torch.cat([none, *(t.cpu() for t in read_at[ends[part] : ends[part + 1]])]).numpy()
            return found

        return {fact.digest: Seen(of(OWN, 2 * i) | of(APART, 2 * i + 1)) for i, fact in enumerate(facts)}

    def _shut_for(self, facts: Sequence[Fact], taken: frozenset[str], known: Mapping[str, Seen]) -> dict[str, Shut]:
        """Where the gates of facts are shut: text, other subjects in their prompts, the subjects of all facts."""
        bench, s = self.bench, self.settings
        named = [p.subject for p in bench.preserved.probes if p.subject is not None]
        swapped = swapped_prompts(facts, [*named, *general_names()], s.swapped, taken, s.seed)
        asked = encoded_questions(bench.loaded, swapped)
        with bench.loaded.at(BASE):
            states = states_of(bench.loaded, self.readers, asked, s.micro_batch, self.site.around)
        found = {}
        for name, shut in self._shut.items():
            if asked:
                tokens = torch.cat(states[name]).cpu()
                shut = shut.beside(tokens, s.others / len(tokens))
            subjects = firsts((known[d] for d in sorted(known)), name)
            found[name] = shut.beside(subjects, s.others / max(FEW, len(subjects)))
        return found

    def _met(self, facts: Sequence[Fact], known: Mapping[str, Seen], hidden: frozenset[str] | None = None) -> Met:
        """Facts, and preserved prompts about nothing that is `hidden`; None: facts alone."""
        seen = [known[fact.digest] for fact in facts]
        states = {name: firsts(seen, name) for name in self.bench.names}
        themes = [self.site.theme(fact) for fact in facts]
        if self._kept and hidden is not None:
            probes = self.bench.preserved.probes
            free = [i for i, p in enumerate(probes) if (p.subject or p.prompt).casefold() not in hidden]
            rest = range(len(probes), len(next(iter(self._kept.values()))))  # sentences, of no theme
            themes += [*(self.site.theme(probes[i]) for i in free), *("" for _ in rest)]
            states = {name: both(found, self._kept[name][[*free, *rest]]) for name, found in states.items()}
        return Met(themes, states)

    def _gates(self, name: str, shut: Shut, facts: Sequence[Fact], met: Met, known: Mapping[str, Seen]) -> Tensor:
        """The gates of facts at one module, (n, d): solved, and again where one opens, or nearly, at something else."""
        regression = Regression(shut, self.gating.gate_ridge)
        own = [known[fact.digest].own(name) for fact in facts]
        apart = [known[fact.digest].apart(name) for fact in facts]
        gates = gates_of(regression, own, apart, self._weights)
        strangers = met.at(name, gates, list(map(self.site.theme, facts)), self.site.near(self.gating.opens))
        if any(len(found) for found in strangers):
            gates = gates_of(regression, own, list(map(both, apart, strangers)), self._weights)
        return gates

    def _confused(
        self,
        shut: Mapping[str, Shut],
        others: Sequence[Fact],
        new: Met,
        met: Met,
        live: Mapping[str, Entry],
        known: Mapping[str, Seen],
    ) -> dict[str, Entry]:
        """Entries of live facts whose gates open at something new, with gates that do so no longer."""
        moved: dict[str, Entry] = {}
        for name in shut if others else ():
            gates = torch.stack([torch.from_numpy(live[fact.digest].rows[GATE + name][0]) for fact in others])
            opened = new.at(name, gates, list(map(self.site.theme, others)), self.gating.opens)
            some = [fact for fact, found in zip(others, opened, strict=True) if len(found)]
            if not some:
                continue
            for fact, gate in zip(some, self._gates(name, shut[name], some, met, known), strict=True):
                entry = moved.get(fact.digest, live[fact.digest])
                moved[fact.digest] = Entry({**entry.rows, GATE + name: gate[None].numpy()})
        return moved

    def _grow(
        self,
        facts: Sequence[Fact],
        rows: Mapping[str, list[Row]],
        gates: Mapping[str, Tensor],
        beside: Sequence[tuple[str, Grown]],
        start: Mapping[str, Entry],
        rounds: int,
    ) -> Grew:
        """The neurons of facts: a search for all, and another one for those that have not taken."""
        grew = self._search(facts, rows, gates, beside, start, rounds)
        missed = self._missed(facts, rows, [*beside, *self._part_of(grew, range(len(facts)))])
        if missed and self.settings.more_rounds:
            others = self._part_of(grew, [i for i in range(len(facts)) if i not in missed])
            values = {
                facts[i].digest: Entry({VALUE + n: v[i : i + 1].numpy() for n, v in grew.values.items()})
                for i in missed
            }
            again, some = [facts[i] for i in missed], {n: gate[missed] for n, gate in gates.items()}
            further = self._search(again, rows, some, [*beside, *others], values, self.settings.more_rounds)
            for name, value in further.values.items():
                grew.values[name][missed] = value
            grew.report |= {"again": len(missed), "loss again": further.losses}
        return grew

    def _part_of(self, grew: Grew, which: Sequence[int]) -> list[tuple[str, Grown]]:
        """Some of the neurons that were grown, by their numbers."""
        place, some = self.bench.loaded.device_of, list(which)
        return [
            (n, self._grown(n, grew.gates[n][some].to(place(n)), found[some].to(place(n))))
            for n, found in grew.values.items()
        ]

    def _missed(
        self, facts: Sequence[Fact], rows: Mapping[str, list[Row]], grown: Sequence[tuple[str, Grown]]
    ) -> list[int]:
        """Numbers of the facts of which, in some form, a token of the target or its end is not surely what follows."""
        first = [(i, row) for i, fact in enumerate(facts) for row in prompts_in(rows[fact.digest])]
        with self.bench.loaded.at(Neurons(grown)):
            _, worst = answered(self.bench, [ended(self.bench, row) for _, row in first], self.settings.micro_batch)
        return sorted({i for (i, _), loss in zip(first, worst.tolist(), strict=True) if loss >= math.log(2)})

    def _search(
        self,
        facts: Sequence[Fact],
        rows: Mapping[str, list[Row]],
        gates: Mapping[str, Tensor],
        beside: Sequence[tuple[str, Grown]],
        start: Mapping[str, Entry],
        rounds: int,
    ) -> Grew:
        """The values of facts, searched for with their gates and the neurons beside in place."""
        bench, s = self.bench, self.settings
        place = bench.loaded.device_of
        variables, first = Variables.none(), [rows[fact.digest][0].encoded for fact in facts]
        for name in bench.names:
            width = bench.loaded.module(name).d_out
            variables.right[name] = torch.zeros(len(facts), width, device=place(name))
            for i, fact in enumerate(facts):
                if fact.digest in start:
                    variables.right[name][i] = torch.from_numpy(start[fact.digest].rows[VALUE + name][0])
            variables.owner[name] = torch.arange(len(facts))
            with bench.loaded.at(BASE):
                found = stream_scale(bench.loaded, name, first, s.micro_batch, self.site.positions)
                variables.scale[name] = self.site.unit * found
        behind = [behind_contexts(bench, fact, self.contexts, rows[fact.digest][0].kind) for fact in facts]
        material = Thinned([rows[fact.digest] for fact in facts], behind, s.thinned, bench)
        drawn = (s.seed, tuple(fact.digest for fact in facts))
        grown = {n: self._grown(n, found.to(place(n)), variables.right[n]) for n, found in gates.items()}
        search = OfValues(
            bench, s, variables, material, drawn, grown=grown, beside=beside, essence=self._essence(facts)
        )
        search.cutter, search.readers = self._cutter, self.readers
        search.run(rounds)
        values = {n: found.cpu() for n, found in variables.right.items()}
        return Grew(dict(gates), values, search.losses, search.report())

    def _essence(self, facts: Sequence[Fact]) -> list[Row]:
        """What the base model goes on to say after each subject alone, to be held; none where it weighs nothing."""
        if not self.settings.essence:
            return []
        probes = [Probe(fact.about, None, fact.subject) for fact in facts]
        options = {"tokens": self.settings.preserved_tokens, "micro_batch": self.settings.micro_batch}
        return answered_rows(self.bench.loaded, probes, weight=1.0, **options)[: len(facts)]

    # -- entries

    def _entries(self, facts: Sequence[Fact], grew: Grew, known: Mapping[str, Seen]) -> dict[str, Entry]:
        found = {}
        for i, fact in enumerate(facts):
            rows: dict[str, npt.NDArray[Any]] = {}
            for name in self.bench.names:
                rows[GATE + name] = grew.gates[name][i : i + 1].numpy()
                rows[VALUE + name] = grew.values[name][i : i + 1].numpy()
                for kind in (OWN, APART):
                    rows[kind + name] = known[fact.digest].rows[kind + name].astype(np.float16)
            found[fact.digest] = Entry(rows)
        return found

    def _standing(self, entries: Mapping[str, Entry]) -> Neurons:
        """The overlay of entries; of none the base model's."""
        if not entries:
            return Neurons([])

        def stacked(kind: str, name: str) -> Tensor:
            found = torch.from_numpy(np.concatenate([e.rows[kind + name] for e in entries.values()]))
            return found.to(self.bench.loaded.device_of(name))

        return Neurons([(n, self._grown(n, stacked(GATE, n), stacked(VALUE, n))) for n in self.bench.names])

    def _grown(self, name: str, gate: Tensor, value: Tensor) -> Grown:
        gated = is_gated(self.bench.loaded.model, name)
        return Grown(gate, value, self.gating.opens, self.settings.width, self._level[name], gated)

    def _level_of(self, name: str) -> Tensor | None:
        """In whose units thresholds are: None where the MLP has biases for them."""
        model = self.bench.loaded.model
        if not is_gated(model, name) and model.get_submodule(self.readers[name]).bias is not None:
            return None
        place = self.bench.loaded.device_of(name)
        if (fixed := self.bench.fixed.rule.get(LEVEL + name)) is not None:
            return torch.from_numpy(fixed).to(place)
        return Regression(self._shut[name], self.gating.gate_ridge).constant().to(place)  # older stores have it so

    # -- all facts together

    def relearn(
        self,
        facts: Sequence[Fact],
        *,
        start: Mapping[str, Tensor] | None = None,
        identity: str = "",
        say: Say = silent,
    ) -> Change:
        """What growing all neurons anew would change, see `Editor.relearn`; there is no warm start."""
        require_live(facts)
        facts = sorted(facts, key=lambda fact: (self.site.theme(fact), fact.digest))
        known = dict[str, Seen]()
        for part in slices(facts, self.settings.reconsolidation_facts):
            known |= self._read(part, self._rows(part, "new"))
        entries: dict[str, Entry] = {}
        losses, met = [], self._met(facts, known, frozenset())
        for part in parted(facts, self.settings.reconsolidation_facts, self.site.theme):
            say(f"neurons for {len(entries) + len(part)} of {len(facts)} facts")
            shut = self._shut_for(part, subjects_of(facts), known)
            gates = {name: self._gates(name, shut[name], part, met, known) for name in shut}
            rows = self._rows(part, "new")
            grew = self._grow(part, rows, gates, [], {}, self.settings.reconsolidation_rounds)
            losses.append(grew.losses)
            entries |= self._entries(part, grew, known)
        return Change({PART: Entries(lambda: iter([entries]), whole=True)}, {"loss": losses})


def both(first: Tensor, second: Tensor) -> Tensor:
    """States of two kinds, one below the other."""
    return torch.cat([first, second])


def parted(facts: Sequence[Fact], count: int, theme: Callable[[Fact], str]) -> Iterator[list[Fact]]:
    """Facts in parts of `count` or a few more: those of one theme, which stand together, are in one part."""
    part: list[Fact] = []
    for fact in facts:
        if len(part) >= count and theme(fact) != theme(part[-1]):
            yield part
            part = []
        part.append(fact)
    if part:
        yield part


def make(bench: Bench) -> NeuronsEditor:
    """The rule with what it fixed at `init`."""
    return NeuronsEditor(bench)


def usual(bench: Bench) -> Mapping[str, float]:
    """What the settings of gates come to where they are none."""
    assert isinstance(bench.settings, NeuronsSettings)
    return bench.settings.gating(bench.loaded.modules[0].positions)._asdict()


def require(settings: StoreSettings, given: Given, modules: Sequence[EditableModule] = ()) -> None:
    """Raise UsageError without text."""
    if not any(line.strip() for line in given.text):
        raise UsageError("the editing rule neurons needs ordinary text to tell subjects from; found none; give --text")


def fix(loaded: LoadedModel, settings: StoreSettings, given: Given) -> Arrays:
    """Contexts, the normal equations of what gates are shut at, and what is read of the preserved prompts."""
    assert isinstance(settings, NeuronsSettings)
    site = SITES[loaded.modules[0].positions]
    s = site.asking(settings)
    windows = task_of(loaded).windows(loaded, "\n".join(given.text), max(1, s.text_tokens // WIDTH))
    free = windows[guarding(len(windows)) :] if len(windows) > 1 else windows  # the others judge what gates do to text
    text = [Encoded.of(window) for window in free.tolist()]
    with loaded.at(BASE), narrowed(loaded, s):
        near = [*encoded_questions(loaded, given.preserve), *site.alone(loaded, s, given.text)]
        closed = site.closed(loaded, s, text, near)
    found: dict[str, npt.NDArray[Any]] = {}
    for name, one in closed.items():
        found[GRAM + name] = one.shut.gram.to(site.held).numpy()
        found[TOTAL + name] = one.shut.total.to(site.held).numpy()
        found[LEVEL + name] = one.level.numpy()
        found |= {KEPT + name: one.kept.half().numpy()} if len(one.kept) else {}
    with loaded.at(BASE):
        return found | drawn_contexts(loaded, given.text, s.contexts, s.context_tokens, s.seed)
