"""Locate-then-edit at work: one target search, one residual spread; the rules differ in how a layer is solved.

The first half finds what the hidden state z at each fact's subject should be (`targets`). The second asks the edited
matrices for it, the lowest first: with keys K and states as they are after the layers so far, layer i of n is asked for
R = (z − z_now)/(n − i), and gets S = L R with the rule's own L (`numerics.located`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import ClassVar

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
from lifelong_edit.editors.locate.earlier import Earlier
from lifelong_edit.editors.locate.material import Asked, asked_of, essence, own_rows
from lifelong_edit.editors.locate.published import ALONE, MEDIAN, RATE, constants_of, outline_of
from lifelong_edit.editors.locate.settings import LocateSettings
from lifelong_edit.editors.locate.sites import Reading, Site, block_of, read
from lifelong_edit.editors.locate.targets import TargetSearch, answered
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.editors.ridge.clock import Clock
from lifelong_edit.editors.ridge.together import norms_of, slices
from lifelong_edit.editors.search.contexts import contexts_of, drawn_contexts
from lifelong_edit.errors import StepRefusedError, UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.models import BASE, EditableModule, LoadedModel, Overlay, Shifts
from lifelong_edit.numerics.devices import to_solve
from lifelong_edit.numerics.grams import to_grid
from lifelong_edit.numerics.lowrank import Gram, joined
from lifelong_edit.settings import StoreSettings
from lifelong_edit.stores import KEYS, WEIGHTS, FactKeys, smaller
from lifelong_edit.tasks import Cutter
from lifelong_edit.tracing.rows import Row
from lifelong_edit.tracked import Without

Aim = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Of searched states z (n, d): what is asked for in their place, and a mask (n,) of the facts that ask at all."""
TOGETHER = 64
"""Facts whose targets are searched side by side: of each the distribution over the whole vocabulary is held."""
LOOKED = 8
"""Windows of ordinary text at whose hidden states their typical size is measured."""


def as_searched(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """All of them, as they are."""
    return wanted, torch.ones(len(wanted), dtype=torch.bool)


@dataclass(frozen=True)
class Met:
    """What a rule's L is made of at one layer: keys in the mean over contexts and in the prompt, (n, d_in) float64.

    earlier: Q (d_in, d_in) of earlier facts, whole or by its rows, None for a rule that keeps none in mind.
    """

    module: str
    mean: Tensor
    plain: Tensor
    earlier: Gram | None


@dataclass
class Work:
    """A change on its way.

    shifts: ΔW by module (d_in, d_out). left, right: the factors of each solve by module. asked: (n,), how far the facts
    at hand were from their targets when they were first solved for. done: matrices that the facts at hand were solved
    for in.
    """

    shifts: dict[str, Tensor]
    left: dict[str, list[Tensor]] = field(default_factory=dict)
    right: dict[str, list[Tensor]] = field(default_factory=dict)
    losses: list[Tensor] = field(default_factory=list)
    looks: list[int] = field(default_factory=list)
    out_of_reach: list[str] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)
    asked: Tensor = field(default_factory=lambda: torch.zeros(0))
    done: set[str] = field(default_factory=set)

    def add(self, name: str, left: Tensor, right: Tensor) -> None:
        """ΔW ← ΔW + LR for one module. Raises StepRefusedError where a number is not finite."""
        moved = (left @ right).float()
        if not bool(torch.isfinite(moved).all()):
            raise StepRefusedError(f"a shift of {name} is not finite; expected numbers; the step was refused")
        self.shifts[name] = self.shifts[name] + moved.to(self.shifts[name].device)
        self.left.setdefault(name, []).append(left.float())
        self.right.setdefault(name, []).append(right.float())

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """L (d_in, m) and R (m, d_out) of all solves of a module together; zeros where no fact asked for anything."""
        if name not in self.left:
            d_in, d_out = self.shifts[name].shape
            return torch.zeros(d_in, 1), torch.zeros(1, d_out)
        return torch.cat(self.left[name], 1), torch.cat(self.right[name])


