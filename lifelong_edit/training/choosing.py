"""Choosing the settings of a solve for a model, on facts that are held out.

A trial teaches held-out facts in a new state, batch by batch (`stream`) or all together from the base weights
(`reconsolidation`), and asks: efficacy, generality on a phrasing that was no row, locality on unedited facts of the
same relation and true answer, teacher-forced; perplexity on text that is in no gram. A coordinate search goes from the
settings given over a small grid. Every trial is kept in a file, and a search that is started again reads from it what
has been tried: it goes the same way, and on from there. What it ends with is checked on facts that it never taught.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import msgspec

from lifelong_edit.atomic import write_bytes_atomic
from lifelong_edit.bench import Bench, Say, State, prepare
from lifelong_edit.editors.contract import moved_by
from lifelong_edit.editors.gradient.rule import make
from lifelong_edit.editors.registry import PLAIN, TRAINED, rule_of
from lifelong_edit.editors.ridge.gradient import SHARE
from lifelong_edit.editors.ridge.settings import CHOSEN, SOLVE, Settings
from lifelong_edit.errors import BadInputError, StepRefusedError, UsageError
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.models import BASE, LoadedModel
from lifelong_edit.stores.digests import digest_bytes
from lifelong_edit.training.episodes import TrainSettings, divided
from lifelong_edit.training.run import Held, Scores, ask_held, hold_out, taught_state
from lifelong_edit.training.scorers import leave_scorer

TRIALS = "trials.json"
Arm = Literal["stream", "reconsolidation"]
Number = int | float

GRID: dict[str, tuple[Number, ...]] = {
    "eta": (0.6, 0.9, 1.3, 1.8, 2.2, 2.7, 3.3, 4.2),
    "reconsolidation_eta": (0.6, 0.9, 1.2, 1.8, 2.7, 3.6, 5.4),
    "c0": (30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0),
    "subject_c0": (300.0, 1000.0, 4000.0, 16_000.0),
    "preserved_keys": (0.0, 0.5, 1.0, 2.0, 4.0, 8.0),
    "passes": (1, 2, 3, 4, 5, 6, 8),
    "preserved_weight": (0.5, 1.0, 1.5, 2.5, 4.0),
    "preserved_step": (0.03, 0.1, 0.3, 1.0),
    "kappa": (0.3, 1.0, 2.0, 4.0, 8.0),
    "log_ridge": (-4.0, -2.0, 0.0, 2.0, 4.0, 6.0),
    "trust": (1.0, 1.5, 2.5, 4.0),
    "reconsolidation_keys": (0.0, 0.5, 2.0),
    "reconsolidation_passes": (8, 12, 16, 24, 32),
}
"""Values tried, ascending; in this order in the first round: what tells most comes first."""
STREAM_ONLY = ("eta", "passes", "preserved", "preserved_keys", "rehearse")
"""What a reconsolidation has settings of its own for (`reconsolidation_…`), which in turn mean nothing to a stream."""


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
    reconsolidate: bool = True
    """Whether a trial has the arm `reconsolidation` too."""
    least_gain: float = 0.002
    """A change that gains less is not made: shares of a few hundred facts are no finer."""
    only: tuple[str, ...] = ()
    """Names of the settings to choose; empty: all of the grid."""
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.only) - set(GRID)):
            raise UsageError(f"found {', '.join(unknown)} to choose; expected some of {', '.join(GRID)}")
        weights = (self.efficacy, self.generality, self.locality, self.perplexity, self.perplexity_free)
        if not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights[:3]):
            raise UsageError(f"found the weights {weights} of the objective; expected none below zero and one above it")
        if self.facts < 1 or self.batch_size < 1:
            raise UsageError(f"found {self.facts} facts in batches of {self.batch_size}; expected one or more of each")

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


class Trial(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One arm of one trial. changes: settings that differ from the start. perplexity: ratio to the base model's."""

    arm: Arm
    check: bool
    changes: dict[str, Number]
    efficacy: float | None = None
    generality: float | None = None
    locality: float | None = None
    perplexity: float | None = None
    score: float
    seconds: float
    refused: str | None = None


