"""The side memory at work: shards taught fact by fact, merged when they are full, and the least activation of facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lifelong_edit.bench import Bench, Say, State, silent
from lifelong_edit.editors.contract import (
    Arrays,
    Brought,
    Change,
    Entries,
    Given,
    Keyless,
    Lesson,
    Whole,
    require_batch,
    require_cold,
    require_live,
)
from lifelong_edit.editors.locate.published import outline_of
from lifelong_edit.editors.search.contexts import contexts_of, drawn_contexts
from lifelong_edit.editors.search.material import behind_contexts
from lifelong_edit.editors.tuning.gradients import weight_gradients
from lifelong_edit.editors.wise.overlay import Routed, activation_of, distances
from lifelong_edit.editors.wise.published import constants_of, three_of
from lifelong_edit.editors.wise.settings import WiseSettings
from lifelong_edit.errors import StepRefusedError
from lifelong_edit.facts import Fact, general_prompts
from lifelong_edit.models import BASE, EditableModule, Encoded, LoadedModel, Overlay, by_length
from lifelong_edit.numerics.merging import ties
from lifelong_edit.settings import StoreSettings
from lifelong_edit.stores import Content, Entry, digest_bytes
from lifelong_edit.tasks import leading, task_of
from lifelong_edit.tracing.rows import draw, fact_rows
from lifelong_edit.tracing.trace import recording

SHARDS, ACTIVATIONS, SIZE = "shards", "activations", "wise/size"
SAMPLE = 64
"""Texts over which the activation's own size is measured, each of at most so many tokens."""


@dataclass
class Shards:
    """What the side memory consists of. changes: of each shard (d_in, d_out), the last one may still be filled.

    taught: facts in the last one. begun: shards that ever began, by which their entries are drawn.
    """

    changes: list[Tensor] = field(default_factory=list)
    taught: int = 0
    begun: int = 0

    @classmethod
    def of(cls, content: Content) -> Shards:
        """Those of a state; the inverse of `arrays`."""
        if not content:
            return cls()
        arrays: Mapping[str, Any] = content
        taught, begun = (int(n) for n in arrays["counts"])
        count = len(arrays) - 1
        return cls([torch.from_numpy(np.array(arrays[f"shard {i}"])) for i in range(count)], taught, begun)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All of it by name."""
        found = {f"shard {i}": change.cpu().numpy() for i, change in enumerate(self.changes)}
        return {**found, "counts": np.array([self.taught, self.begun], np.int64)}

    def side(self, density: float) -> Tensor:
        """By how much the copy differs from the matrix: the one shard, or the merge of several."""
        return self.changes[0] if len(self.changes) == 1 else ties(self.changes, density)


@dataclass(frozen=True)
class Read:
    """The matrix's input (t, d_in) and output (t, d_out), float32, at the tokens of a prompt in the base model."""

    keys: Tensor
    given: Tensor


