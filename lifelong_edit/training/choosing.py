"""Choosing the settings of a rule for a model, on facts that are held out.

A trial teaches held-out facts in a new state, batch by batch (`stream`) or all together from the base weights
(`reconsolidation`), and asks: efficacy, generality on a phrasing that was no row, locality on unedited facts of the
same relation and true answer, teacher-forced or by generation; perplexity on text that is in no gram. A coordinate
search goes from the settings given over the small grid that the rule declares (`Rule.tries`), and over the layers where
it may edit. Every trial is kept in a file, and a search that is started again reads from it what has been tried: it
goes the same way, and on from there. What it ends with is checked on facts that it never taught.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec

from lifelong_edit.bench import Bench, Say, State, silent
from lifelong_edit.editors.contract import Editor, Rule, moved_by
from lifelong_edit.editors.registry import PLAIN, rule_of
from lifelong_edit.editors.ridge.settings import CHOSEN, SOLVE, RidgeSettings
from lifelong_edit.editors.tries import LAYER, Number
from lifelong_edit.errors import BadInputError, StepRefusedError, UsageError
from lifelong_edit.facts import Fact, Probe, general_prompts
from lifelong_edit.models import BASE, LoadedModel
from lifelong_edit.models.families import layers_at
from lifelong_edit.settings import StoreSettings
from lifelong_edit.stores.digests import digest_bytes
from lifelong_edit.tasks import ready
from lifelong_edit.training.asking import Asking
from lifelong_edit.training.benches import Benches
from lifelong_edit.training.episodes import TrainSettings, divided
from lifelong_edit.training.run import Held, Scores, hold_out, known, taught_state
from lifelong_edit.training.scorers import leave_scorer
from lifelong_edit.training.trials import TRIALS, Arm, Trial, finite, read_trials, told, write_json

CONDITIONS = ("preserved_tokens", "text_tokens", "gram_rank", "form", "system")
"""Settings of every store on which figures depend: a result says those that are not at their defaults."""
TAUGHT = 0.05
"""Efficacy below which next to nothing is taught."""
LEAST = 4
"""Facts, held out and teachable, without which nothing can be told."""


class Choosing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How settings are chosen: what a trial is, and the one number that it is judged by.

    That is the weighted mean of efficacy, generality and locality, minus `perplexity` for each unit by which the
    perplexity ratio exceeds 1 + `perplexity_free`; of several arms the mean.
    """

    facts: int = 200
    """Held-out facts that a trial teaches, half of those held out at most; the others are asked as neighbours."""
    batch_size: int = 50
    efficacy: float = 1.0
    generality: float = 1.0
    locality: float = 1.0
    perplexity: float = 2.0
    perplexity_free: float = 0.03
    reconsolidate: bool | None = None
    """Whether a trial has the arm `reconsolidation` too. None: as the rule declares, for most it is dear."""
    least_gain: float = 0.002
    """A change that gains less is not made: shares of a few hundred facts are no finer."""
    only: tuple[str, ...] = ()
    """Names of the settings to choose, `layer` among them; empty: all that the rule declares."""
    seed: int = 0
    generated: bool | None = None
    """Whether facts are asked by generation, in every form in which a store of the model asks, or else teacher-forced
    in plain text. None: as the rule declares."""
    trials: int | None = None
    """The most trials that the search makes, the check apart: rules can be compared after as many of each. None: as
    many as the minutes allow."""

    def __post_init__(self) -> None:
        weights = (self.efficacy, self.generality, self.locality, self.perplexity, self.perplexity_free)
        if not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights[:3]):
            raise UsageError(f"found the weights {weights} of the objective; expected none below zero and one above it")
        if self.facts < 1 or self.batch_size < 1:
            raise UsageError(f"found {self.facts} facts in batches of {self.batch_size}; expected one or more of each")
        if self.trials is not None and self.trials < 1:
            raise UsageError(f"found {self.trials} trials; expected one or more, or none for no bound")

    def settled(self, settings: StoreSettings) -> Choosing:
        """The same for the settings that a search starts from, with nothing left open.

        Raises UsageError for a rule of which nothing can be chosen, for names of what it has not to choose, and for
        the arm `reconsolidation` of one that cannot relearn.
        """
        rule = rule_of(settings.editor)
        if not rule.tries:
            raise UsageError(f"the editing rule {rule.name} has no settings that could be chosen; leave --choose out")
        if isinstance(settings, RidgeSettings) and settings.ask == "published":
            raise UsageError("settings are chosen for the joint solve, but found ask published; leave --choose out")
        names = (*rule.tries.grid, *((LAYER,) if rule.tries.depths else ()))
        if unknown := sorted(set(self.only) - set(names)):
            raise UsageError(f"found {', '.join(unknown)} to choose; expected some of {', '.join(names)}")
        if LAYER in self.only and settings.modules:
            raise UsageError("found modules named and the layer to choose; expected one of the two")
        together = rule.tries.reconsolidate if self.reconsolidate is None else self.reconsolidate
        if together:
            rule.require_relearning()
        generated = rule.tries.generated if self.generated is None else self.generated
        return msgspec.structs.replace(self, reconsolidate=together, generated=generated)

    def encoded(self, rule: Rule) -> bytes:
        """What of it decides the figures of trials, as JSON; how facts are asked only where the rule would not have it.

        So searches that are older than it go on.
        """
        left_out = {"trials", "generated"} if self.generated == rule.tries.generated else {"trials"}
        return msgspec.json.encode({n: v for n, v in msgspec.to_builtins(self).items() if n not in left_out})

    def score(self, scores: Scores, perplexity: float) -> float:
        """The number that a trial is judged by; figures that could not be taken (NaN) do not count, a ruin is −1."""
        pairs = zip(
            (self.efficacy, self.generality, self.locality),
            (scores.efficacy, scores.generality, scores.locality),
            strict=True,
        )
        known = [(w, v) for w, v in pairs if math.isfinite(v) and w > 0]
        if not known or not math.isfinite(perplexity):
            return -1.0
        mean = sum(w * v for w, v in known) / sum(w for w, _ in known)
        return mean - self.perplexity * max(0.0, perplexity - 1 - self.perplexity_free)


