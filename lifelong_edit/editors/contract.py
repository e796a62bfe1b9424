"""What an editing rule is: a declaration that needs no torch, and a working editor made for a bench.

A rule only proposes. What it proposes is a set of *parts* (weights, keys, moments, ...), each with a fold that says how
a later step joins an earlier one; the timeline judges the proposal, writes the parts, and replays them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from lifelong_edit.editors.tries import Number, Tries
from lifelong_edit.errors import UnknownModelError, UsageError
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.settings import SUBJECT, StoreSettings
from lifelong_edit.stores import (
    KEYS,
    WEIGHTS,
    Content,
    Dense,
    Entry,
    FactKeys,
    Fold,
    Shift,
    Weights,
    add_shifts,
    halved,
    materialise,
)

if TYPE_CHECKING:
    from lifelong_edit.bench import Bench, Say, State
    from lifelong_edit.models import EditableModule, LoadedModel, Overlay
    from lifelong_edit.models.families import Home, Kind, Positions
    from lifelong_edit.tracing.rows import Row

Arrays = Mapping[str, npt.NDArray[Any]]
Format = Literal["transformers", "delta", "peft", "gguf"]
OF_SHIFTS: frozenset[Format] = frozenset({"transformers", "delta", "peft", "gguf"})
"""The formats that hold a state of shifted weights and nothing else."""
Trained = Literal["network", "settings"]
Need = Literal["network", "subject", "text"]
"""What a rule cannot do without: a trained network, facts that name their subject, statistics of ordinary text."""


@dataclass(frozen=True)
class Added:
    """A change of a part that sums: the shift of each module."""

    shift: Mapping[str, Shift]


@dataclass(frozen=True)
class Whole:
    """A part in the place of all that was there before."""

    arrays: Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Entries:
    """Entries of a part that upserts, a few at a time, made anew at each call: nobody has to hold them together.

    making them may move the model and may raise StepRefusedError. whole: they are all that there is.
    """

    make: Callable[[], Iterator[Mapping[str, Entry]]]
    whole: bool = False


Brought = Added | Whole | Entries


@dataclass(frozen=True)
class Change:
    """What a rule proposes: by part what a step would bring, and a report of how it was found (told, never read)."""

    parts: Mapping[str, Brought]
    report: dict[str, object]

    @property
    def shift(self) -> Mapping[str, Shift] | None:
        """What is added to the weights; None where they are given whole or left alone."""
        found = self.parts.get(WEIGHTS)
        return found.shift if isinstance(found, Added) else None

    def weights(self, before: Weights) -> Weights:
        """ΔW after the change, from ΔW before it: what replaying the written step gives, bit for bit."""
        found = self.parts.get(WEIGHTS)
        if isinstance(found, Whole):
            return {name: np.asarray(array, np.float32) for name, array in found.arrays.items()}
        if isinstance(found, Added):
            return add_shifts(before, found.shift)
        return before

    def in_16_bits(self) -> Change:
        """The same with what it brings to the weights as 16 bits keep it, and the error of that in the report.

        Rounded before anything is judged or written: what is stored is what a step is. Raises StepRefusedError where a
        number is too large.
        """
        found = self.parts.get(WEIGHTS)
        if isinstance(found, Added):
            pairs = {name: halved(shift) for name, shift in found.shift.items()}
            brought: Brought = Added({name: shift for name, (shift, _) in pairs.items()})
        elif isinstance(found, Whole):
            pairs = {name: halved(Dense(np.asarray(array, np.float32))) for name, array in found.arrays.items()}
            brought = Whole({name: materialise(shift) for name, (shift, _) in pairs.items()})
        else:
            return self
        rounding = {name: error for name, (_, error) in pairs.items()}
        return Change({**self.parts, WEIGHTS: brought}, {**self.report, "rounding": rounding})

    def keys(self) -> dict[str, FactKeys]:
        """The keys that it brings, held together."""
        found = self.parts.get(KEYS)
        made = found.make() if isinstance(found, Entries) else ()
        return {digest: keys for part in made for digest, keys in part.items() if isinstance(keys, FactKeys)}

    def held(self) -> Change:
        """The same with the entries of further parts made already: they are shown before they are written."""
        parts = dict(self.parts)
        for name, brought in self.parts.items():
            if isinstance(brought, Entries) and name != KEYS:
                parts[name] = Entries(list(brought.make()).__iter__, brought.whole)
        return Change(parts, self.report)

    def further(self, before: Mapping[str, Content], live: Container[str]) -> dict[str, Content]:
        """The parts beside weights and keys after the change, from those before it; of entries those of live facts."""
        found = dict(before)
        for name, brought in self.parts.items():
            if isinstance(brought, Whole) and name != WEIGHTS:
                found[name] = dict(brought.arrays)
            elif isinstance(brought, Entries) and name != KEYS:
                found[name] = {} if brought.whole else dict(found.get(name, {}))
                for entries in brought.make():
                    found[name].update(entries)
        return {
            name: {of: held for of, held in content.items() if not isinstance(held, Entry) or of in live}
            for name, content in found.items()
        }


@dataclass(frozen=True)
class Lesson:
    """A batch as a rule meets it.

    retire: digests of the live facts that it replaces. conflict: conflict keys by digest, (d_in,), where they are known
    already. replaced: by digest of a new fact the earlier ones, live or not, in whose words it is taught too. hidden:
    case-folded subjects of which nothing may become a preserved row, beside those that are edited.
    """

    facts: Sequence[Fact]
    retire: Sequence[str] = ()
    conflict: Mapping[str, np.ndarray] = field(default_factory=dict)
    replaced: Mapping[str, Sequence[Fact]] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()


def require_batch(facts: Sequence[Fact]) -> None:
    """Raise UsageError for a batch without facts."""
    if not facts:
        raise UsageError("a batch without facts was given; expected at least one")


def require_live(facts: Sequence[Fact]) -> None:
    """Raise UsageError where there are no facts to solve again for."""
    if not facts:
        raise UsageError("the store has no live facts; expected at least one to reconsolidate")


def require_cold(start: object, why: str) -> None:
    """Raise UsageError for a warm start of a rule that has none. why: what it relearns from, and the reason."""
    if start is not None:
        raise UsageError(f"{why}; found a warm start, expected none; leave --start out")


def moved_by(state: State, change: Change, facts: Sequence[Fact], retired: Sequence[str] = ()) -> State:
    """The state after a change that no log keeps, as of training and trials; its digest stays that of the state before.

    retired: digests of the live facts that it replaces.
    """
    import torch

    gone = set(retired)
    live = {digest: fact for digest, fact in state.live.items() if digest not in gone}
    live |= {fact.digest: fact for fact in facts}
    keys = {**state.keys, **change.keys()}
    before = {name: shift.cpu().numpy() for name, shift in state.shifts.items()}
    if not before and (added := change.shift) is not None:
        before = {name: np.zeros(shift.shape, np.float32) for name, shift in added.items()}
    return replace(
        state,
        shifts={name: torch.from_numpy(array) for name, array in change.weights(before).items()},
        live=live,
        keys={digest: keys[digest] for digest in live if digest in keys},
        parts=change.further(state.parts, live),
    )


class Editor(Protocol):
    """A rule at work on a bench. `learn` and `relearn` leave the model as they found it."""

    @property
    def phrasings(self) -> int:
        """How many of a fact's rephrases it is taught in beside its prompt: judges ask in the others."""

    def require(self, fact: Fact) -> None:
        """Raise BadInputError where the rule cannot be taught a fact that the model can take."""

    def kept_rows(self, facts: Sequence[Fact]) -> Sequence[Row]:
        """The rows of facts whose keys the rule keeps, fact by fact; of a rule that keeps none they are not asked."""

    def learn(self, state: State, lesson: Lesson) -> Change:
        """What teaching a batch at a state would change.

        Raises StepRefusedError where a number is not finite, BadInputError for facts that the rule cannot be taught.
        """

    def relearn(
        self, facts: Sequence[Fact], *, start: Mapping[str, Any] | None = None, identity: str = "", say: Say
    ) -> Change:
        """What solving again for all of `facts` would change: reconsolidation and retraction by the rule itself.

        start: ΔW to begin with, (d_in, d_out) by module; None is canonical: a function of the facts and of what `init`
        fixed alone, bit for bit, whatever the history was. identity: digest of the state that a warm start comes from.
        Raises UsageError without facts, and where the rule has no such thing, StepRefusedError as `learn`.
        """

    def overlay(self, state: State) -> Overlay:
        """How a state shows in the model, by its shifts and further parts alone: who only looks at it has no more.

        For a rule that is `by_facts` the live facts are there as well.
        """