class WiseEditor(Keyless):
    """Facts in, shards of a side memory out. The weights stay those of the base."""

    def __init__(self, bench: Bench) -> None:
        assert isinstance(bench.settings, WiseSettings)  # the registry pairs rules with their settings
        self.bench, self.settings, self.module = bench, bench.settings, bench.loaded.modules[0]
        self.act, self.contexts = activation_of(bench.loaded.model), contexts_of(bench.fixed.rule)
        known = (*outline_of(bench.loaded)[:2], self.module.d_in)
        self.constants = constants_of(bench.settings, known, float(bench.fixed.rule[SIZE][0]))

    @property
    def phrasings(self) -> int:
        """How many of a fact's rephrases are taught beside its prompt."""
        return self.settings.phrasings

    def overlay(self, state: State) -> Overlay:
        """The side memory of a state and its router; without a fact in force the base model."""
        shards, entries = Shards.of(state.parts.get(SHARDS, {})), state.parts.get(ACTIVATIONS, {})
        if not shards.changes or not entries:
            return BASE
        least = min(float(entry.rows["activation"].min()) for entry in entries.values() if isinstance(entry, Entry))
        side = shards.side(self.settings.density).to(self.bench.loaded.device_of(self.module.name))
        return Routed(self.module.name, side, self.constants.threshold * least, self.act)

    def learn(self, state: State, lesson: Lesson) -> Change:
        """The facts of a batch one after the other, in their order; see `Editor.learn`."""
        require_batch(lesson.facts)
        gone = set(lesson.retire)
        live = [fact for digest, fact in state.live.items() if digest not in gone]
        shards = Shards.of(state.parts.get(SHARDS, {}))
        return self._taught(shards, lesson.facts, live, lesson.replaced)

    def relearn(
        self,
        facts: Sequence[Fact],
        *,
        start: Mapping[str, Tensor] | None = None,
        identity: str = "",
        say: Say = silent,
    ) -> Change:
        """The facts one after another in the order of their digests, with an empty memory; see `Editor.relearn`."""
        require_live(facts)
        require_cold(start, "editor wise relearns with an empty side memory, since it shifts no weights")
        return self._taught(Shards(), sorted(facts, key=lambda fact: fact.digest), [], {}, whole=True, say=say)

    def _taught(
        self,
        shards: Shards,
        facts: Sequence[Fact],
        live: Sequence[Fact],
        replaced: Mapping[str, Sequence[Fact]],
        whole: bool = False,
        say: Say = silent,
    ) -> Change:
        """Facts taught to shards; with the activations of these, and where a merge moved it of all in force."""
        losses, steps, merges = [], 0, 0
        known: list[Fact] = []
        for number, fact in enumerate(facts):
            merges += self._begin(shards)
            loss, taken = self._teach(shards, fact, replaced)
            losses.append(loss)
            steps += taken
            shards.taught += 1
            known.append(fact)
            say(f"{number + 1} of {len(facts)} facts: loss {loss:.3f}")
        read_anew = [*live, *known] if merges else known
        entries = self._activations(shards.side(self.settings.density), read_anew)
        report: dict[str, object] = {"loss": losses, "steps": steps, "merges": merges, "shards": len(shards.changes)}
        parts: dict[str, Brought] = {
            SHARDS: Whole(shards.arrays()),
            ACTIVATIONS: Entries(lambda: iter([entries]), whole),
        }
        return Change(parts, report)

    def _begin(self, shards: Shards) -> int:
        """Where the last shard is full a new one, after a merge if there are enough of them; how many merges."""
        if shards.changes and shards.taught < self.settings.shard:
            return 0
        merged = len(shards.changes) >= self.settings.shards
        if merged:
            shards.changes = [ties(shards.changes, self.settings.density)]
        shards.changes.append(torch.zeros(self.module.d_in, self.module.d_out))
        shards.taught, shards.begun = 0, shards.begun + 1
        return int(merged)

    def mask(self, number: int) -> Tensor:
        """(d_in, d_out) bool: the entries that a shard moves, a function of the seed and of its number."""
        drawn = repr(("shard", self.settings.seed, number)).encode()
        random = np.random.default_rng(int(digest_bytes(drawn), 16))
        return torch.from_numpy(random.random((self.module.d_in, self.module.d_out)) < self.settings.share)

    # -- one fact

    def _teach(self, shards: Shards, fact: Fact, replaced: Mapping[str, Sequence[Fact]]) -> tuple[float, int]:
        """Gradient descent on the last shard, by itself; the loss before the last step, and how many steps.

        Raises StepRefusedError where a loss or a gradient is not finite.
        """
        c, place = self.constants, self.bench.loaded.device_of(self.module.name)
        rows = fact_rows(self.bench.loaded, [fact], self.settings.phrasings, replaced=replaced)
        inside, outside = self._read([Encoded.of(rows[0].encoded.prompt), self._unrelated(fact)])
        rows = [*rows, *behind_contexts(self.bench, fact, self.contexts, "new")]
        mask = self.mask(shards.begun).to(place)
        side, base = shards.changes[-1].to(place), self.bench.loaded.base_weight(self.module.name)
        before, loss, taken = float("inf"), 0.0, 0
        for _ in range(c.steps):
            with self.bench.loaded.at({self.module.name: side}):
                found, losses = weight_gradients(self.bench, rows, [1 / len(rows)] * len(rows))
            loss = float(losses.mean())
            far, apart = self.margins(side, inside, outside)
            gradient = found[self.module.name] + c.margin_weight * apart
            if not (np.isfinite(loss) and bool(torch.isfinite(gradient).all())):
                raise StepRefusedError("a gradient or a loss is not finite; expected numbers; the step was refused")
            total = loss + c.margin_weight * far
            if loss <= self.settings.enough and abs(before - total) <= self.settings.settled:
                break
            before, taken = total, taken + 1
            moved = torch.where(mask, gradient + self.settings.decay * (base + side), 0.0)
            side = (side - self._rate(moved, mask, base) * moved).clamp(-self.settings.clamp, self.settings.clamp)
        shards.changes[-1] = side.cpu()
        return loss, taken

    def _rate(self, moved: Tensor, mask: Tensor, base: Tensor) -> float:
        """The step: as given or published, else such that the entries which move do so by a share of the weights."""
        if self.constants.rate is not None:
            return self.constants.rate
        size = float(moved[mask].square().mean().sqrt())
        return self.settings.relative_rate * float(base.square().mean().sqrt()) / size if size > 0 else 0.0

    def margins(self, side: Tensor, inside: Read, outside: Read) -> tuple[float, Tensor]:
        """relu(d_out − a) + relu(b − d_in) + relu(d_out − d_in + c), and its gradient (d_in, d_out) by the side."""
        a, b, c = self.constants.margins
        change = side.detach().clone().requires_grad_()
        with torch.enable_grad():
            near, far = (distances(self.act, r.given, r.keys @ change).mean() for r in (inside, outside))
            loss = (far - a).relu() + (b - near).relu() + (far - near + c).relu()
            (gradient,) = torch.autograd.grad(loss, [change])
        return float(loss.detach()), gradient

    def _unrelated(self, fact: Fact) -> Encoded:
        """A prompt that is not about the fact's subject: a preserved one, or a general one, drawn by the fact."""
        kept = self.bench.preserved
        free = kept.free(frozenset([fact.about.casefold()]))
        if free:
            return Encoded.of(kept.prompts[free[draw(len(free), 1, "unrelated", fact.digest)[0]]])
        general = general_prompts()
        probe = general[draw(len(general), 1, "unrelated", fact.digest)[0]]
        return Encoded.of(self.bench.task.encode_question(self.bench.loaded, leading(self.bench.loaded, probe)))

    def _read(self, asked: Sequence[Encoded]) -> list[Read]:
        """What the matrix reads and gives at the tokens of prompts, in the base model."""
        found: dict[int, Read] = {}
        with self.bench.loaded.at(BASE), torch.no_grad():
            for chosen in by_length([len(e.ids) for e in asked], self.settings.micro_batch):
                batch = self.bench.task.collate(self.bench.loaded, [asked[i] for i in chosen])
                with recording(self.bench.loaded, gradients=False) as (inputs, outputs):
                    self.bench.task.read(self.bench.loaded, batch.ids, batch.mask)
                seen = [x[self.module.name].reshape(*batch.mask.shape, -1).float() for x in (inputs, outputs)]
                for j, i in enumerate(chosen):
                    keys, given = (x[j, : len(asked[i].ids)] for x in seen)
                    found[i] = Read(keys, given)
        return [found[i] for i in range(len(asked))]

    def _activations(self, side: Tensor, facts: Sequence[Fact]) -> dict[str, Entry]:
        """Of each fact by how much the side memory changes the activation, in the mean over each of its prompts."""
        rows = fact_rows(self.bench.loaded, facts, self.settings.phrasings)
        seen = self._read([Encoded.of(row.encoded.prompt) for row in rows])
        side = side.to(self.bench.loaded.device_of(self.module.name))
        of: dict[str, list[float]] = {}
        for row, read in zip(rows, seen, strict=True):
            far = distances(self.act, read.given, read.keys @ side)
            of.setdefault(str(row.fact), []).append(float(far.double().mean()))
        return {digest: Entry({"activation": np.array(found, np.float32)}) for digest, found in of.items()}