def neighbour(grid: Sequence[Number], value: Number, direction: int) -> Number | None:
    """The next value of an ascending grid above (1) or below (−1) one that need not stand on it; None at its end."""
    beyond = [v for v in grid if (v - value) * direction > 0]
    return None if not beyond else min(beyond) if direction > 0 else max(beyond)


def search(
    start: Mapping[str, Number],
    grid: Mapping[str, Sequence[Number]],
    score: Callable[[dict[str, Number]], float | None],
    least_gain: float,
    seed: int,
    idle: Callable[[dict[str, Number]], bool] = lambda point: False,
) -> dict[str, Number]:
    """Coordinate search: the best point found, a value for each name of the grid.

    Along each setting it goes up, or else down, as long as every step gains `least_gain`; rounds follow each other
    until one changes nothing, or `score` gives None: the budget is spent. The first round takes the settings in the
    grid's order, the later ones in orders drawn by `seed`. idle: whether a point does nothing at all; from one that
    does not, it looks past others that do not either. A function of its arguments alone.
    """
    best, found = dict(start), score(dict(start))
    order, orders, moved = list(grid), random.Random(seed), True
    while moved and found is not None:
        moved = False
        for name in order:
            for direction in (1, -1):
                before, at = found, best[name]
                while (value := neighbour(grid[name], at, direction)) is not None:
                    at, point = value, {**best, name: value}
                    figure = score(point)
                    if figure is None:
                        return best
                    if figure > found and figure >= found + least_gain:  # on a plateau it would walk for ever
                        best, found, moved = point, figure, True
                    elif not (idle(best) and idle(point)):
                        break
                if found > before:
                    break  # it came from the other side
        orders.shuffle(order)
    return best


