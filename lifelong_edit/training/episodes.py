"""Training the hypernetwork in the solve that it will live in (after MALMEN, section 4.3).

An episode is a short stream: batches follow each other, each in several passes over new facts, earlier
ones and preserved prompts. After each pass the loss on phrasings that are no rows and on hard
locality prompts is differentiated by the edited weights, carried through the solve by hand, and ends
in one optimiser step; keys, gradients, P and ΔW before the pass are constants.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import msgspec
import torch
from torch import Tensor

from lifelong_edit.bench import Bench, State
from lifelong_edit.editors.contract import Lesson, Whole
from lifelong_edit.editors.malmen.blocks import Form
from lifelong_edit.editors.malmen.network import NetworkConfig, NetworkSet
from lifelong_edit.editors.malmen.rule import with_networks
from lifelong_edit.editors.ridge.batch import held_still, ready
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.editors.ridge.gradient import SHARE, linear_steps, output_metrics
from lifelong_edit.editors.ridge.passes import RowSystem, fact_keys, one_pass
from lifelong_edit.editors.ridge.rows import select_rows
from lifelong_edit.editors.ridge.targets import Asker, Seen
from lifelong_edit.editors.ridge.together import slices
from lifelong_edit.editors.serac.network import SeracShape
from lifelong_edit.errors import BadInputError
from lifelong_edit.facts import Fact
from lifelong_edit.models import BASE, LoadedModel, by_length
from lifelong_edit.numerics.solver import Held, solve_backward
from lifelong_edit.stores import MOMENTS, WEIGHTS
from lifelong_edit.tasks import task_of
from lifelong_edit.tracing.preservation import PreservedPrompts
from lifelong_edit.tracing.rows import Row, draw, fact_rows
from lifelong_edit.tracing.trace import Trace, accumulate, trace

SCALARS = ("log_step", "log_ridge", "factor")
"""How the names of learned steps and ridges end, which have a rate of their own."""


class TrainSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a training run is, beside the settings of the solve."""

    rank: int = 256
    blocks: int = 2
    batch_size: int = 50
    batches: int = 6
    """Batches of one episode."""
    reconsolidate_every: int = 0
    """After so many batches of an episode all its facts are solved for again from the base weights, as a store does
    that lives long; 0: never."""
    rate: float = 1e-3
    """Adam's rate for the blocks."""
    scalar_rate: float = 1e-2
    """Adam's rate for the learned steps and ridges."""
    clip: float = 1.0
    averaging: float = 0.99
    """Decay of the running mean of the parameters, which is what is validated and kept: single steps are noisy."""
    locality_weight: float = 6.0
    probes: int = 150
    """Hard locality prompts per pass."""
    validation_share: float = 0.3
    """Share of subjects held out; half of their facts are taught in validation, the others probe locality."""
    validation_facts: int = 250
    validate_every: int = 90
    """Steps between validations."""
    seed: int = 0


@dataclass(frozen=True)
class TaughtFact:
    """A training fact whose rephrases are split: those that may be rows, and one that is only asked."""

    fact: Fact
    asked: str


@dataclass
class Episode:
    """One short stream with the prompts that judge it."""

    batches: list[list[TaughtFact]]
    probes: list[int]
    """Indices of locality prompts among the preserved ones; they and their subjects are no rows here."""
    hidden: frozenset[str]
    """Case-folded subjects that must not become preserved rows."""


def split_by_subject(facts: Sequence[Fact], share: float, seed: int) -> tuple[list[Fact], list[Fact]]:
    """Training and validation facts; no subject is in both."""
    subjects = sorted({f.about.casefold() for f in facts})
    held = {subjects[i] for i in draw(len(subjects), round(share * len(subjects)), "validation", seed)}
    return [f for f in facts if f.about.casefold() not in held], [f for f in facts if f.about.casefold() in held]


def divided(facts: Sequence[Fact], t: TrainSettings) -> tuple[list[Fact], list[Fact]]:
    """Training and held-out facts. Raises BadInputError where one of the two would be too few."""
    own, held = split_by_subject(facts, t.validation_share, t.seed)
    if len(own) < 2 * t.batch_size or len(held) < 4:
        raise BadInputError(
            f"found {len(own)} facts to train on and {len(held)} held out; expected at least "
            f"{2 * t.batch_size} and 4; give more facts or a smaller batch size"
        )
    return own, held


def taught(fact: Fact, *parts: object) -> TaughtFact:
    """A fact with one rephrase held back to be asked; a fact without any is asked in its own prompt."""
    phrasings = [p for p in dict.fromkeys(fact.rephrases) if p != fact.prompt]
    if not phrasings:
        return TaughtFact(fact, fact.prompt)
    held = draw(len(phrasings), 1, "asked", fact.digest, *parts)[0]
    rest = tuple(p for i, p in enumerate(phrasings) if i != held)
    return TaughtFact(msgspec.structs.replace(fact, rephrases=rest), phrasings[held])