def make(bench: Bench) -> WiseEditor:
    """The rule with what it fixed at `init`."""
    return WiseEditor(bench)


def require(settings: StoreSettings, given: Given, modules: Sequence[EditableModule] = ()) -> None:
    """Raise UsageError for margins that are not three numbers."""
    assert isinstance(settings, WiseSettings)
    three_of(settings.margins)


def fix(loaded: LoadedModel, settings: StoreSettings, given: Given) -> Arrays:
    """Contexts, and the mean size of the activation at the side memory's place over general prompts."""
    assert isinstance(settings, WiseSettings)
    task, name, act = task_of(loaded), loaded.modules[0].name, activation_of(loaded.model)
    with loaded.at(BASE), torch.no_grad():
        contexts = drawn_contexts(loaded, given.text, settings.contexts, settings.context_tokens, settings.seed)
        sizes: list[Tensor] = []
        for part in _parts(loaded, settings.micro_batch):
            batch = task.collate(loaded, part)
            with recording(loaded, gradients=False) as (_, outputs):
                task.read(loaded, batch.ids, batch.mask)
            seen = outputs[name].reshape(*batch.mask.shape, -1).float()
            seen = seen[batch.mask.bool().to(seen.device)]
            sizes.append(act(seen).norm(dim=-1).cpu())
    return {**contexts, SIZE: np.array([float(torch.cat(sizes).mean())], np.float32)}


def _parts(loaded: LoadedModel, micro_batch: int) -> Iterator[list[Encoded]]:
    """General prompts as the model reads them, some at a time."""
    asked = [
        Encoded.of(task_of(loaded).encode_question(loaded, leading(loaded, p))) for p in general_prompts()[:SAMPLE]
    ]
    for chosen in by_length([len(e.ids) for e in asked], micro_batch):
        yield [asked[i] for i in chosen]
