"""Keys and gradients of edited modules at the editing positions (MALMEN, arXiv 2311.04661, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lifelong_edit.models import LoadedModel, by_length
from lifelong_edit.tasks import Task, task_of
from lifelong_edit.tracing.rows import Row


@dataclass
class Trace:
    """What one pass over rows recorded, positions in the order of the rows.

    keys: module → (n, d_in) float32. gradients: module → (n, d_out) float32, of the summed loss. row: module → (n,)
    index of each position's row; n is the same for all modules that are edited at the same kind of positions.
    losses: (rows,) the loss of each row. worst: (rows,) the greatest loss at any one of its answer tokens.
    """

    keys: dict[str, Tensor]
    gradients: dict[str, Tensor]
    row: dict[str, Tensor]
    losses: Tensor
    worst: Tensor

    def weights(self, rows: Sequence[Row], module: str) -> Tensor:
        """w of each position of a module, (n,) float32: its row's."""
        where = self.row[module]
        return torch.tensor([r.weight for r in rows], dtype=torch.float32, device=where.device)[where]

    def kinds(self, rows: Sequence[Row], module: str, *kinds: str) -> Tensor:
        """Mask over a module's positions whose row is of one of `kinds`, (n,) bool."""
        where = self.row[module]
        return torch.tensor([r.kind in kinds for r in rows], device=where.device)[where]


@contextmanager
def recording(loaded: LoadedModel, gradients: bool) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Within the context each forward pass leaves every edited module's input and output, (b, t, d); OPT: (b·t, d).

    The graph begins at the lowest edited module's output: nothing beneath it is ever differentiated.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def record(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            inputs[name] = arguments[0].detach()
            if gradients and not output.requires_grad:
                output = output.detach().requires_grad_()
            outputs[name] = output
            # The model gets a copy: Falcon adds to it in place, and what is differentiated has to stay what it was.
            return output.clone() if gradients else output

        return record

    with ExitStack() as stack:
        for module in loaded.modules:
            handle = loaded.model.get_submodule(module.name).register_forward_hook(hook(module.name))
            stack.callback(handle.remove)
        yield inputs, outputs


def trace(
    loaded: LoadedModel, rows: Sequence[Row], micro_batch: int, gradients: bool = True, everywhere: bool = False
) -> Trace:
    """Keys (and gradients) of `rows` at the model's present weights; everywhere: at all their tokens.

    The loss is a sum over rows, so that no gradient depends on how rows are cut into micro-batches
    (the original averages over the micro-batch).
    """
    names, task = [m.name for m in loaded.modules], task_of(loaded)
    kind_of = {m.name: m.positions for m in loaded.modules}
    keys: dict[str, list[Tensor]] = {n: [] for n in names}
    grads: dict[str, list[Tensor]] = {n: [] for n in names}
    index: dict[str, list[Tensor]] = {n: [] for n in names}
    losses, worst = torch.zeros(len(rows)), torch.zeros(len(rows))
    for chosen in by_length([len(r.encoded.ids) for r in rows], micro_batch):
        part = [rows[i] for i in chosen]
        batch = task.collate(loaded, [r.encoded for r in part])
        places = {m.positions: task.slots(batch, m.positions) for m in loaded.modules}
        # An accelerator has to be waited for to know where a mask is true: once for each kind, not for each matrix.
        kinds = {kind: batch.tokens(kind) if everywhere else mask for kind, mask in places.items()}
        spots = {kind: (mask.flatten().nonzero()[:, 0], mask.shape[1]) for kind, mask in kinds.items()}
        with recording(loaded, gradients) as (inputs, outputs), torch.set_grad_enabled(gradients):
            loss, row = task.loss(task.logits(loaded, batch), batch, part)
        if gradients:
            found = torch.autograd.grad(loss.sum(), [outputs[n] for n in names])
            for name, g in zip(names, found, strict=True):
                grads[name].append(_at(spots[kind_of[name]][0], g))
        where = torch.tensor(chosen, device=row.device)
        for name in names:
            spot, width = spots[kind_of[name]]
            keys[name].append(_at(spot, inputs[name]))
            index[name].append(where[spot // width])
        losses[chosen], worst[chosen] = losses_of_rows(task, part, loss, row)
    return _in_row_order(keys, grads if gradients else {}, index, losses, worst)


def losses_of_rows(task: Task, rows: Sequence[Row], loss: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each row, and the greatest at any one of its answer tokens, (rows,) float32 on the CPU each.

    loss, row: (n,) as `Task.loss` gives them for these rows.
    """
    # Numbers of rows are whole and small: both in one tensor, so that an accelerator is waited for once.
    numbers, loss = torch.stack([row.float(), loss.detach().float()]).cpu()
    row = numbers.long()
    sizes = task.counts([r.encoded for r in rows])
    counts = torch.tensor([1 if r.base is not None else n for r, n in zip(rows, sizes, strict=True)])
    worst = torch.zeros(len(rows)).scatter_reduce_(0, row, loss * counts[row], "amax")
    return torch.zeros(len(rows)).index_add_(0, row, loss), worst


def _at(spots: Tensor, states: Tensor) -> Tensor:
    """States (b, t, d), or (b·t, d) as OPT's MLP sees them, at positions of b·t: (n, d) float32."""
    return states.reshape(-1, states.shape[-1])[spots].float()


def _in_row_order(
    keys: dict[str, list[Tensor]],
    grads: dict[str, list[Tensor]],
    index: dict[str, list[Tensor]],
    losses: Tensor,
    worst: Tensor,
) -> Trace:
    row = {n: torch.cat(parts) for n, parts in index.items()}
    order = {n: torch.argsort(of, stable=True) for n, of in row.items()}
    return Trace(
        {n: torch.cat(parts)[order[n]] for n, parts in keys.items()},
        {n: torch.cat(parts)[order[n]] for n, parts in grads.items()},
        {n: of[order[n]] for n, of in row.items()},
        losses,
        worst,
    )