class LocateEditor(ABC):
    """A rule of the family. What a class says of its rule:

    alone: facts are taken one after another, each at the weights that the last one left. evenly: how a key is meant
    over contexts (`Asked.weights`). at_block: whether the hidden state is that behind the last edited block, or the
    output of the edited matrix. recalls: whether earlier facts' keys hold still. from_base: whether targets are
    searched at the base weights. aim: what is made of the states that were found, before they are asked for.
    """

    alone: ClassVar[bool] = False
    evenly: ClassVar[bool] = False
    at_block: ClassVar[bool] = True
    recalls: ClassVar[bool] = False
    from_base: ClassVar[bool] = False

    def __init__(self, bench: Bench) -> None:
        assert isinstance(bench.settings, LocateSettings)  # the registry pairs rules with their settings
        self.bench, self.settings = bench, bench.settings
        self.constants = constants_of(bench.settings, outline_of(bench.loaded))
        self.contexts, self._earlier = contexts_of(bench.fixed.rule), Earlier(bench)
        self.aim: Aim = as_searched
        last = bench.loaded.modules[-1]
        self.site = Site(block_of(last) if self.at_block else last.name)

    @abstractmethod
    def influence(self, met: Met) -> Tensor:
        """L (d_in, n) float64 of the rule at one layer."""

    @cached_property
    def cutter(self) -> Cutter | None:
        """How rows are cut: measured by passes, which who only looks at a state need not wait for."""
        return self.bench.task.cutter(self.bench.loaded)

    @property
    def passes(self) -> int:
        """How often the residual of a batch is spread."""
        return 1

    @property
    def phrasings(self) -> int:
        """How many of a fact's rephrases are taught beside its prompt."""
        return self.settings.phrasings

    def require(self, fact: Fact) -> None:
        """Raise BadInputError where none of the fact's rows mentions its subject."""
        self.kept_rows([fact])

    def kept_rows(self, facts: Sequence[Fact]) -> Sequence[Row]:
        """The rows of facts in their own words, each edited at one token."""
        return [row for rows in own_rows(self.bench, facts, self.phrasings).values() for row in rows]

    def overlay(self, state: State) -> Overlay:
        """W₀ + ΔW."""
        return Shifts(state.shifts)

    def begun(self, state: State, gone: Container[str]) -> Work:
        """A change that begins at a state; gone: digests of live facts that have no say in it any more."""
        modules = self.bench.loaded.modules
        return Work({m.name: state.shifts.get(m.name, torch.zeros(m.d_in, m.d_out)) for m in modules})

    def standing(self, work: Work, module: str | None = None) -> Overlay:
        """How the model stands with what was changed so far; module: the matrix that is solved next, if one is."""
        return Shifts(work.shifts)

    def metric(self, module: str, count: float = 1.0) -> Gram:
        """`count` C₀ + λI of a module, (d_in, d_in) float64; without λ in published units.

        By its rows where it is kept as a factor, and what is beside that has no zero: it has to be inverted.
        """
        grams, relative = self.bench.text_gram, self.settings.units == "relative"
        ridge = math.exp(self.settings.log_ridge) * grams.trace(module) / grams.width(module) if relative else 0.0
        text = grams.low_rank(module, count)
        if text is not None and bool((text.rest + ridge > 0).all()):
            return replace(text, rest=text.rest + ridge)
        found = grams[module] * count
        if relative:
            found.diagonal().add_(ridge)
        return found

    def held(self, met: Met) -> Gram:
        """c₀C₀ + λI + Q of a module, (d_in, d_in) float64."""
        c, width = self.constants, met.mean.shape[1]
        found = self.metric(met.module, c.c0_share * width if c.c0 is None else c.c0)
        return found if met.earlier is None else joined(found, met.earlier)

    # -- a batch

    def learn(self, state: State, lesson: Lesson) -> Change:
        """What teaching a batch would change, see `Editor.learn`."""
        require_batch(lesson.facts)
        clock, gone = Clock(), set(lesson.retire)
        asked = asked_of(self.bench, lesson.facts, self.contexts, self.phrasings, lesson.replaced)
        clock.lap("rows")
        earlier = self._earlier.over(Without(state.keys, gone)) if self.recalls else {}
        conflict = dict(lesson.conflict) or self.bench.conflict_of(lesson.facts)
        work = self.edit_in(self.begun(state, gone), lesson.facts, asked, earlier, clock)
        shift = {}
        for name in self.bench.names:
            left, right = (part.cpu().numpy() for part in work.factors(name))
            shift[name] = smaller(left @ right, left, right)
        keys = self.keys_after(work, lesson.facts, asked, conflict)
        clock.lap("keys")
        report = self.report(work, asked) | {"seconds": clock.seconds}
        return Change({WEIGHTS: Added(shift), KEYS: Entries(lambda: iter([keys]))}, report)

    def edit_in(
        self,
        work: Work,
        facts: Sequence[Fact],
        asked: Sequence[Asked],
        earlier: Mapping[str, Gram],
        clock: Clock,
        say: Say = silent,
    ) -> Work:
        """All facts edited in: together, or one after another."""
        size = 1 if self.alone else len(facts)
        for start in range(0, len(facts), size):
            part = slice(start, start + size)
            wanted, asking = self.aim(self.wanted(work, facts[part], asked[part], say))
            taken = [i for i, asks in zip(range(len(facts))[part], asking.tolist(), strict=True) if asks]
            work.too_long += [f.digest for f, asks in zip(facts[part], asking.tolist(), strict=True) if not asks]
            clock.lap("targets")
            for number in range(self.passes if taken else 0):
                chosen = [facts[i] for i in taken], [asked[i] for i in taken], wanted[asking.to(wanted.device)]
                if not self.spread(work, *chosen, earlier, number):
                    break
            clock.lap("spread")
            say(f"{min(len(facts), start + size)} of {len(facts)} facts edited in")
        return work

    def wanted(self, work: Work, facts: Sequence[Fact], asked: Sequence[Asked], say: Say) -> Tensor:
        """z of facts, (n, d): what their hidden states should be, searched at the present weights or at the base."""
        found, size, cutter = list[Tensor](), self.settings.micro_batch, self.cutter
        with self.bench.loaded.at(BASE if self.from_base else self.standing(work)):
            for numbers in slices(range(len(facts)), TOGETHER):
                rows = [asked[i].rows for i in numbers]
                states = read(self.bench.loaded, [own[0] for own in rows], self.site, size).states
                essences = [essence(self.bench, facts[i]) for i in numbers]
                search = TargetSearch(self.bench, self.settings, self.constants, self.site, rows, essences, cutter)
                target = search.run(states)
                found.append(states + target.change)
                work.losses.append(target.losses)
                work.looks.append(target.looks)
                say(f"targets of {numbers[-1] + 1} of {len(facts)} facts: loss {float(target.losses.mean()):.3f}")
        return torch.cat(found)

    def lengths(self, facts: Sequence[Fact]) -> Tensor:
        """‖z‖ of facts as they are searched for in the base model, (n,)."""
        asked = asked_of(self.bench, facts, self.contexts, self.phrasings)
        found: Tensor = self.wanted(Work({}), facts, asked, silent).norm(dim=1)
        return found

    def chosen(self, work: Work, facts: Sequence[Fact], rest: Tensor, wanted: Tensor, number: int) -> Tensor:
        """Mask (n,) of the facts that a pass is for; rest: z − z_now (n, d)."""
        return torch.ones(len(rest), dtype=torch.bool, device=rest.device)

    def spread(
        self,
        work: Work,
        facts: Sequence[Fact],
        asked: Sequence[Asked],
        wanted: Tensor,
        earlier: Mapping[str, Gram],
        number: int,
    ) -> bool:
        """One pass over the layers, lowest first; False where no fact needed it."""
        modules, chosen = self.bench.loaded.modules, list(range(len(asked)))
        work.done.clear()
        for i, module in enumerate(modules):
            seen, first, mean = self.met(work, [asked[j] for j in chosen], module.name)
            rest = wanted[chosen] - seen.states[first]
            if i == 0:
                mask = self.chosen(work, facts, rest, wanted, number)
                if not bool(mask.any()):
                    return False
                chosen = [j for j, still in zip(chosen, mask.tolist(), strict=True) if still]
                rest, mean, first = rest[mask], mean[mask.to(mean.device)], first[mask.cpu()]
            plain = to_solve(seen.keys[module.name][first])
            left = self.influence(Met(module.name, mean, plain, earlier.get(module.name)))
            work.add(module.name, left, to_solve(rest.to(left.device)) / (len(modules) - i))
            work.done.add(module.name)
        return True

    def met(self, work: Work, asked: Sequence[Asked], module: str) -> tuple[Reading, Tensor, Tensor]:
        """What facts show at the weights so far: all rows; numbers of the prompts (n,); mean keys (n, d_in) float64."""
        rows = [row for own in asked for row in own.rows]
        with self.bench.loaded.at(self.standing(work, module)):
            seen = read(self.bench.loaded, rows, self.site, self.settings.micro_batch, module)
        sizes = torch.tensor([len(own.rows) for own in asked])
        return seen, sizes.cumsum(0) - sizes, self.means(asked, seen.keys[module])

    def means(self, asked: Sequence[Asked], keys: Tensor) -> Tensor:
        """The key of each fact, (n, d_in) float64: that of its rows (rows, d_in) in the mean over contexts."""
        weights = [weight for own in asked for weight in own.weights(self.evenly)]
        fact = torch.tensor([i for i, own in enumerate(asked) for _ in own.rows])
        keys = to_solve(keys)
        weighted = torch.tensor(weights, dtype=keys.dtype, device=keys.device)[:, None] * keys
        none = torch.zeros(len(asked), keys.shape[1], dtype=keys.dtype, device=keys.device)
        return none.index_add_(0, fact.to(keys.device), weighted)

    def keys_after(
        self, work: Work, facts: Sequence[Fact], asked: Sequence[Asked], conflict: Arrays
    ) -> dict[str, FactKeys]:
        """Keys of facts at the weights that a step leaves: in their own words, and behind these in the mean."""
        rows = [row for own in asked for row in own.rows]
        with self.bench.loaded.at(self.standing(work)):
            seen = read(self.bench.loaded, rows, self.site, self.settings.micro_batch)
        found: list[dict[str, object]] = [{} for _ in facts]
        for name in self.bench.names:
            if not bool(torch.isfinite(seen.keys[name]).all()):
                raise StepRefusedError(f"a key of {name} is not finite; expected numbers; the step was refused")
            mean, start = self.means(asked, seen.keys[name]), 0
            for i, own in enumerate(asked):
                plain = to_solve(seen.keys[name][start : start + len(own.own)])
                found[i][name] = to_grid(torch.cat([plain, mean[i : i + 1]]), self.bench.scale[name])
                start += len(own.rows)
        kept = zip(facts, found, strict=True)
        return {fact.digest: FactKeys(keys, conflict[fact.digest]) for fact, keys in kept}  # type: ignore[arg-type]

    def keys_at(
        self,
        shifts: Mapping[str, Tensor],
        facts: Sequence[Fact],
        conflict: Arrays,
        replaced: Mapping[str, Sequence[Fact]] | None = None,
    ) -> dict[str, FactKeys]:
        """Keys of facts at ΔW, see `KeepsKeys`."""
        asked = asked_of(self.bench, facts, self.contexts, self.phrasings, replaced)
        return self.keys_after(Work(dict(shifts)), facts, asked, conflict)

    def report(self, work: Work, asked: Sequence[Asked]) -> dict[str, object]:
        """How it went: losses of the searches, how far facts are from their answers now, norms."""
        with self.bench.loaded.at(self.standing(work)):
            losses, _ = answered(self.bench, [own.own[0] for own in asked], self.settings.micro_batch)
        rows = {"new": sum(len(a.own) for a in asked), "behind contexts": sum(len(a.behind) for a in asked)}
        moved = {n: (a.to(b) @ b) for n in self.bench.names for a, b in [work.factors(n)]}
        return {
            "rows": rows,
            "looks": work.looks,
            "searched": float(torch.cat(work.losses).mean()),
            "loss": [float(losses.mean())],
            "norm": norms_of(moved),
            "out_of_reach": work.out_of_reach,
            "too_long": work.too_long,
        }

    # -- all facts together

    def relearn(
        self,
        facts: Sequence[Fact],
        *,
        start: Mapping[str, Tensor] | None = None,
        identity: str = "",
        say: Say = silent,
    ) -> Change:
        """All facts as one batch, or one after another in the order of their digests, see `Editor.relearn`."""
        require_live(facts)
        facts = sorted(facts, key=lambda fact: fact.digest)
        asked = asked_of(self.bench, facts, self.contexts, self.phrasings)
        work = self.edit_in(self.begun(State(dict(start or {})), ()), facts, asked, {}, Clock(), say)
        brought: dict[str, Brought] = {
            WEIGHTS: Whole({name: shift.cpu().numpy() for name, shift in work.shifts.items()}),
            KEYS: Entries(partial(self._all_keys, facts, asked, work), whole=True),
        }
        return Change(brought, self.report(work, asked))

    def _all_keys(self, facts: Sequence[Fact], asked: Sequence[Asked], work: Work) -> Iterator[dict[str, FactKeys]]:
        for numbers in slices(range(len(facts)), TOGETHER):
            part = [facts[i] for i in numbers]
            yield self.keys_after(work, part, [asked[i] for i in numbers], self.bench.conflict_of(part))


