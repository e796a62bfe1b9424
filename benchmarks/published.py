"""One step as MALMEN publishes it (arXiv 2311.04661, sections 4.1 and 4.2), written plainly from the formulas.

Micro-batches of facts in their order, logits of whole sequences, keys and gradients cached; then, matrix by matrix, the
value differences of each cached part, the normal equations of width d_in summed up over the parts, and a general dense
solve. What it does not do, to be no slower than it has to be: write its cache to a disk, take gradients of weights, go
below the lowest edited matrix in the backward pass. Its loss is this project's sum over facts, not the mean over
a micro-batch's tokens, so that the two can be compared number by number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from lifelong_edit.editors.malmen.network import NetworkSet
from lifelong_edit.models import LoadedModel
from lifelong_edit.tracing.rows import Row

MICRO_BATCH = 32
Cache = dict[str, list[tuple[Tensor, Tensor]]]
Rule = Callable[[str, Cache], list[Tensor]]
"""Value differences (n, d_out) of each cached part of a module."""


def cache(loaded: LoadedModel, rows: Sequence[Row]) -> Cache:
    """Keys (n, d_in) and gradients (n, d_out) at the answer positions, module → a pair for each micro-batch."""
    found: Cache = {m.name: [] for m in loaded.modules}
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            output = output if output.requires_grad else output.requires_grad_()
            seen[name] = arguments[0].detach(), output
            return output

        return hook

    with ExitStack() as stack:
        for name in found:
            stack.callback(loaded.model.get_submodule(name).register_forward_hook(record(name)).remove)
        for start in range(0, len(rows), MICRO_BATCH):
            ids, mask, labels = padded(rows[start : start + MICRO_BATCH], loaded.pad_id)
            logits = loaded.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            at = labels >= 0
            share = (1 / at.sum(1, keepdim=True)).expand(at.shape)[at]
            loss = (nn.functional.cross_entropy(logits[at], labels[at], reduction="none") * share).sum()
            for name, g in zip(found, torch.autograd.grad(loss, [seen[n][1] for n in found]), strict=True):
                found[name].append((seen[name][0][at], g[at]))
    return found


def padded(rows: Sequence[Row], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask and labels, each (b, t); a label is the next token at answer positions, else −100."""
    longest = max(len(row.encoded.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        own, start = torch.tensor(row.encoded.ids), row.encoded.answer_start
        ids[i, : len(own)], mask[i, : len(own)] = own, 1
        labels[i, start - 1 : len(own) - 1] = own[start:]
    return ids, mask, labels


def network_rule(networks: NetworkSet) -> Rule:
    """D = −η_l (k·k̃) g̃ with [k̃; g̃] from blocks y + s_l ⊙ relu(yAB + b) + t_l on the normalised [k; g]."""

    def ask(module: str, cached: Cache) -> list[Tensor]:
        network, layer = networks.of(module)
        tensors = dict(network.state_dict())
        found = []
        for keys, gradients in cached[module]:
            y = (torch.cat([keys, gradients], -1) - tensors["mean"]) / tensors["deviation"]
            for block in range(networks.config.blocks):
                a, b, bias, s, t = (tensors[f"blocks.{block}.{part}"] for part in ("a", "b", "bias", "scale", "shift"))
                y = y + s[layer] * torch.relu(y @ a @ b + bias) + t[layer]
            width = keys.shape[1]
            length = (keys * y[:, :width]).sum(-1, keepdim=True)
            found.append(-tensors["log_step"][layer].exp() * length * y[:, width:])
        return found

    return ask


def gradient_rule(eta: float, kappa: float, trust: float) -> Rule:
    """D = −η ĝ with ĝ = (c/σ) g M, rows longer than trust·η·√d_out cut back (docs/mathematics.md)."""

    def ask(module: str, cached: Cache) -> list[Tensor]:
        g = torch.cat([gradients for _, gradients in cached[module]]).double()
        n, width = g.shape
        squares = g.T @ g
        metric = torch.linalg.inv(squares / (squares.trace() / width) + kappa * torch.eye(width, dtype=g.dtype))
        asked = g @ metric
        asked *= -eta * g.norm() / asked.norm() / (g.norm() / (n * width) ** 0.5)
        bound = trust * eta * width**0.5
        asked *= (bound / asked.norm(dim=1, keepdim=True)).clamp(max=1.0)
        return list(asked.float().split([len(keys) for keys, _ in cached[module]]))

    return ask


@torch.no_grad()
def shifts(cached: Cache, ask: Rule, ridge: Callable[[str], float], dtype: torch.dtype) -> dict[str, Tensor]:
    """S = (ΣKᵀK + λI)⁻¹ ΣKᵀD of every module, (d_in, d_out), summed and solved in `dtype`."""
    found = {}
    for module, parts in cached.items():
        width = parts[0][0].shape[1]
        system, right = ridge(module) * torch.eye(width, dtype=dtype), torch.zeros((), dtype=dtype)
        for (keys, _), values in zip(parts, ask(module, cached), strict=True):
            keys = keys.to(dtype)
            system += keys.T @ keys
            right = right + keys.T @ values.to(dtype)
        found[module] = torch.linalg.solve(system, right)
    return found


def published_step(
    loaded: LoadedModel, rows: Sequence[Row], ask: Rule, ridge: Callable[[str], float], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The shift of every module for one batch, all of it: caching, asking, solving."""
    return shifts(cache(loaded, rows), ask, ridge, dtype)
