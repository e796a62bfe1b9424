"""A rule that leaves the weights alone: a codebook at one layer (after GRACE, arXiv 2211.11031), as small as can be.

No rule of the package is of this kind yet. This one holds the seams open for those that come: hooks, entries of each
fact, settings of its own, no keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lifelong_edit.bench import Bench, Say, State, silent
from lifelong_edit.editors.contract import Change, Entries, Lesson, Rule
from lifelong_edit.facts import Fact
from lifelong_edit.models import BASE
from lifelong_edit.settings import Positive, StoreSettings
from lifelong_edit.stores import Entry
from lifelong_edit.tracing.rows import Row, fact_rows
from lifelong_edit.tracing.trace import trace


class CodebookSettings(StoreSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Those of all stores, and one."""

    radius: Positive = 0.01
    """Within which distance of a stored key an output is replaced."""


RULE = Rule(
    name="codebook",
    title="a codebook at one layer",
    reference="Hartvigsen et al., arXiv 2211.11031",
    settings=CodebookSettings,
    home=__name__,
    parts={"weights": "sum", "keys": "upsert", "codebook": "upsert"},
    exports=frozenset(),
    relearns="each fact by itself, at the base weights",
)


@dataclass(frozen=True)
class Codebook:
    """keys: (n, d_in), values: (n, d_out): what the module gives for inputs within `radius` of a key."""

    module: str
    keys: Tensor
    values: Tensor
    radius: float
    shifts: Mapping[str, Tensor] = field(default_factory=dict)

    @contextmanager
    def attach(self, model: Any) -> Iterator[None]:
        """Hook the module."""

        def replaced(module: Any, arguments: Any, output: Tensor) -> Tensor:
            inputs = arguments[0].reshape(-1, arguments[0].shape[-1])
            distance, nearest = torch.cdist(inputs, self.keys, compute_mode="donot_use_mm_for_euclid_dist").min(1)
            found = torch.where(
                (distance < self.radius)[:, None], self.values[nearest], output.reshape(len(inputs), -1)
            )
            return found.reshape(output.shape)

        handle = model.get_submodule(self.module).register_forward_hook(replaced)
        try:
            yield
        finally:
            handle.remove()


class CodebookEditor:
    """The rule at work. A fact's entry is a function of the fact alone."""

    phrasings = 0

    def require(self, fact: Fact) -> None:
        """It takes any fact."""

    def kept_rows(self, facts: Sequence[Fact]) -> list[Row]:
        """It keeps no keys."""
        return []

    def __init__(self, bench: Bench) -> None:
        self.bench, self.module = bench, bench.names[-1]
        assert isinstance(bench.settings, CodebookSettings)
        self.radius = bench.settings.radius

    def learn(self, state: State, lesson: Lesson) -> Change:
        """An entry for each fact of the batch."""
        entries = {fact.digest: self._entry(fact) for fact in lesson.facts}
        return Change({"codebook": Entries(lambda: iter([entries]))}, {})

    def relearn(self, facts: Sequence[Fact], *, start: Any = None, identity: str = "", say: Say = silent) -> Change:
        """An entry for each fact, in the place of all."""
        return Change({"codebook": Entries(lambda: ({f.digest: self._entry(f)} for f in facts), whole=True)}, {})

    def overlay(self, state: State) -> Codebook | Any:
        """The codebook of the state; of an empty one the base model."""
        entries = state.parts.get("codebook", {}).values()
        if not entries:
            return BASE
        keys, values = (torch.from_numpy(np.concatenate([e.rows[n] for e in entries])) for n in ("key", "value"))
        return Codebook(self.module, keys, values, self.radius)

    def _entry(self, fact: Fact) -> Entry:
        """Keys at the answer's positions, and outputs in their place that make the answer likely."""
        loaded, task = self.bench.loaded, self.bench.task
        rows = fact_rows(loaded, [fact], 0)
        with loaded.at(BASE):
            keys = trace(loaded, rows, 1, gradients=False).keys[self.module].clone()
            layer = loaded.model.get_submodule(self.module)
            values = layer(keys).detach().clone().requires_grad_()
        inputs = task.collate(loaded, [rows[0].encoded])
        adam = torch.optim.Adam([values], lr=0.5)
        for _ in range(30):
            with loaded.at(Codebook(self.module, keys, values, self.radius)):
                loss = task.loss(task.logits(loaded, inputs), inputs, rows)[0].sum()
            (values.grad,) = torch.autograd.grad(loss, [values])
            adam.step()
        return Entry({"key": keys.numpy(), "value": values.detach().numpy()})


def make(bench: Bench) -> CodebookEditor:
    """The rule at work on a bench."""
    return CodebookEditor(bench)
