"""The codebook at work: keys read at the base model, values found by Adam, entries that go with their facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lifelong_edit.bench import Bench, Say, State, silent
from lifelong_edit.editors.contract import (
    Change,
    Entries,
    Given,
    Keyless,
    Lesson,
    require_batch,
    require_cold,
    require_live,
)
from lifelong_edit.editors.grace.codebook import SAME, Array, Codebook, Folding, entry_of
from lifelong_edit.editors.grace.overlay import Forced, Memory
from lifelong_edit.editors.grace.settings import GraceSettings
from lifelong_edit.errors import StepRefusedError, UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.models import BASE, LoadedModel, Overlay, TokenBatch, by_length
from lifelong_edit.settings import StoreSettings
from lifelong_edit.stores import digest_bytes
from lifelong_edit.tracing.rows import Row, fact_rows
from lifelong_edit.tracing.trace import losses_of_rows, recording

CODEBOOK = "codebook"


class GraceEditor(Keyless):
    """Facts in, entries of a codebook out. The weights stay those of the base."""

    def __init__(self, bench: Bench) -> None:
        assert isinstance(bench.settings, GraceSettings)  # the registry pairs rules with their settings
        self.bench, self.settings, self.module = bench, bench.settings, bench.names[0]
        self._folding = Folding(bench.settings.radius)

    @property
    def phrasings(self) -> int:
        """How many of a fact's rephrases have entries beside its prompt."""
        return self.settings.phrasings

    def overlay(self, state: State) -> Overlay:
        """The codebook of the state; of an empty one the base model."""
        book = self._folding.of(list(state.parts.get(CODEBOOK, {}).values()))
        if not book.keys:
            return BASE
        keys, values, radii = (np.stack(part) for part in (book.keys, book.values, book.radii))
        radii = radii + SAME * np.linalg.norm(keys, axis=1)  # a radius that grew to a prompt has to reach it next time
        place, kept = self.bench.loaded.device_of(self.module), (keys, values, radii.astype(np.float32))
        on_keys, gives, reach = (torch.from_numpy(part).to(place) for part in kept)
        return Memory(self.module, on_keys, gives, reach, self.settings.replacement)

    def learn(self, state: State, lesson: Lesson) -> Change:
        """Entries for the prompts of a batch, one after the other; see `Editor.learn`."""
        require_batch(lesson.facts)
        gone = set(lesson.retire)
        entries = [entry for digest, entry in state.parts.get(CODEBOOK, {}).items() if digest not in gone]
        rows = fact_rows(self.bench.loaded, lesson.facts, self.settings.phrasings, replaced=lesson.replaced)
        last = max((int(entry.rows["order"].max()) for entry in entries), default=-1)
        return self._written(self._folding.of(entries), rows, last + 1)

    def relearn(
        self,
        facts: Sequence[Fact],
        *,
        start: Mapping[str, Tensor] | None = None,
        identity: str = "",
        say: Say = silent,
    ) -> Change:
        """Entries for all facts with an empty codebook, in the order of their digests; see `Editor.relearn`."""
        require_live(facts)
        require_cold(start, "editor grace relearns with an empty codebook, since it shifts no weights")
        ordered = sorted(facts, key=lambda fact: fact.digest)
        rows = fact_rows(self.bench.loaded, ordered, self.settings.phrasings)
        return self._written(Codebook(self.settings.radius), rows, 0, whole=True)

    def _written(self, book: Codebook, rows: Sequence[Row], order: int, whole: bool = False) -> Change:
        """The entries of rows that come one after the other to a codebook, the first with number `order`."""
        keys, given = self._read(rows)
        labels, standing = [label_of(row) for row in rows], dict(enumerate(book.values))
        placed = [book.put(key, label, value) for key, label, value in zip(keys, labels, given, strict=True)]
        new = len(book.keys) - len(standing)
        values, losses = self._searched(rows, placed, standing, given)
        of: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            of.setdefault(str(row.fact), []).append(i)
        entries = {
            fact: entry_of(keys[own], values[own], [labels[i] for i in own], [order + i for i in own])
            for fact, own in of.items()
        }
        report: dict[str, object] = {"prompts": len(rows), "keys": len(book.keys), "new": new, "loss": losses}
        return Change({CODEBOOK: Entries(lambda: iter([entries]), whole)}, report)

    def _searched(
        self, rows: Sequence[Row], placed: Sequence[tuple[int, bool]], standing: dict[int, Array], given: Array
    ) -> tuple[Array, list[float]]:
        """(n, d_out) values by which rows are answered, and the rows' losses before the last step.

        placed: of each row its key and whether the value begins anew. standing: values by key as they are. Rows that
        share a key go on from each other's values, in their order.
        """
        values, losses = self._beginnings(rows, given), [0.0] * len(rows)
        for wave in waves([number for number, _ in placed]):
            for i in wave:
                number, anew = placed[i]
                values[i] = values[i] if anew else standing[number]
            values[wave], found = self._trained([rows[i] for i in wave], values[wave])
            for i, loss in zip(wave, found, strict=True):
                standing[placed[i][0]], losses[i] = values[i], loss
        return values, losses

    def _beginnings(self, rows: Sequence[Row], given: Array) -> Array:
        """(n, d_out) values to begin with: drawn by the fact and the number of its row, or the layer's own outputs."""
        if self.settings.begin == "warm":
            return given.copy()
        count: dict[str | None, int] = {}
        found = np.empty_like(given)
        for i, row in enumerate(rows):
            count[row.fact] = count.get(row.fact, 0) + 1
            drawn = repr(("value", self.settings.seed, row.fact, count[row.fact]))
            random = np.random.default_rng(int(digest_bytes(drawn.encode()), 16))
            found[i] = random.random(given.shape[1], np.float32)
        return found

    def _read(self, rows: Sequence[Row]) -> tuple[Array, Array]:
        """The layer's inputs (n, d_in) and outputs (n, d_out), float32, at the rows' last prompt tokens."""
        module = self.bench.loaded.module(self.module)
        keys = np.empty((len(rows), module.d_in), np.float32)
        given = np.empty((len(rows), module.d_out), np.float32)
        with self.bench.loaded.at(BASE), torch.no_grad():
            for chosen, batch in self._batches(rows):
                with recording(self.bench.loaded, gradients=False) as (inputs, outputs):
                    self.bench.task.logits(self.bench.loaded, batch)
                where = (torch.arange(len(chosen)), self.bench.task.ends(batch, module.positions).cpu())
                shape = batch.tokens(module.positions).shape
                for found, seen in ((keys, inputs[self.module]), (given, outputs[self.module])):
                    found[chosen] = seen.reshape(*shape, -1).float().cpu()[where].numpy()
        return keys, given

    def _trained(self, rows: Sequence[Row], begin: Array) -> tuple[Array, list[float]]:
        """Adam on the value of each row, put where its own key would put it; losses are those before the last step.

        Each row by itself, however many go through the model at a time. Raises StepRefusedError where a loss is not
        finite.
        """
        bench, task = self.bench, self.bench.task
        found, losses = begin.copy(), torch.zeros(len(rows))
        for chosen, batch in self._batches(rows):
            part = [rows[i] for i in chosen]
            values = torch.from_numpy(begin[chosen]).to(bench.loaded.device_of(self.module)).requires_grad_()
            adam = torch.optim.Adam([values], lr=self.settings.rate)
            where = self._where(batch)
            for _ in range(self.settings.steps):
                with bench.loaded.at(Forced(self.module, where, values)), torch.enable_grad():
                    loss, row = task.loss(task.logits(bench.loaded, batch), batch, part)
                (values.grad,) = torch.autograd.grad(loss.sum(), [values])
                adam.step()
            losses[chosen] = losses_of_rows(task, part, loss, row)[0]
            found[chosen] = values.detach().cpu().numpy()
        if not (bool(torch.isfinite(losses).all()) and bool(np.isfinite(found).all())):
            raise StepRefusedError("the loss of a value is not finite; expected numbers; the step was refused")
        return found, losses.tolist()

    def _where(self, batch: TokenBatch) -> Tensor:
        """(b, t) bool: what is replaced in texts whose prompts match at their last tokens."""
        position = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        end = self.bench.task.ends(batch, self.bench.loaded.module(self.module).positions)[:, None]
        if self.settings.replacement == "replace_last":
            return position == end
        return position < end if self.settings.replacement == "replace_prompt" else batch.mask.bool()

    def _batches(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], TokenBatch]]:
        """Rows of like length, some at a time: their numbers, and what the model reads."""
        for chosen in by_length([len(row.encoded.ids) for row in rows], self.settings.micro_batch):
            yield chosen, self.bench.task.collate(self.bench.loaded, [rows[i].encoded for i in chosen])


def label_of(row: Row) -> bytes:
    """16 bytes that stand for an answer: equal where its tokens are."""
    return bytes.fromhex(digest_bytes(repr(row.encoded.answer).encode()))[:16]


def waves(keys: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of rows, by the key of each, so that no key stands twice in a wave and later rows come in later ones."""
    uses: dict[int, list[int]] = {}
    for i, key in enumerate(keys):
        uses.setdefault(key, []).append(i)
    for turn in range(max(map(len, uses.values()), default=0)):
        yield sorted(own[turn] for own in uses.values() if turn < len(own))


def fix(loaded: LoadedModel, settings: StoreSettings, given: Given) -> Mapping[str, np.ndarray]:
    """Nothing. Raises UsageError for a layer of a decoder that reads an encoder: no question stands there."""
    lowest = loaded.modules[0]
    if getattr(loaded.model.config, "is_encoder_decoder", False) and lowest.positions == "answer":
        raise UsageError(
            f"found the decoder's module {lowest.name!r} for the codebook of grace, expected one of the encoder, which "
            "reads the question; name it by --modules, or leave --modules out"
        )
    return {}


def make(bench: Bench) -> GraceEditor:
    """The rule on its bench."""
    return GraceEditor(bench)
