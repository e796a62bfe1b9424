"""The counterfactual model as hooks on the base model: in texts that begin with a fact put there, nowhere else.

Which texts these are is told by their tokens: whatever was put before a question is known by its token ids. So a text
is the same alone or among others, padded on either side, read at once or written on with a cache; and in any other text
every number is the base model's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lifelong_edit.editors.serac.network import Adapter
from lifelong_edit.models import Passes


@dataclass
class Beginnings:
    """Token ids with which a text begins that the counterfactual model answers."""

    _known: dict[int, set[bytes]] = field(default_factory=dict)

    def add(self, ids: Sequence[int]) -> None:
        """Take the tokens of a question behind a fact."""
        found = _packed(ids)
        self._known.setdefault(len(found), set()).add(found)

    def of(self, ids: Sequence[int]) -> bool:
        """Whether a text begins with one of them."""
        text = _packed(ids)
        return any(text[:length] in known for length, known in self._known.items())


def _packed(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, np.int32).tobytes()


class Opening(Passes):
    """Which rows of the pass at hand the counterfactual model answers. rows: (b,) bool, kept while a cache goes on."""

    def __init__(self, opens: Callable[[Sequence[int]], bool]) -> None:
        super().__init__()
        self._opens, self.rows = opens, torch.zeros(0, dtype=torch.bool)

    def begin(self, model: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """A pass begins, see `Passes.begin`."""
        super().begin(model, arguments, options)
        if self.begins:
            texts = zip(options["input_ids"], self.mask, strict=True)
            opened = [self._opens(ids[there.to(ids.device)].tolist()) for ids, there in texts]
            self.rows = torch.tensor(opened, dtype=torch.bool)


@contextmanager
def switched(model: Any, adapters: Mapping[str, Adapter], opens: Callable[[Sequence[int]], bool]) -> Iterator[None]:
    """Within the context what adapters give is added to their matrices' outputs, in the texts that open."""
    opening = Opening(opens)
    handles = [model.register_forward_pre_hook(opening.begin, with_kwargs=True)]
    handles += [model.get_submodule(n).register_forward_hook(_adding(a, opening)) for n, a in adapters.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(adapter: Adapter, opening: Opening) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
    def add(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not bool(opening.rows.any()):
            return None
        # OPT's MLP sees (b·t, d).
        rows, shape = opening.rows.to(output.device), (*opening.mask.shape, -1)
        if bool(rows.all()):
            added: Tensor = adapter(arguments[0])
            return output + added.to(output.dtype)
        keys, found = arguments[0].reshape(shape), output.reshape(shape).clone()
        found[rows] += adapter(keys[rows]).to(output.dtype)
        return found.reshape(output.shape)

    return add


@dataclass(frozen=True)
class Always:
    """An overlay under which all texts are the counterfactual model's, as in its training."""

    adapters: Mapping[str, Adapter]
    shifts: Mapping[str, Tensor] = field(default_factory=dict)

    @contextmanager
    def attach(self, model: Any) -> Iterator[None]:
        """Hook all matrices, see `switched`."""
        with switched(model, self.adapters, lambda ids: True):
            yield