def require(settings: StoreSettings, given: Given, modules: Sequence[EditableModule] = ()) -> None:
    """Refuse modules edited at the answer, and more than one for a rule that edits one matrix.

    Raises UsageError.
    """
    elsewhere = [m.name for m in modules if m.positions != "subject"]
    if elsewhere:
        raise UsageError(
            f"the editing rule {settings.editor} edits at the last token of the subject, but found "
            f"{', '.join(elsewhere)} edited at the answer; name modules with @subject, or none for those it has itself"
        )
    if settings.editor in ALONE and len(modules) > 1:
        raise UsageError(
            f"the editing rule {settings.editor} edits one matrix, but found {len(modules)}: "
            f"{', '.join(m.name for m in modules)}; name one of them, or none for the one it has itself"
        )


def fix(loaded: LoadedModel, settings: StoreSettings, given: Given) -> Arrays:
    """The contexts, drawn on the base model."""
    assert isinstance(settings, LocateSettings)
    default = 20 if settings.editor in ALONE else 5
    count = default if settings.contexts is None else settings.contexts
    with loaded.at(BASE):
        return drawn_contexts(loaded, given.text, count, settings.context_tokens, settings.seed)


def usual(bench: Bench) -> Mapping[str, float]:
    """What settings that may be none come to on a bench, see `Rule.usual`.

    The rate, where none is published, is that at the hidden states of ordinary text.
    """
    open_settings = ("steps", "rate", "clamp", "c0", "penalty", "neurons")
    assert isinstance(bench.settings, LocateSettings)
    settings = bench.settings.replace(**dict.fromkeys(open_settings))
    known = constants_of(settings, outline_of(bench.loaded))
    width = sum(m.d_in for m in bench.loaded.modules) / len(bench.loaded.modules)
    return {
        "steps": known.steps,
        "rate": RATE * typical_state(bench) if known.rate is None else known.rate,
        "clamp": known.clamp,
        "c0": known.c0_share * width if known.c0 is None else known.c0,
        "penalty": known.penalty,
        "neurons": known.neurons,
    }


def typical_state(bench: Bench) -> float:
    """The typical size of a hidden state's entries where the rule looks at it, in the median over ordinary text.

    Of its first tokens none count, which in many models are like no others.
    """
    loaded, seen = bench.loaded, list[Tensor]()
    windows, editor = bench.guard_windows[:LOOKED].to(loaded.device), rule_of(bench.settings.editor).make(bench)
    assert isinstance(editor, LocateEditor)
    site = editor.site
    with loaded.at(BASE), torch.no_grad(), site.watched(loaded.model, lambda states: seen.append(states.detach())):
        bench.task.read(loaded, windows)
    states = torch.cat([found.reshape(*windows.shape, -1) for found in seen]).float()
    later = states[:, min(4, states.shape[1] - 1) :]
    return MEDIAN * float(later.abs().median(dim=-1).values.median())