class Trials(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The file of a search: what it belongs to, and what has been tried."""

    identity: str
    trials: list[Trial] = msgspec.field(default_factory=list)


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
) -> dict[str, Number]:
    """Coordinate search: the best point found, a value for each name of the grid.

    Along each setting it goes up, or else down, as long as every step gains `least_gain`; rounds follow each other
    until one changes nothing, or `score` gives None: the budget is spent. The first round takes the settings in the
    grid's order, the later ones in orders drawn by `seed`. A function of its arguments alone.
    """
    best, found = dict(start), score(dict(start))
    order, orders, moved = list(grid), random.Random(seed), True
    while moved and found is not None:
        moved = False
        for name in order:
            for direction in (1, -1):
                before = found
                while (value := neighbour(grid[name], best[name], direction)) is not None:
                    figure = score({**best, name: value})
                    if figure is None:
                        return best
                    if figure <= found or figure < found + least_gain:  # on a plateau it would walk for ever
                        break
                    best, found, moved = {**best, name: value}, figure, True
                if found > before:
                    break  # it came from the other side
        orders.shuffle(order)
    return best


class Choice:
    """A search for the settings of a model's solve in a folder, continued where its file of trials ends."""

    def __init__(
        self,
        loaded: LoadedModel,
        facts: Sequence[Fact],
        text: Sequence[str],
        out: Path,
        settings: Settings,
        train: TrainSettings,
        choosing: Choosing | None = None,
        say: Say = print,
    ) -> None:
        if settings.ask == "published" or "settings" not in rule_of(settings.editor).trains:
            raise UsageError(
                f"settings are chosen for the joint solve with editor malmen or gradient; found editor "
                f"{settings.editor} and ask {settings.ask}; leave --choose out"
            )
        self.loaded, self.out, self.settings, self.say = loaded, out, settings, say
        self.choosing = choosing or Choosing(seed=train.seed)
        self.own, held = divided(facts, train)
        self.held = hold_out(held, self.choosing.facts, self.choosing.seed)
        self.other = hold_out(held, self.choosing.facts, self.choosing.seed, exchanged=True)
        probes = [Probe(f.prompt, f.target_true, f.subject, f.relation) for f in self.own]
        self.fixed = prepare(loaded, settings, text=text, preserve=probes)
        bench = self._bench({})
        self.windows = bench.guard_windows
        with loaded.at(BASE):
            self.base_perplexity = bench.task.health(loaded, self.windows)
        # A network learns its ridge; the setting would take it away from it.
        pointless = {"log_ridge"} if settings.editor == TRAINED else set()
        pointless |= set() if any(m.positions == "subject" for m in loaded.modules) else {"subject_c0"}
        names = [n for n in self.choosing.only or GRID if n not in pointless]
        self.grid = {name: GRID[name] for name in GRID if name in names and self.arms_of(name)}
        usual = {"eta": SHARE, "log_ridge": _log_ridge_of_one(bench)}  # what None stands for
        given = {name: getattr(settings, name) for name in self.grid}
        self.start: dict[str, Number] = {n: usual[n] if v is None else v for n, v in given.items()}
        identity = digest_bytes(
            loaded.fingerprint.encode(),
            *(f.digest.encode() for f in facts),
            *(part.encode() for part in text),
            settings.encoded(),
            *(msgspec.json.encode(p) for p in (self.choosing, train.validation_share, train.seed)),
        )
        self.record = _read_trials(out / TRIALS, identity)
        if self.record.trials:
            say(f"going on after {len(self.record.trials)} trials of {out / TRIALS}")

    @property
    def arms(self) -> tuple[Arm, ...]:
        """What a trial consists of."""
        return ("stream", "reconsolidation") if self.choosing.reconsolidate else ("stream",)

    def arms_of(self, name: str) -> tuple[Arm, ...]:
        """The arms for which a setting means something: only those are tried again when it changes."""
        return tuple(arm for arm in self.arms if _matters(name, arm))

    def go(self, minutes: float) -> Settings:
        """Search until so many minutes are spent in all (earlier runs count), check, write the result.

        The search ends early enough for the check, which teaches the facts that were neighbours in the search and
        asks those that it taught. Settings that do no better there than those of the start are not taken.
        """
        found = search(
            self.start, self.grid, lambda p: self._within(p, 60 * minutes), self.choosing.least_gain, self.choosing.seed
        )
        changes = self._changes(found)
        before, after = self._score({}, check=True), self._score(changes, check=True)
        if changes and after <= before:
            self.say(f"on other facts {_text(changes)} gains nothing ({before:.3f} → {after:.3f}), and is not taken")
            changes = {}
        else:
            self.say(f"chosen: {_text(changes)}; on other facts {before:.3f} → {after:.3f}")
        self._write(changes)
        if self.settings.editor == PLAIN:  # with a network, the run that trains it leaves the scorer
            leave_scorer(self.out, self.loaded, self.fixed.conflict_mean, self.own, self.settings, self.say)
        return self.settings.replace(**changes)

    def begin(self) -> float:
        """The score of the settings that the search starts from."""
        return self._score({}, check=False)

    def _within(self, point: dict[str, Number], seconds: float) -> float | None:
        """The score of a point; None where it would have to be tried and too little time is left for it."""
        changes = self._changes(point)
        trials = self.record.trials
        first = sum(t.seconds for t in trials if not t.changes and not t.check)
        tried = all(self._known(arm, changes, check=False) for arm in self.arms)
        # one more trial, and the check of two
        if trials and not tried and sum(t.seconds for t in trials) + 3 * first > seconds:
            return None
        return self._score(changes, check=False)

    def _score(self, changes: dict[str, Number], check: bool) -> float:
        return sum(self._tried(arm, changes, check).score for arm in self.arms) / len(self.arms)

    def _changes(self, point: Mapping[str, Number]) -> dict[str, Number]:
        return {name: value for name, value in point.items() if value != self.start[name]}

    def _known(self, arm: Arm, changes: Mapping[str, Number], check: bool) -> Trial | None:
        wanted = {n: v for n, v in changes.items() if _matters(n, arm)}
        same = (t for t in self.record.trials if (t.arm, t.check, t.changes) == (arm, check, wanted))
        return next(same, None)

    def _tried(self, arm: Arm, changes: Mapping[str, Number], check: bool) -> Trial:
        """A trial from the file, or made now and written there."""
        known = self._known(arm, changes, check)
        if known is None:
            known = self._try(arm, {n: v for n, v in changes.items() if _matters(n, arm)}, check)
            self.record.trials.append(known)
            _write(self.out / TRIALS, self.record)
            what = f"{arm}, check" if check else arm
            self.say(f"trial {len(self.record.trials)}  {what}  {_text(known.changes)}  {_figures(known)}")
        return known

    def _try(self, arm: Arm, changes: dict[str, Number], check: bool) -> Trial:
        began, held = time.monotonic(), self.other if check else self.held
        try:
            scores, health = self._teach(self._bench(changes), arm, held)
        except StepRefusedError as error:
            seconds = time.monotonic() - began
            return Trial(arm=arm, check=check, changes=changes, score=-1.0, seconds=seconds, refused=str(error))
        ratio = health / self.base_perplexity
        return Trial(
            arm=arm,
            check=check,
            changes=changes,
            efficacy=_finite(scores.efficacy),
            generality=_finite(scores.generality),
            locality=_finite(scores.locality),
            perplexity=_finite(ratio),
            score=self.choosing.score(scores, ratio),
            seconds=time.monotonic() - began,
        )

    def _teach(self, bench: Bench, arm: Arm, held: Held) -> tuple[Scores, float]:
        """Scores and health of the model that an arm makes."""
        editor = make(bench)
        if arm == "stream":
            state = taught_state(editor, held, self.choosing.batch_size)
        else:
            facts = list({f.digest: f for f in held.taught}.values())
            state = moved_by(State(), editor.relearn(facts), facts)
        with self.loaded.at(editor.overlay(state)):
            return ask_held(self.loaded, held), bench.task.health(self.loaded, self.windows)

    def _bench(self, changes: Mapping[str, Number]) -> Bench:
        """The bench of a trial: the rule without a network, which a network begins with."""
        return Bench(self.loaded, self.settings.replace(editor=PLAIN, **changes), self.fixed)

    def _write(self, changes: Mapping[str, Number]) -> None:
        chosen = self.settings.replace(**changes)
        names = [
            n for n in Settings.__struct_fields__ if n in SOLVE or n in GRID or (n == "modules" and chosen.modules)
        ]
        source = self.loaded.source
        result = {
            "settings": {name: getattr(chosen, name) for name in names},
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
        _write(self.out / CHOSEN, result)
        self.say(f"wrote {self.out / CHOSEN}")


def _matters(name: str, arm: Arm) -> bool:
    return name not in STREAM_ONLY if arm == "reconsolidation" else not name.startswith("reconsolidation_")


def _log_ridge_of_one(bench: Bench) -> float:
    """ℓ at which exp(ℓ)·trace(C₀)/d_in is 1, in the mean over the modules."""
    logs = [math.log(bench.text_gram.trace(name) / bench.text_gram.width(name)) for name in bench.names]
    return -sum(logs) / len(logs)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _text(changes: Mapping[str, Number]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in changes.items()) or "start"


def _figures(trial: Trial) -> str:
    if trial.refused is not None:
        return f"refused: {trial.refused}"
    parts = (
        ("ES", trial.efficacy),
        ("GS", trial.generality),
        ("LS", trial.locality),
        ("perplexity ×", trial.perplexity),
    )
    shown = "  ".join(f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in parts)
    return f"{shown}  score {trial.score:.3f}"


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")


def _read_trials(path: Path, identity: str) -> Trials:
    if not path.is_file():
        return Trials(identity=identity)
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Trials)
    except msgspec.MsgspecError as error:
        raise BadInputError(f"{path} is no file of trials ({error}); remove it or choose another --out") from error
    if found.identity != identity:
        raise UsageError(
            f"{path} belongs to another search (other model, facts, text or settings); expected the same ones to go on "
            "from; choose another --out or remove the file"
        )
    return found