def make_episode(facts: Sequence[Fact], preserved: PreservedPrompts, t: TrainSettings, number: int) -> Episode:
    """The episode of a number: its facts, and locality prompts of other subjects, most of them of the same answer."""
    count = min(t.batch_size * t.batches, len(facts) // 2)
    order = torch.randperm(len(facts), generator=torch.Generator().manual_seed(1_000_003 * t.seed + number)).tolist()
    chosen = [taught(facts[i], number) for i in order[:count]]
    edited = {c.fact.about.casefold() for c in chosen}
    answers: dict[str | None, set[str | None]] = {}
    for c in chosen:
        answers.setdefault(c.fact.relation, set()).add(c.fact.target_true)
    same: list[int] = []
    other: list[int] = []
    side = set(draw(len(preserved.probes), len(preserved.probes) // 2, "side", t.seed, number))
    for i in sorted(side):
        probe = preserved.probes[i]
        if probe.subject is None or probe.relation not in answers or probe.subject.casefold() in edited:
            continue
        (same if probe.target in answers[probe.relation] else other).append(i)
    quarter = t.probes * t.batches // 4
    probes = [same[i] for i in draw(len(same), 3 * quarter, "same", t.seed, number)]
    probes += [other[i] for i in draw(len(other), quarter, "other", t.seed, number)]
    hidden = frozenset((preserved.probes[i].subject or "").casefold() for i in probes)
    batches = [chosen[i : i + t.batch_size] for i in range(0, count, t.batch_size)]
    return Episode([b for b in batches if b], probes, hidden)


def weight_gradients(loaded: LoadedModel, rows: Sequence[Row], micro_batch: int) -> tuple[float, dict[str, Tensor]]:
    """Σ w·loss over rows and its gradient by each edited matrix, (d_in, d_out) float32.

    Of several processes each has all of it, added up by micro-batches in their order.
    """
    weights = [loaded.model.get_submodule(m.name).weight for m in loaded.modules]
    total, gradients = 0.0, [torch.zeros_like(weight) for weight in weights]
    batches = list(by_length([len(r.encoded.ids) for r in rows], micro_batch))
    for weight in weights:
        weight.requires_grad_(True)
    try:
        for group in slices(batches, loaded.world.at_once):
            for loss in _add_group(loaded, [[rows[i] for i in chosen] for chosen in group], weights, gradients):
                total += loss  # one by one: a sum of sums would go by how many processes there are
    finally:
        for weight in weights:
            weight.requires_grad_(False)
    found = zip(loaded.modules, gradients, strict=True)
    return total, {m.name: (g.T if m.orientation == "linear" else g).float() for m, g in found}


def _add_group(
    loaded: LoadedModel, parts: Sequence[Sequence[Row]], weights: Sequence[Tensor], sums: Sequence[Tensor]
) -> list[float]:
    """Add the gradients of as many micro-batches as there are processes to the sums; the loss of each.

    Gradients are as large as the matrices: each is sent by itself, so that of one matrix alone all are held.
    """
    task, own = task_of(loaded), dict[int, tuple[Tensor, ...]]()

    def work(number: int) -> float:
        part = parts[number]
        batch = task.collate(loaded, [r.encoded for r in part])
        losses, row = task.loss(task.logits(loaded, batch), batch, part)
        loss = (losses * torch.tensor([r.weight for r in part], device=losses.device)[row]).sum()
        own[number] = torch.autograd.grad(loss, weights)
        return float(loss.detach())

    told = loaded.world.each(range(len(parts)), work)
    for place, added in enumerate(sums):
        for found in loaded.world.each(range(len(parts)), partial(_at_place, own, place)):
            added += found
    return told


def _at_place(found: Mapping[int, Sequence[Tensor]], place: int, number: int) -> Tensor:
    """One of the tensors that were found of a number."""
    return found[number][place]


@dataclass
class Trainer:
    """Networks, optimiser and the bench they are trained on."""

    bench: Bench
    networks: NetworkSet
    train: TrainSettings
    episode: int = 0
    steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    spent: bool = False
    """Whether a step was made by the gradients that stand there: the next ones begin from nothing."""

    def __post_init__(self) -> None:
        self.networks.train().requires_grad_(True)
        self.optimiser = torch.optim.Adam(self.groups())
        self.average = {n: t.detach().clone() for n, t in self.networks.state_dict().items()}
        self.begin()

    def groups(self) -> list[dict[str, Any]]:
        """The parameters by their rate, as an optimiser takes them."""
        named = list(self.networks.named_parameters())
        scalars = [p for n, p in named if n.endswith(SCALARS)]
        blocks = [p for n, p in named if not n.endswith(SCALARS)]
        return [{"params": blocks, "lr": self.train.rate}, {"params": scalars, "lr": self.train.scalar_rate}]

    def begin(self) -> None:
        """Make ready what the form of the network asks for."""
        self.editor = with_networks(self.bench, self.networks)

    def judges(self, batch: Sequence[TaughtFact], episode: Episode, number: int) -> list[Row]:
        """What the edited model is asked after a pass: phrasings that are no rows, prompts, hard neighbours."""
        loaded, task, t = self.bench.loaded, self.bench.task, self.train
        rows = []
        for c in batch:
            rows.append(Row(task.encode(loaded, c.asked, c.fact.answer), "new", 0.7 / len(batch)))
            rows.append(Row(task.encode(loaded, c.fact.prompt, c.fact.answer), "new", 0.3 / len(batch)))
        chosen = [episode.probes[i] for i in draw(len(episode.probes), t.probes, "probes", t.seed, number)]
        rows += [self.bench.preserved.row(i, t.locality_weight / max(1, len(chosen))) for i in chosen]
        return rows

    def run_episode(self, facts: Sequence[Fact]) -> None:
        """One episode, one optimiser step after each pass."""
        episode = make_episode(facts, self.bench.preserved, self.train, self.episode)
        state = State(digest=f"episode-{self.train.seed}-{self.episode}")
        earlier: list[TaughtFact] = []
        every = self.train.reconsolidate_every
        for number, batch in enumerate(episode.batches, start=1):
            self.run_batch(state, batch, earlier, episode)
            earlier += batch
            # After the last batch nothing would be learned from it.
            if every and number % every == 0 and number < len(episode.batches):
                self.reconsolidate(state, episode)
        self.episode += 1

    def reconsolidate(self, state: State, episode: Episode) -> None:
        """Solve again for all live facts of an episode: ΔW and keys become the result, constants for the optimiser.

        The episode's locality prompts, and all else about their subjects, are no rows of it and in none of its grams.
        """
        bench, preserved = copy(self.bench), self.bench.preserved
        asked = {i for i, probe in enumerate(preserved.probes) if (probe.subject or "").casefold() in episode.hidden}
        bench.preserved = replace(preserved, guard=preserved.guard | asked)
        change = RidgeEditor(bench, self.editor.targets).relearn(list(state.live.values()))
        weights = change.parts[WEIGHTS]
        assert isinstance(weights, Whole)  # of all facts together
        state.shifts = {name: torch.from_numpy(array) for name, array in weights.arrays.items()}
        state.keys = change.keys()

    def run_batch(
        self, state: State, batch: Sequence[TaughtFact], earlier: Sequence[TaughtFact], episode: Episode
    ) -> None:
        """All passes over one batch of an episode; `state` moves on."""
        bench, s = self.bench, self.editor.settings
        facts = [c.fact for c in batch]
        work = self.editor.work(state, Lesson(facts, hidden=episode.hidden))
        recalled = [earlier[i] for i in draw(len(earlier), len(batch) // 2, "recall", self.steps)]
        held: Held
        if s.ask == "published":
            rows = fact_rows(bench.loaded, facts, s.phrasings, closed=False)
            asker, held = self.ready_as_published(state, rows), dict.fromkeys(bench.names, (None, None))
        else:
            rows = select_rows(bench, s, state, work.lesson, sorted(state.live))
            asker, held = ready(work, rows), held_still(work, self.editor.preservation, rows, 1)
        if asker.moments:
            state.parts[MOMENTS] = asker.moments
        for _ in range(1 if s.ask == "published" else s.passes):
            traced = self.one_pass(state, rows, asker, held, self.judges([*batch, *recalled], episode, self.steps))
        for fact in facts:
            state.live[fact.digest] = fact
        # One trace earlier than in a committed step, which saves an episode a quarter of its time.
        conflict = {digest: keys.conflict for digest, keys in state.keys.items()} | work.conflict
        state.keys.update(fact_keys(bench, traced, rows, conflict))

    def ready_as_published(self, state: State, rows: Sequence[Row]) -> Asker:
        """The rule made ready for a published solve: it has no metric to fit."""
        return self.editor.targets.ready(Seen({}, {}), {})

    def one_pass(self, state: State, rows: Sequence[Row], asker: Asker, held: Held, judges: Sequence[Row]) -> Trace:
        """Ask, solve, judge, carry the gradient back through the solve, step; what the rows' trace recorded."""
        bench, s = self.bench, self.editor.settings
        state.shifts = bench.loaded.zeros() | state.shifts
        system = RowSystem(held, self.editor.ridges())
        with bench.loaded.at(state.shifts):
            traced = one_pass(bench, asker, rows, system, 1.0 if s.ask == "published" else s.preserved_step)
        state.shifts = system.moved(state.shifts, bench.loaded.world)
        with bench.loaded.at(state.shifts):
            loss, slopes = weight_gradients(bench.loaded, judges, bench.settings.micro_batch)

        def carried(name: str) -> tuple[float, list[Tensor | None]]:
            by_value, by_ridge = solve_backward(system.solutions[name], slopes[name])
            return by_ridge, self.gradients(system.values[name], by_value.float())

        self.clear_what_is_spent()
        for name, (by_ridge, found) in bench.loaded.world.in_turn(bench.names, carried):
            self.take(found)
            network, layer = self.networks.of(name)
            if network.log_ridge.grad is None:
                network.log_ridge.grad = torch.zeros_like(network.log_ridge)
            if s.log_ridge is None:  # else λ is the setting's, and not learned
                network.log_ridge.grad[layer] += by_ridge * self.networks.ridge(name)
        self.descend(loss)
        return traced

    def gradients(self, found: Tensor, by_found: Tensor | None = None) -> list[Tensor | None]:
        """Those of the parameters by what was found with them; by_found: the loss's by that, none where it is the loss.

        Each has memory of its own, laid out as the parameter: whoever found it, it is added and measured alike.
        """
        grads = torch.autograd.grad(
            found,
            list(self.networks.parameters()),
            None if by_found is None else by_found.to(found.device),
            allow_unused=True,
        )
        return [None if grad is None else grad.clone(memory_format=torch.contiguous_format) for grad in grads]

    def take(self, gradients: Sequence[Tensor | None]) -> None:
        """Add gradients to those that the parameters have."""
        for parameter, gradient in zip(self.networks.parameters(), gradients, strict=True):
            accumulate(parameter, gradient)

    def clear_what_is_spent(self) -> None:
        """Before gradients are added: those by which a step was made are gone."""
        if self.spent:
            self.optimiser.zero_grad()
            self.spent = False

    def descend(self, loss: float) -> None:
        """One step of the optimiser by the gradients that the parameters have, which are then spent."""
        norm = torch.nn.utils.clip_grad_norm_(self.networks.parameters(), self.train.clip)
        self.optimiser.step()
        self.spent = True
        self.steps += 1
        # A plain mean at first, so that the start does not weigh for ever.
        share, learned = max(1 - self.train.averaging, 1 / (self.steps + 1)), dict(self.networks.named_parameters())
        for key, value in self.networks.state_dict().items():
            if key in learned:
                self.average[key].lerp_(value.detach(), share)
            else:  # a count is no mean
                self.average[key].copy_(value)
        self.history.append({"step": self.steps, "loss": loss, "gradient": float(norm), "time": time.time()})


def new_networks(
    loaded: LoadedModel, form: Form, t: TrainSettings, trust: float = 1.5, serac: SeracShape | None = None
) -> NetworkSet:
    """Untrained networks for a model's modules, seeded. serac: the sizes of those of that form."""
    torch.manual_seed(t.seed)
    modules = loaded.modules
    return NetworkSet(
        NetworkConfig(
            form=form,
            rank=t.rank,
            blocks=t.blocks,
            trust=trust,
            modules=tuple(m.name for m in modules),
            shapes=tuple((m.d_in, m.d_out) for m in modules),
            positions=tuple(m.positions for m in modules),
            serac=msgspec.UNSET if serac is None else serac,
        )
    )


def calibrate(bench: Bench, networks: NetworkSet, facts: Sequence[Fact]) -> None:
    """Set the normaliser and the steps η_l from a sample: rms(d) equals that of the rule without a network."""
    options = RidgeEditor.options_of(bench)
    own = fact_rows(bench.loaded, facts, options.phrasings, closed=options.closes)
    with bench.loaded.at(BASE):
        traced = trace(bench.loaded, own, bench.settings.micro_batch)
    joint = networks.config.form == "joint"
    metric = output_metrics(traced.gradients, options.kappa)
    eta, loss = SHARE if options.eta is None else options.eta, float(traced.losses.sum())
    steps = linear_steps(eta, traced.gradients, metric, loss)
    with torch.no_grad():
        for shape in dict.fromkeys(networks.config.shapes):
            names = [m.name for m in bench.loaded.modules if (m.d_in, m.d_out) == shape]
            network, _ = networks.of(names[0])
            network.observe(torch.cat([traced.keys[n] for n in names]), torch.cat([traced.gradients[n] for n in names]))
        for name in bench.names:
            network, layer = networks.of(name)
            asked = traced.gradients[name] @ metric[name]
            found = networks.ask(name, traced.keys[name], asked if joint else traced.gradients[name])
            rms = float(found.square().mean().sqrt())
            network.log_step[layer] += torch.tensor(steps[name] * float(asked.square().mean().sqrt()) / rms).log()
