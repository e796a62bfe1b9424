"""Training the networks of MEND and of RLEdit in the episodes in which MALMEN's is trained.

Facts, episodes, judges, optimiser, validation and checkpoints are the same; how a shift follows from a batch differs,
and so does the way of the gradient back from the edited weights to the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from lifelong_edit.bench import Bench, State, silent
from lifelong_edit.editors.contract import Editor, moved_by
from lifelong_edit.editors.malmen.network import NetworkSet
from lifelong_edit.editors.mend.rule import MendEditor
from lifelong_edit.editors.mend.rule import with_networks as mend_with
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.editors.ridge.gradient import SHARE
from lifelong_edit.editors.ridge.targets import Asker, Seen
from lifelong_edit.editors.rledit.rule import with_networks as rledit_with
from lifelong_edit.editors.rledit.settings import RLSettings
from lifelong_edit.facts import Fact
from lifelong_edit.tracing.rows import Row, draw, fact_rows
from lifelong_edit.tracing.trace import trace
from lifelong_edit.training.episodes import Episode, TaughtFact, Trainer, calibrate, weight_gradients

PUBLISHED_STEP = 1e-4
"""η with which MEND's published network begins."""


def relearned(trainer: Trainer, editor: Editor, state: State) -> None:
    """Move a state of training to what the rule makes of all its facts, a constant for the optimiser."""
    trainer.networks.eval()
    facts = list(state.live.values())
    found = moved_by(State(), editor.relearn(facts, say=silent), facts)
    trainer.networks.train()
    state.shifts, state.keys, state.parts = found.shifts, found.keys, found.parts


@dataclass
class MendTrainer(Trainer):
    """MEND: no solve, so the gradient of the judges' loss by ΔW is that by the shift (arXiv 2110.11309, section 3)."""

    def begin(self) -> None:
        """The rule as it is trained."""
        self.mend: MendEditor = mend_with(self.bench, self.networks)

    def run_batch(
        self, state: State, batch: Sequence[TaughtFact], earlier: Sequence[TaughtFact], episode: Episode
    ) -> None:
        """Shift, judge, carry the gradient back, step; `state` moves on, and the normaliser by the rows."""
        loaded, facts = self.bench.loaded, [c.fact for c in batch]
        state.shifts = loaded.zeros() | state.shifts
        recalled = [earlier[i] for i in draw(len(earlier), len(batch) // 2, "recall", self.steps)]
        pairs, _ = self.mend.pairs(state.shifts, fact_rows(loaded, facts, self.mend.settings.phrasings))
        for name, pair in pairs.items():
            self.networks.mend(name)[0].running.take(*pair)
        shift = loaded.world.kept(pairs, lambda name: _product(*self.mend.factors(name, pairs[name])))
        state.shifts = loaded.world.named(pairs, lambda name: state.shifts[name] + shift[name].detach())
        with loaded.at(state.shifts):
            judges = self.judges([*batch, *recalled], episode, self.steps)
            loss, slopes = weight_gradients(loaded, judges, self.bench.settings.micro_batch)
        self.clear_what_is_spent()
        for _, found in loaded.world.in_turn(pairs, lambda name: self.gradients(shift[name], slopes[name])):
            self.take(found)
        self.descend(loss)
        state.live |= {fact.digest: fact for fact in facts}

    def reconsolidate(self, state: State, episode: Episode) -> None:
        """All live facts of an episode again, in the rule's own way."""
        relearned(self, self.mend, state)


def _product(key: Tensor, gradient: Tensor) -> Tensor:
    """The shift k̃ᵀg̃, (d_in, d_out)."""
    return key.T @ gradient


def calibrate_mend(bench: Bench, networks: NetworkSet, facts: Sequence[Fact]) -> None:
    """Set the normaliser and where η begins: as published, or down the loss.

    Down by so much that a sample's shift takes away `SHARE` of its loss, were it linear, all matrices together.
    """
    editor = mend_with(bench, networks)
    rows = fact_rows(bench.loaded, facts, editor.settings.phrasings)
    pairs, loss = editor.pairs({}, rows)
    for name, pair in pairs.items():
        networks.mend(name)[0].running.take(*pair)
    for name, (keys, gradients) in pairs.items():
        network, layer = networks.mend(name)
        if editor.settings.begins == "published":
            network.unit[layer] = PUBLISHED_STEP
            continue
        with torch.no_grad():
            key, gradient = editor.factors(name, (keys, gradients))
            slope = float(((keys.T @ gradients) * (key.T @ gradient)).sum())
        network.unit[layer] *= -SHARE * loss * len(rows) / len(pairs) / slope if slope > 0 else -PUBLISHED_STEP


@dataclass
class RLTrainer(Trainer):
    """RLEdit: MALMEN's way, with a normaliser that moves.

    As published the gradients of one whole episode are gathered, and one step is made by them.
    """

    def begin(self) -> None:
        """The rule as it is trained."""
        self.editor: RidgeEditor = rledit_with(self.bench, self.networks)

    @property
    def at_once(self) -> bool:
        """Whether there is one step in all."""
        assert isinstance(self.editor.settings, RLSettings)
        return self.editor.settings.training == "published"

    def ready_as_published(self, state: State, rows: Sequence[Row]) -> Asker:
        """With the rows as they are at the state; the network's own normaliser takes them as well."""
        loaded = self.bench.loaded
        with loaded.at(state.shifts):
            traced = trace(loaded, rows, self.bench.settings.micro_batch)
        for name in self.bench.names:
            self.networks.of(name)[0].running.take(traced.keys[name], traced.gradients[name])
        none = {name: keys[:0] for name, keys in traced.keys.items()}
        return self.editor.targets.ready(Seen(none, {n: g[:0] for n, g in traced.gradients.items()}), {})

    def run_episode(self, facts: Sequence[Fact]) -> None:
        """One episode; as published one over as many facts as leave others to be asked, and a step after it."""
        if not self.at_once:
            super().run_episode(facts)
            return
        usual, self.gathered = self.train, list[float]()
        batches = max(1, len(facts) // 2 // usual.batch_size)
        self.train = msgspec.structs.replace(usual, batches=batches)
        super().run_episode(facts)
        self.train = usual
        super().descend(sum(self.gathered) / len(self.gathered))

    def reconsolidate(self, state: State, episode: Episode) -> None:
        """All live facts of an episode again, in the rule's own way."""
        relearned(self, self.editor, state)

    def descend(self, loss: float) -> None:
        """A step, or as published only what it will be made by."""
        if self.at_once:
            self.gathered.append(loss)
        else:
            super().descend(loss)


def calibrate_rledit(bench: Bench, networks: NetworkSet, facts: Sequence[Fact]) -> None:
    """The normaliser of a sample, and η as the settings say it, else that of the rule without a network."""
    options = RidgeEditor.options_of(bench)
    calibrate(bench, networks, facts)
    if options.eta is not None:
        with torch.no_grad():
            for name in bench.names:
                network, layer = networks.of(name)
                network.log_step[layer] = torch.tensor(options.eta).log()