class Choice:
    """A search for the settings of a rule on a model in a folder, continued where its file of trials ends.

    Of several processes (`LoadedModel.world`) each makes the same trials; number 0 speaks, reads, writes and has the
    clock. Raises UsageError for a model in shards.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        facts: Sequence[Fact],
        text: Sequence[str],
        out: Path,
        settings: StoreSettings,
        train: TrainSettings,
        choosing: Choosing | None = None,
        say: Say = print,
    ) -> None:
        self.rule = rule_of(settings.editor)
        self.choosing = (choosing or Choosing(seed=train.seed)).settled(settings)
        self.world = loaded.world
        self._require_whole()
        self.loaded, self.out, self.settings = loaded, out, settings
        self.say = say = say if self.world.leads else silent
        self.own, held = divided(facts, train)
        # The rule without a network, which a network begins with.
        maker = rule_of(PLAIN) if self.rule.network else self.rule
        begun = settings.replace(editor=maker.name)
        if self.choosing.generated:  # in the forms of a store, which are not those of whoever has the model too
            self.loaded = loaded = loaded.editing([module.entry for module in loaded.modules])
            begun = ready(begun, loaded)
        self.benches = Benches(loaded, maker, begun, text, self._preserved())
        bench = self.benches.at({})
        held = self._teachable(maker.make(bench), held)
        self.asking = Asking(generated=bool(self.choosing.generated))
        self.held, self.other = (self._held_out(held, exchanged=exchanged) for exchanged in (False, True))
        self.windows = bench.guard_windows
        with loaded.at(BASE):
            self.base_perplexity = bench.task.health(loaded, self.windows)
        usual = maker.usual(bench)
        self.grid: dict[str, tuple[Number, ...]] = self._grid(usual)
        given = {n: getattr(settings, n) if n != LAYER else self.benches.layer for n in self.grid}
        self.start: dict[str, Number] = {n: usual[n] if v is None else v for n, v in given.items()}
        identity = digest_bytes(
            loaded.fingerprint.encode(),
            *(f.digest.encode() for f in facts),
            *(part.encode() for part in text),
            settings.encoded(),
            self.choosing.encoded(self.rule),
            *(msgspec.json.encode(p) for p in (train.validation_share, train.seed)),
            *(f.digest.encode() for f in self.held.neighbours),
        )
        self.record = self.world.lead(lambda: read_trials(out / TRIALS, identity))
        self._met: set[tuple[tuple[str, Number], ...]] = set()
        if self.record.trials:
            say(f"going on after {len(self.record.trials)} trials of {out / TRIALS}")

    def _require_whole(self) -> None:
        """Raise UsageError for a model in shards, of which other matrices cannot be edited than were left out."""
        if self.world.passes_in_step:
            raise UsageError(
                "found a model in shards and settings to choose, expected a model that each process has as a whole; "
                "name another --device, or leave --processes out"
            )

    def _seconds(self) -> float:
        """By the clock of number 0, in every process."""
        return self.world.lead(time.monotonic)

    def _held_out(self, facts: Sequence[Fact], *, exchanged: bool) -> Held:
        found = hold_out(facts, self.choosing.facts, self.choosing.seed, exchanged)
        with self.loaded.at(BASE):
            right = self.asking.neighbours_right(self.loaded, found)
        return known(found, right, silent if exchanged else self.say)

    def _preserved(self) -> list[Probe]:
        """Prompts whose answers must stay: those that a store of the rule has, else those of the facts that are not
        held out, for a rule that does something with them."""
        if self.rule.general:
            return general_prompts()
        if "preserved" not in self.rule.settings.__struct_fields__:
            return []
        return [Probe(f.prompt, f.target_true, f.subject, f.relation) for f in self.own]

    def _teachable(self, editor: Editor, held: Sequence[Fact]) -> list[Fact]:
        """The held-out facts that the rule can be taught. Raises BadInputError where too few are left."""
        found, why = [], ""
        for fact in held:
            try:
                editor.require(fact)
            except BadInputError as error:
                why = str(error)
            else:
                found.append(fact)
        if why:
            self.say(f"{len(held) - len(found)} of {len(held)} held-out facts cannot be taught, such as: {why}")
        if len(found) < LEAST:
            raise BadInputError(
                f"found {len(found)} held-out facts that the editing rule {self.rule.name} can be taught, expected "
                f"{LEAST} at least; the last one that cannot: {why}"
            )
        return found

    def _grid(self, usual: Mapping[str, Number]) -> dict[str, tuple[Number, ...]]:
        """Values to try by name, in the order of the first round: the layer stands second, after what tells most."""
        tries, loaded = self.rule.tries, self.loaded
        # A network learns its ridge; the setting would take it away from it.
        pointless = {"log_ridge"} if self.rule.network else set()
        pointless |= set() if any(m.positions == "subject" for m in loaded.modules) else {"subject_c0"}
        found: dict[str, tuple[Number, ...]] = {}
        for name, values in tries.grid.items():
            found[name] = _multiples(values, usual[name]) if name in tries.relative else values
        if tries.depths and not self.settings.modules and loaded.family.output is not None:
            settings, layers = list(found.items()), tuple(layers_at(loaded.layers, tries.depths))
            found = dict([*settings[:1], (LAYER, layers), *settings[1:]])
        wanted = self.choosing.only or found
        return {n: v for n, v in found.items() if n in wanted and n not in pointless and self.arms_of(n)}

    @property
    def arms(self) -> tuple[Arm, ...]:
        """What a trial consists of."""
        return ("stream", "reconsolidation") if self.choosing.reconsolidate else ("stream",)

    def arms_of(self, name: str) -> tuple[Arm, ...]:
        """The arms for which a setting means something: only those are tried again when it changes."""
        return tuple(arm for arm in self.arms if self._matters(name, arm))

    def go(self, minutes: float, *, scorer: bool = True) -> StoreSettings:
        """Search until so many minutes are spent in all (earlier runs count), check, write the result.

        scorer: whether what tells paraphrases is fitted too, on the facts that are not held out.

        The search ends early enough for the check, which teaches the facts that were neighbours in the search and
        asks those that it taught. Settings that do no better there than those of the start are not taken.
        """
        self._met.clear()
        c = self.choosing
        found = search(self.start, self.grid, lambda p: self._within(p, 60 * minutes), c.least_gain, c.seed, self._idle)
        changes = self._changes(found)
        before, after = self._score({}, check=True), self._score(changes, check=True)
        if changes and after <= before:
            self.say(f"on other facts {told(changes)} gains nothing ({before:.3f} → {after:.3f}), and is not taken")
            changes = {}
        else:
            self.say(f"chosen: {told(changes)}; on other facts {before:.3f} → {after:.3f}")
        self._write(changes)
        if scorer and not self.rule.network:  # with a network, the run that trains it leaves the scorer
            bench = self.benches.at(changes)
            leave_scorer(self.out, bench.loaded, bench.fixed.conflict_mean, self.own, self.settings, self.say)
        return self.benches.changed(self.settings, changes)

    def begin(self) -> float:
        """The score of the settings that the search starts from."""
        return self._score({}, check=False)

    def _within(self, point: dict[str, Number], seconds: float) -> float | None:
        """The score of a point; None where it would have to be tried and too little is left for it."""
        changes, most = self._changes(point), self.choosing.trials
        if most is not None and len(self._met | {_key(changes)}) > most:
            return None
        trials = self.record.trials
        first = sum(t.seconds for t in trials if not t.changes and not t.check)
        tried = all(self._known(arm, changes, check=False) for arm in self.arms)
        # one more trial, and the check of two
        if trials and not tried and sum(t.seconds for t in trials) + 3 * first > seconds:
            return None
        self._met.add(_key(changes))
        return self._score(changes, check=False)

    def _idle(self, point: Mapping[str, Number]) -> bool:
        """Whether next to nothing is taught at a point that has been tried, by a rule that may begin so."""
        if not self.rule.tries.persists:
            return False
        efficacy = self._tried("stream", self._changes(point), check=False).efficacy
        return efficacy is not None and efficacy < TAUGHT

    def _score(self, changes: dict[str, Number], check: bool) -> float:
        return sum(self._tried(arm, changes, check).score for arm in self.arms) / len(self.arms)

    def _changes(self, point: Mapping[str, Number]) -> dict[str, Number]:
        return {name: value for name, value in point.items() if value != self.start[name]}

    def _matters(self, name: str, arm: Arm) -> bool:
        """Whether a setting means something to an arm."""
        alone = name.startswith("reconsolidation_")
        return name not in self.rule.tries.stream_only if arm == "reconsolidation" else not alone

    def _known(self, arm: Arm, changes: Mapping[str, Number], check: bool) -> Trial | None:
        wanted = {n: v for n, v in changes.items() if self._matters(n, arm)}
        same = (t for t in self.record.trials if (t.arm, t.check, t.changes) == (arm, check, wanted))
        return next(same, None)

    def _tried(self, arm: Arm, changes: Mapping[str, Number], check: bool) -> Trial:
        """A trial from the file, or made now and written there."""
        known = self._known(arm, changes, check)
        if known is None:
            known = self._try(arm, {n: v for n, v in changes.items() if self._matters(n, arm)}, check)
            self.record.trials.append(known)
            self.world.lead(lambda: write_json(self.out / TRIALS, self.record))
            what = f"{arm}, check" if check else arm
            self.say(f"trial {len(self.record.trials)}  {what}  {told(known.changes)}  {known.figures}")
        return known

    def _try(self, arm: Arm, changes: dict[str, Number], check: bool) -> Trial:
        began, held = self._seconds(), self.other if check else self.held
        try:
            scores, health = self._teach(self.benches.at(changes), arm, held)
        except (StepRefusedError, UsageError) as error:
            if not changes and isinstance(error, UsageError):
                raise  # the rule will not have what was given; that of the grid is a trial like others
            seconds = self._seconds() - began
            return Trial(arm=arm, check=check, changes=changes, score=-1.0, seconds=seconds, refused=str(error))
        ratio = health / self.base_perplexity
        return Trial(
            arm=arm,
            check=check,
            changes=changes,
            efficacy=finite(scores.efficacy),
            generality=finite(scores.generality),
            locality=finite(scores.locality),
            perplexity=finite(ratio),
            score=self.choosing.score(scores, ratio),
            seconds=self._seconds() - began,
        )

    def _teach(self, bench: Bench, arm: Arm, held: Held) -> tuple[Scores, float]:
        """Scores and health of the model that an arm makes."""
        editor = self.benches.rule.make(bench)
        if arm == "stream":
            state = taught_state(editor, held, self.choosing.batch_size)
        else:
            facts = list({f.digest: f for f in held.taught}.values())
            state = moved_by(State(), editor.relearn(facts, say=silent), facts)
        with bench.loaded.at(editor.overlay(state)):
            return self.asking.scores(bench.loaded, held), bench.task.health(bench.loaded, self.windows)

    def _write(self, changes: Mapping[str, Number]) -> None:
        chosen = self.benches.changed(self.settings, changes)
        source = self.loaded.source
        result = {
            "editor": self.benches.rule.name,
            "settings": {name: getattr(chosen, name) for name in self._written(chosen)},
            "changes": dict(changes),
            "provenance": {
                "model": Path(source).name if Path(source).is_dir() else source,
                "model_fingerprint": self.loaded.fingerprint,
                "identity": self.record.identity,
                "choosing": msgspec.to_builtins(self.choosing),
                "held_out": {"taught": len(self.held.taught), "neighbours": len(self.held.neighbours)},
                "seconds": sum(t.seconds for t in self.record.trials),
                "versions": {name: version(name) for name in ("lifelong-edit", "torch", "transformers")},
            },
            "trials": self.record.trials,
        }
        self.world.lead(lambda: write_json(self.out / CHOSEN, result))
        self.say(f"wrote {self.out / CHOSEN}")

    def _written(self, chosen: StoreSettings) -> list[str]:
        """The settings that a store takes from the result: those of the rule alone, and modules that were named."""
        kind, grid = self.rule.settings, self.rule.tries.grid
        every = StoreSettings.__struct_fields__
        if issubclass(kind, RidgeSettings):
            own = {n for n in kind.__struct_fields__ if n in SOLVE or n in grid}
        else:
            own = {n for n in kind.__struct_fields__ if n not in every}
            own |= {n for n in CONDITIONS if getattr(chosen, n) != getattr(kind(editor=chosen.editor), n)}
        return [n for n in kind.__struct_fields__ if n in own or (n == "modules" and chosen.modules)]


def _multiples(values: Sequence[Number], usual: Number) -> tuple[Number, ...]:
    """Multiples of what is usual, in three digits but for the once."""
    return tuple(usual if value == 1 else float(f"{value * usual:.3g}") for value in values)


def _key(changes: Mapping[str, Number]) -> tuple[tuple[str, Number], ...]:
    return tuple(sorted(changes.items()))
