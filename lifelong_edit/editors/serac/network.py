"""SERAC's two networks: which questions a fact is about, and what is added to the base model to make it read the fact.

Mitchell et al., arXiv 2206.06520, section 3. There both are models of their own. Here the scope classifier is a head
over the token states of a model that stays as it is, and the counterfactual model is the base model with a trained
shift of low rank beside each of its matrices, so that it has the base model's vocabulary, context and answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

HEADS = 4
"""How many ways of weighing a text's tokens a vector is made of."""


class SeracShape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of the two networks, and what they stand on."""

    width: int
    """Of the vectors that are compared."""
    states: int
    """Of a token's state."""
    rank: int
    adapted: tuple[str, ...]
    """The matrices of the base model that the counterfactual model has otherwise."""
    shapes: tuple[tuple[int, int], ...]
    """(d_in, d_out) of each of them."""
    encoder: str = ""
    """The fingerprint of the model whose states are read; empty: the base model."""


class ScopeHead(nn.Module):
    """Token states of a text to one vector: a = z + relu(zA + c)B, z = Σ_h (Σ_t softmax_t(x_t q_h) x_t) V_h.

    x are the states, centred and scaled coordinate by coordinate. Where it begins all tokens weigh the same, and a = z.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, states: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(states))
        self.register_buffer("deviation", torch.ones(states))
        self.query = nn.Parameter(torch.zeros(states, HEADS))
        self.value = nn.Parameter(torch.randn(HEADS, states, width) / math.sqrt(HEADS * states * width))
        self.inner = nn.Parameter(torch.randn(width, width) / math.sqrt(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.outer = nn.Parameter(torch.zeros(width, width))

    def forward(self, texts: Sequence[Tensor]) -> Tensor:
        """(n, width) for the token states of n texts, (t, states) each."""
        place = self.query.device
        mask = pad_sequence([torch.ones(len(text), dtype=torch.bool) for text in texts], batch_first=True).to(place)
        x = (pad_sequence(list(texts), batch_first=True).to(place) - self.mean) / self.deviation
        weights = (x @ self.query).masked_fill(~mask[..., None], -torch.inf).softmax(1)
        pooled = torch.einsum("nth,ntd->nhd", weights, x)
        z = torch.einsum("nhd,hdw->nw", pooled, self.value)
        return z + (z @ self.inner + self.bias).clamp(min=0) @ self.outer

    def observe(self, texts: Sequence[Tensor]) -> None:
        """Take mean and deviation from the token states of a sample, and the size at which vectors are a unit apart."""
        rows = torch.cat(list(texts))
        with torch.no_grad():
            self.mean.copy_(rows.mean(0))
            self.deviation.copy_(rows.std(0).clamp_min(1e-6))
            found = self(texts)
            apart = (found[:, None] - found).square().sum(-1)
            usual = apart.sum() / max(1, len(found) * (len(found) - 1))
            self.value.div_(usual.clamp_min(1e-12).sqrt())


def distances(questions: Tensor, edits: Tensor) -> Tensor:
    """‖a − b‖², the last dimension summed over: −log of how alike the two are, exp(−‖a − b‖²)."""
    return (questions - edits).square().sum(-1)


def scope_loss(inside: Tensor, outside: Tensor) -> Tensor:
    """Mean −log p of pairs in scope plus mean −log(1 − p) of others, from their squared distances (equation 3)."""
    # Where two vectors are the same, the logarithm has no bound.
    return inside.mean() - torch.log(-torch.expm1(-outside.clamp_min(1e-6))).mean()


class Adapter(nn.Module):
    """What is added to a matrix's output: (k a) b, nothing where it begins. a: (d_in, rank), b: (rank, d_out)."""

    def __init__(self, d_in: int, d_out: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(d_in, rank) / math.sqrt(d_in))
        self.b = nn.Parameter(torch.zeros(rank, d_out))

    def forward(self, keys: Tensor) -> Tensor:
        """(..., d_out) float32 for keys (..., d_in), where these are: its matrix may be on another device."""
        added: Tensor = keys.to(self.a.device).float() @ self.a @ self.b
        return added.to(keys.device)


class SeracNetwork(nn.Module):
    """Scope classifier and counterfactual model of a base model, trained together."""

    def __init__(self, shape: SeracShape) -> None:
        """Raises ValueError where matrices and their shapes are not as many."""
        super().__init__()
        if len(shape.adapted) != len(shape.shapes):
            raise ValueError(f"{len(shape.adapted)} matrices have {len(shape.shapes)} shapes")
        self.scope = ScopeHead(shape.states, shape.width)
        self.counterfactual = nn.ModuleList(Adapter(*of, shape.rank) for of in shape.shapes)
        self.adapted = shape.adapted

    def adapters(self) -> dict[str, Adapter]:
        """What is added to each matrix, by its name."""
        found = {}
        for name, adapter in zip(self.adapted, self.counterfactual, strict=True):
            assert isinstance(adapter, Adapter)
            found[name] = adapter
        return found
