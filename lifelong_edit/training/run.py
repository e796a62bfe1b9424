"""A training run: data split by subject, validation as it goes, checkpoints, and a result with its provenance."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from lifelong_edit.atomic import write_bytes_atomic
from lifelong_edit.bench import Bench, Say, State, prepare, silent
from lifelong_edit.editors.contract import Editor, Lesson, moved_by
from lifelong_edit.editors.malmen.network import NetworkSet, read_checkpoint
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.editors.ridge.settings import RidgeSettings
from lifelong_edit.editors.serac.rule import shape_for
from lifelong_edit.editors.serac.settings import SeracSettings
from lifelong_edit.errors import UsageError
from lifelong_edit.eval.metrics.verdicts import predict_answers
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.models import BASE, LoadedModel
from lifelong_edit.settings import StoreSettings
from lifelong_edit.stores.digests import digest_bytes
from lifelong_edit.stores.tensors import tensors_digest
from lifelong_edit.tasks import task_of
from lifelong_edit.tracing.rows import draw
from lifelong_edit.training.episodes import TrainSettings, divided, new_networks
from lifelong_edit.training.scorers import leave_scorer
from lifelong_edit.training.ways import WAYS, form_of, settings_to_train_in, steps_in_all

CHECKPOINT, NETWORK = "checkpoint.safetensors", "network.safetensors"

Track = Callable[[int, Mapping[str, float]], None]
"""Takes figures of an optimiser step, by name."""


def _untracked(step: int, figures: Mapping[str, float]) -> None:
    """For runs whose figures go nowhere."""


@dataclass(frozen=True)
class Scores:
    """Efficacy, generality, locality on held-out facts, teacher-forced whole answers."""

    efficacy: float
    generality: float
    locality: float

    @property
    def mean(self) -> float:
        """What the best checkpoint is chosen by; a score of which nothing is known does not count."""
        return float(np.nanmean([self.efficacy, self.generality, self.locality]))

    def __str__(self) -> str:
        return f"ES {self.efficacy:.3f}  GS {self.generality:.3f}  LS {self.locality:.3f}"


@dataclass(frozen=True)
class Held:
    """Held-out facts: those that are taught, the phrasing that each is asked in, and unedited neighbours."""

    taught: list[Fact]
    asked: list[str]
    neighbours: list[Fact]


def hold_out(facts: Sequence[Fact], count: int, seed: int, exchanged: bool = False) -> Held:
    """Up to `count` held-out facts to teach, the rest of them as neighbours of same relation and answer.

    The first half of a fact's rephrases may be rows, one of the second half is asked. exchanged: facts are taught that
    are not taught without it, and those that are become neighbours.
    """
    order = draw(len(facts), min(count, max(1, len(facts) // 2)), "taught", seed)
    if exchanged:
        order = sorted(set(range(len(facts))) - set(order))[:count]
    teach, asked = [], []
    for i in order:
        fact, half = facts[i], len(facts[i].rephrases) // 2
        rest = fact.rephrases[half:] or (fact.prompt,)
        asked.append(rest[draw(len(rest), 1, "asked", seed, fact.digest)[0]])
        teach.append(msgspec.structs.replace(fact, rephrases=fact.rephrases[:half]))
    near = {(f.relation, f.target_true) for f in teach}
    others = [f for i, f in enumerate(facts) if i not in set(order)]
    return Held(teach, asked, [f for f in others if f.target_true and (f.relation, f.target_true) in near])


def known(held: Held, right: Sequence[bool], say: Say) -> Held:
    """The same with those neighbours alone that the base model answers as `target_true` has it.

    The others have no old answer that an edit could leave as it is. right: of each neighbour whether it is.
    """
    kept = [fact for fact, answered in zip(held.neighbours, right, strict=True) if answered]
    if len(kept) < len(held.neighbours):
        where = "locality is asked of these" if kept else "of the others there is no locality to ask"
        say(
            f"the model answers {len(kept)} of {len(held.neighbours)} held-out neighbours as their target_true says; "
            f"{where}"
        )
    return replace(held, neighbours=kept)


def validate(loaded: LoadedModel, editor: Editor, held: Held, batch_size: int) -> Scores:
    """Teach the held-out facts batch after batch with an editor of the model, and ask."""
    with loaded.at(editor.overlay(taught_state(editor, held, batch_size))):
        return ask_held(loaded, held)


def taught_state(editor: Editor, held: Held, batch_size: int) -> State:
    """The state after the held-out facts were taught to the base model, batch after batch."""
    state = State(digest="validation")
    for start in range(0, len(held.taught), batch_size):
        batch = held.taught[start : start + batch_size]
        state = moved_by(state, editor.learn(state, Lesson(batch)), batch)
    return state


def ask_held(loaded: LoadedModel, held: Held) -> Scores:
    """The scores of the model as it stands, teacher-forced; NaN where there is nothing to ask."""
    taught = [(f.prompt, f.answer) for f in held.taught]
    asked = [(p, f.answer) for p, f in zip(held.asked, held.taught, strict=True)]
    found = (_right(loaded, taught), _right(loaded, asked), neighbours_right(loaded, held))
    return Scores(*(float(np.mean(right)) if right else float("nan") for right in found))


def neighbours_right(loaded: LoadedModel, held: Held) -> list[bool]:
    """Of each neighbour whether the model as it stands answers its `target_true`, teacher-forced."""
    return _right(loaded, [(f.prompt, f.target_true or "") for f in held.neighbours])


def _right(loaded: LoadedModel, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    encoded = [task_of(loaded).encode(loaded, prompt, target) for prompt, target in pairs]
    found = predict_answers(loaded, encoded) if encoded else []
    return [guess == e.answer for guess, e in zip(found, encoded, strict=True)]


class Run:
    """One training run in a folder, continued where its last checkpoint stands.

    Of several processes (`LoadedModel.world`) each has the networks and the optimiser alike, and takes the same steps;
    number 0 alone speaks, reads the checkpoint and writes, and says when the time is up.

    settings: of the rule whose network is trained; of one without it is `malmen`'s. start: a folder with a trained
    network to begin with, in place of the rule without one. track: told the losses of
    each optimiser step, and the held-out scores, by name.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        facts: Sequence[Fact],
        text: Sequence[str],
        out: Path,
        settings: StoreSettings,
        train: TrainSettings,
        say: Say = print,
        start: Path | None = None,
        track: Track = _untracked,
    ) -> None:
        self.loaded, self.out, self.train, self.world = loaded, out, train, loaded.world
        self.say, self.track = (say, track) if self.world.leads else (silent, _untracked)
        self.settings = settings_to_train_in(settings)
        way, self.form = WAYS[self.settings.editor], form_of(self.settings)
        self.facts, held = divided(facts, train)
        held_out = hold_out(held, train.validation_facts, train.seed)
        with loaded.at(BASE):
            self.held = known(held_out, neighbours_right(loaded, held_out), self.say)
        self.data_digest = digest_bytes(*(f.digest.encode() for f in facts))
        trust = settings.trust if isinstance(settings, RidgeSettings) else 1.5
        shape = shape_for(loaded, self.settings) if isinstance(self.settings, SeracSettings) else None
        self.networks = new_networks(loaded, self.form, train, trust, shape)
        # A fact without a subject is about its whole prompt: episodes leave out what they edit by this name.
        probes = [Probe(f.prompt, f.target_true, f.about, f.relation) for f in self.facts]
        solves = rule_of(self.settings.editor).statistics
        self.fixed = prepare(loaded, settings, text=text, preserve=probes, statistics=solves)
        bench = Bench(loaded, self.settings, self.fixed)
        self.start = "" if start is None else self._begin_with(start)
        if start is None:
            way.calibrate(bench, self.networks, self.facts[: train.batch_size])
        self.trainer = way.trainer(bench, self.networks, train)
        self.averaged = copy.deepcopy(self.networks).eval().requires_grad_(False)
        self._judged = partial(way.judged, Bench(loaded, self.settings, self.fixed), self.averaged)
        self.best: tuple[float, dict[str, np.ndarray]] | None = None
        self.world.lead(lambda: out.mkdir(parents=True, exist_ok=True))
        self._resume()

    def _begin_with(self, folder: Path) -> str:
        """Take over a trained network, with its normaliser, and say which: the digest of its tensors."""
        earlier = read_checkpoint(folder)
        earlier.check(self.loaded.modules)
        found = (earlier.config.form, earlier.config.rank, earlier.config.blocks)
        wanted = (self.form, self.train.rank, self.train.blocks)
        if found != wanted:
            raise UsageError(
                f"the network in {folder} has form, rank and blocks {found}; expected {wanted}; set them alike"
            )
        if earlier.config.serac != self.networks.config.serac:
            raise UsageError(
                f"the network in {folder} has other sizes or another encoder; expected rank, width and encoder as set, "
                "on the matrices of this model; set them alike"
            )
        self.networks.load_state_dict(earlier.state_dict())
        return tensors_digest(earlier.tensors())

    @property
    def identity(self) -> str:
        """Digest of all that decides the run's numbers; a checkpoint of another run is not continued."""
        parts = (self.settings.encoded(), msgspec.json.encode(self.train))
        return digest_bytes(
            self.loaded.fingerprint.encode(),
            self.data_digest.encode(),
            self.start.encode(),
            *parts,
        )

    def go(self, minutes: float, steps: int | None = None, clock: Callable[[], float] = time.monotonic) -> NetworkSet:
        """Train for so many minutes by `clock` (seconds), or up to so many steps in all; write the result."""
        started, steps = clock(), steps_in_all(self.settings, steps)

        def is_left() -> bool:
            return clock() - started < 60 * minutes

        if self.trainer.steps == 0:
            self._validate()
        while self.world.lead(is_left) and (steps is None or self.trainer.steps < steps):
            before = self.trainer.steps
            self.trainer.run_episode(self.facts)
            recent = self.trainer.history[-(self.trainer.steps - before) :]
            for found in recent:
                self.track(int(found["step"]), {f"train/{name}": found[name] for name in ("loss", "gradient")})
            loss = float(np.mean([h["loss"] for h in recent]))
            self.say(f"step {self.trainer.steps}  loss {loss:.3f}  {clock() - started:.0f} s")
            if before // self.train.validate_every != self.trainer.steps // self.train.validate_every:
                self._validate()
            self._save()
        self._validate()
        self._save()
        return self._finish()

    def _validate(self) -> None:
        self.averaged.load_state_dict(self.trainer.average)
        # Made anew: a rule may keep what its network once said of a fact.
        scores = validate(self.loaded, self._judged(), self.held, self.train.batch_size)
        self.say(f"step {self.trainer.steps}  held-out {scores}")
        self.track(self.trainer.steps, {f"held_out/{name}": value for name, value in asdict(scores).items()})
        if self.best is None or scores.mean >= self.best[0]:  # of several that do alike the one that learned longest
            # Copies: the arrays are views of what the next validation overwrites.
            self.best = (scores.mean, {name: array.copy() for name, array in self.averaged.tensors().items()})

    def _save(self) -> None:
        """All that the next episode depends on, in one file that appears whole or not at all.

        Raises WorldError, and writes nothing, where processes have not come to the same.
        """
        tensors = {f"network/{n}": t for n, t in self.networks.tensors().items()}
        tensors |= {f"average/{n}": t.numpy() for n, t in self.trainer.average.items()}
        names = {id(p): n for n, p in self.networks.named_parameters()}
        for parameter, moments in self.trainer.optimiser.state.items():
            for part, value in moments.items():
                tensors[f"adam/{part}/{names[id(parameter)]}"] = value.detach().cpu().numpy()
        if self.best is not None:
            tensors |= {f"best/{n}": t for n, t in self.best[1].items()}
            tensors["best.mean"] = np.array(self.best[0])
        tensors["counts"] = np.array([self.trainer.episode, self.trainer.steps])
        tensors["identity"] = np.frombuffer(self.identity.encode(), np.uint8)
        whole = {
            n: np.asarray(t, order="C") for n, t in tensors.items()
        }  # ascontiguousarray would give scalars a shape
        data = save_safetensors(whole)
        self.world.agree("a checkpoint with the digest", digest_bytes(data))
        self.world.lead(lambda: write_bytes_atomic(self.out / CHECKPOINT, data))

    def _read(self, identity: str) -> dict[str, torch.Tensor] | None:
        """What the checkpoint holds; None where there is none. Raises UsageError for that of another run."""
        path = self.out / CHECKPOINT
        if not path.is_file():
            return None
        tensors = load_safetensors(path.read_bytes())
        if tensors.pop("identity").tobytes().decode() != identity:
            raise UsageError(
                f"{path} belongs to another run (other model, facts or settings); expected the same ones to go on "
                "from; choose another --out or remove the file"
            )
        return {name: torch.tensor(array) for name, array in tensors.items()}  # aligned as those that arrive elsewhere

    def _resume(self) -> None:
        identity = self.identity  # of a model in shards no process tells it alone
        tensors = self.world.lead(lambda: self._read(identity))
        if tensors is None:
            return
        self.networks.load_state_dict(_under(tensors, "network/"))
        self.trainer.average = _under(tensors, "average/")
        moments: dict[str, dict[str, torch.Tensor]] = {}
        for name, value in _under(tensors, "adam/").items():
            part, of = name.split("/", 1)
            moments.setdefault(of, {})[part] = value
        for name, parameter in self.networks.named_parameters():
            if name in moments:
                self.trainer.optimiser.state[parameter] = moments[name]
        if "best.mean" in tensors:
            best = {n: t.numpy() for n, t in _under(tensors, "best/").items()}
            self.best = (float(tensors["best.mean"]), best)
        self.trainer.episode, self.trainer.steps = (int(n) for n in tensors["counts"])
        self.say(f"going on from step {self.trainer.steps} of {self.out / CHECKPOINT}")

    def _finish(self) -> NetworkSet:
        """Write network.safetensors and config.json: the best held-out mean seen."""
        assert self.best is not None
        self.networks.load_state_dict({n: torch.from_numpy(t) for n, t in self.best[1].items()})
        config = msgspec.structs.replace(
            self.networks.config,
            settings=msgspec.to_builtins(self.settings),
            provenance={
                "model": self.loaded.source if not Path(self.loaded.source).is_dir() else Path(self.loaded.source).name,
                "model_fingerprint": self.loaded.fingerprint,
                "data_digest": self.data_digest,
                "facts": len(self.facts),
                "train": msgspec.to_builtins(self.train),
                "start": self.start,
                "steps": self.trainer.steps,
                "held_out_mean": self.best[0],
                "versions": {name: version(name) for name in ("lifelong-edit", "torch", "transformers")},
            },
        )
        half = {n: t.astype(np.float16) if n.endswith((".a", ".b")) else t for n, t in self.best[1].items()}
        self.world.lead(lambda: write_bytes_atomic(self.out / NETWORK, save_safetensors(half)))
        leave_scorer(self.out, self.loaded, self.fixed.conflict_mean, self.facts, self.settings, self.say)
        told = msgspec.json.format(msgspec.json.encode(config), indent=1)
        self.world.lead(lambda: write_bytes_atomic(self.out / "config.json", told))
        self.say(f"wrote {self.out / NETWORK}  (held-out mean {self.best[0]:.3f})")
        return self.networks.eval().requires_grad_(False)


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