class Keyless:
    """What editors have in common that keep no keys, and can be taught any fact that the model can take."""

    def require(self, fact: Fact) -> None:
        """Refuses nothing."""

    def kept_rows(self, facts: Sequence[Fact]) -> Sequence[Row]:
        """None."""
        return ()


@runtime_checkable
class KeepsKeys(Protocol):
    """A rule that brings keys, and can trace them at weights which another made of its shift."""

    def keys_at(
        self,
        shifts: Mapping[str, Any],
        facts: Sequence[Fact],
        conflict: Arrays,
        replaced: Mapping[str, Sequence[Fact]] | None = None,
    ) -> dict[str, FactKeys]:
        """Keys of facts as the rule keeps them, at ΔW by module (d_in, d_out).

        conflict: their conflict keys by digest, (d_in,). replaced: as of `Lesson`. Raises StepRefusedError where a key
        is not finite.
        """


class Bookmark(Protocol):
    """Where a solve over all facts keeps how far it is."""

    def read(self) -> Mapping[str, npt.NDArray[Any]] | None:
        """What was kept of this very solve, if it was begun before."""

    def write(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keep how far it is."""


@runtime_checkable
class Resumes(Protocol):
    """A rule whose `relearn` goes on where it was killed. bookmark: set before it is called, if it is to."""

    bookmark: Bookmark | None


@dataclass(frozen=True)
class Given:
    """What a store is made with, beside its model. network: a trained one's arrays, empty without; text: ordinary.

    preserve: prompts whose answers must stay.
    """

    network: Arrays = field(default_factory=dict)
    text: Sequence[str] = ()
    preserve: Sequence[Probe] = ()


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The declaration of a rule: what can be known of it before anything is loaded.

    home: the module with its functions: `make`, and where there is something to refuse or to fix, `require` and `fix`,
    with the arguments of the methods of these names; so `usual`, where settings that may be tried may be none. parts:
    what it keeps. Every rule has `weights`, which sum, and `keys`, which upsert, whether it brings any or not; what
    else it keeps replaces what was there, or has entries of each fact. Raises ValueError for other parts, and for
    `tries` that are not sound.
    """

    name: str
    title: str
    reference: str
    settings: type[StoreSettings]
    home: str
    parts: Mapping[str, Fold]
    places: Home = "answer"
    """Where it edits unless modules are named, see `default_entries`."""
    general: bool = False
    """Whether a store whose maker names no preserved prompts has the general ones (`facts.general_prompts`)."""
    by_facts: bool = False
    """Whether a state shows in the model by its live facts: what is remembered is the facts themselves."""
    tasks: frozenset[Kind] = frozenset({"causal"})
    at: Mapping[Kind, Positions] = field(default_factory=dict)
    """The one kind of positions at which it edits models of a kind, where it is not left to whoever names modules."""
    exports: frozenset[Format] = frozenset()
    needs: frozenset[Need] = frozenset()
    network: bool = False
    """Whether `train` makes a network for it."""
    tries: Tries = field(default_factory=Tries)
    """What `train --choose` may try for it."""
    statistics: bool = True
    """Whether it solves with the gram of all text keys; for others `init` measures a sample, for the keys' range."""
    shifts: bool = True
    """Whether a state shows in the model as shifted weights and nothing else: around such a rule a wrapper can stand
    (`editors.wrapping`)."""
    relearns: str
    """How it solves again for all facts, in a sentence for users; empty where it cannot."""

    def __post_init__(self) -> None:
        own = {name: fold for name, fold in self.parts.items() if name not in (WEIGHTS, KEYS)}
        if dict(self.parts) != {WEIGHTS: "sum", KEYS: "upsert", **own} or "sum" in own.values():
            raise ValueError(
                f"the rule {self.name} has the parts {dict(self.parts)}; expected {WEIGHTS!r} that sum, {KEYS!r} that "
                "upsert, and others that upsert or replace"
            )
        wrong = self.tries.wrong({*self.settings.__struct_fields__} - {*StoreSettings.__struct_fields__})
        if not wrong and self.tries.depths and self.places == "answer":
            wrong = "depths are for rules that edit one layer, or a few in a row"
        if wrong:
            raise ValueError(f"what may be tried for the rule {self.name} is not sound: {wrong}")

    @property
    def of_each(self) -> bool:
        """Whether it depends on which facts are live how a state shows: it remembers them, or keeps entries of each."""
        return self.by_facts or any(fold == "upsert" for name, fold in self.parts.items() if name != KEYS)

    @property
    def trains(self) -> frozenset[Trained]:
        """What `train` makes for it: a network, settings that were chosen."""
        made: dict[Trained, bool] = {"network": self.network, "settings": bool(self.tries)}
        return frozenset(name for name, holds in made.items() if holds)

    @property
    def further_parts(self) -> list[str]:
        """The parts that it keeps beside weights and keys, sorted."""
        return sorted(self.parts.keys() - {WEIGHTS, KEYS})

    def emptied(self, weights: Weights) -> Change:
        """The change that leaves no fact: ΔW of the base, and nothing in any further part."""
        none: dict[str, Brought] = {"replace": Whole({}), "upsert": Entries(lambda: iter(()), whole=True)}
        return Change({WEIGHTS: Whole(weights), **{name: none[self.parts[name]] for name in self.further_parts}}, {})

    def require(self, settings: StoreSettings, given: Given, modules: Sequence[EditableModule] = ()) -> None:
        """Refuse, before a model is loaded, what a store of the rule could not be made with.

        modules: those that are to be edited, where they are known already. Raises UsageError where something that the
        rule needs is missing, ModelMismatchError where it was made for other modules.
        """
        if (require := getattr(self._module(), "require", None)) is not None:
            require(settings, given, modules)

    def fix(self, loaded: LoadedModel, settings: StoreSettings, given: Given) -> Arrays:
        """What the rule fixes at `init`, once, measured on the base model: by name, none for most rules."""
        fix = getattr(self._module(), "fix", None)
        found: Arrays = {} if fix is None else fix(loaded, settings, given)
        return found

    def usual(self, bench: Bench) -> Mapping[str, Number]:
        """What settings that may be none come to on a bench where they are: of those that may be tried, by name."""
        usual = getattr(self._module(), "usual", None)
        found: Mapping[str, Number] = {} if usual is None else usual(bench)
        return found

    def make(self, bench: Bench) -> Editor:
        """The rule at work on a bench, with what it fixed at `init`."""
        found: Editor = self._module().make(bench)
        return found

    def require_kind(self, kind: Kind, modules: Sequence[EditableModule] = ()) -> None:
        """Raise UsageError where the rule does not edit models of a kind, UnknownModelError where not at such modules.

        modules: those that are to be edited, where they are known already.
        """
        from lifelong_edit.models.families import CALLED  # imports torch

        if kind not in self.tasks:
            edited = [several for known, (_, several) in CALLED.items() if known in self.tasks]
            raise UsageError(
                f"found {CALLED[kind][0]}, but the editing rule {self.name} edits {' and '.join(edited)} alone; take "
                "such a model, or another rule"
            )
        wanted = self.at.get(kind)
        for module in modules:
            if wanted is not None and module.positions != wanted:
                mark = f"with {SUBJECT} behind it" if wanted == "subject" else f"without {SUBJECT}"
                raise UnknownModelError(
                    f"the editing rule {self.name} edits {CALLED[kind][0]} at the {wanted}, found {module.name} edited "
                    f"at the {module.positions}; name it {mark}"
                )

    def require_relearning(self) -> None:
        """Raise UsageError where the rule cannot solve again for all facts."""
        if not self.relearns:
            raise UsageError(
                f"the editing rule {self.name} cannot solve again for all facts, as reconsolidating and retracting do; "
                "go back with `rollback`, or make a store with another rule"
            )

    def require_export(self, form: str) -> None:
        """Raise UsageError where a state of the rule cannot be written in a format."""
        if form not in self.exports:
            known = f"as {form}; it can be as {', '.join(sorted(self.exports))}"
            none = "in any format, since its state is more than a model's weights"
            raise UsageError(
                f"a store of the editing rule {self.name} cannot be exported {known if self.exports else none}; "
                "`lifelong-edit serve` and `lifelong_edit.attach` take every rule"
            )

    def _module(self) -> Any:
        return import_module(self.home)
