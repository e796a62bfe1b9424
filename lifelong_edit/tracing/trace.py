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
    index of each position's row; n is the same for all modules that are edited at the same kind of positions. All of a
    module is at its desk (`LoadedModel.desk`).
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
    return traces(loaded, [rows], micro_batch, gradients, everywhere)[0]


def traces(
    loaded: LoadedModel,
    parts: Sequence[Sequence[Row]],
    micro_batch: int,
    gradients: bool = True,
    everywhere: bool = False,
) -> list[Trace]:
    """As `trace`, of several sets of rows, each cut by itself: more micro-batches at a time to be shared out."""
    units = [(i, chosen) for i, rows in enumerate(parts) for chosen in by_length(_lengths(rows), micro_batch)]

    def work(unit: tuple[int, list[int]]) -> _Seen:
        number, chosen = unit
        return _traced(loaded, [parts[number][i] for i in chosen], chosen, gradients, everywhere)

    seen = loaded.world.each(units, work)
    return [
        _in_row_order([one for (of, _), one in zip(units, seen, strict=True) if of == i], rows, loaded, gradients)
        for i, rows in enumerate(parts)
    ]


def _lengths(rows: Sequence[Row]) -> list[int]:
    return [len(row.encoded.ids) for row in rows]


_Seen = dict[str, dict[str, Tensor]]
"""Of one micro-batch, by what it is and by module: keys, gradients, and the index of each position's row; by row the
losses, the worst of them, and the rows' numbers."""


def _traced(
    loaded: LoadedModel, rows: Sequence[Row], numbers: Sequence[int], gradients: bool, everywhere: bool
) -> _Seen:
    """One micro-batch; numbers: of its rows."""
    names, task = [m.name for m in loaded.modules], task_of(loaded)
    kind_of = {m.name: m.positions for m in loaded.modules}
    batch = task.collate(loaded, [r.encoded for r in rows])
    places = {m.positions: task.slots(batch, m.positions) for m in loaded.modules}
    # An accelerator has to be waited for to know where a mask is true: once for each kind, not for each matrix.
    kinds = {kind: batch.tokens(kind) if everywhere else mask for kind, mask in places.items()}
    spots = {kind: (mask.flatten().nonzero()[:, 0], mask.shape[1]) for kind, mask in kinds.items()}
    with recording(loaded, gradients) as (inputs, outputs), torch.set_grad_enabled(gradients):
        loss, row = task.loss(task.logits(loaded, batch), batch, rows)
    slopes = torch.autograd.grad(loss.sum(), [outputs[n] for n in names]) if gradients else ()
    where = torch.tensor(numbers, device=loaded.device)
    losses, worst = losses_of_rows(task, rows, loss, row)
    at = {name: spots[kind_of[name]] for name in names}
    desk = {name: loaded.desk(name) for name in names}
    return {
        "keys": {name: _at(at[name][0], inputs[name]).to(desk[name]) for name in names},
        "gradients": {name: _at(at[name][0], g).to(desk[name]) for name, g in zip(names, slopes, strict=False)},
        "index": {name: where[at[name][0] // at[name][1]].to(desk[name]) for name in names},
        "rows": {"losses": losses, "worst": worst, "numbers": torch.tensor(numbers)},
    }


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


def in_order_of_items(parts: Sequence[Tensor], batches: Sequence[Sequence[int]]) -> Tensor:
    """What micro-batches gave, (n, d), in the order of the items' numbers; batches: the numbers of each one's items."""
    order = torch.argsort(torch.tensor([i for chosen in batches for i in chosen]))
    found = torch.cat(list(parts))
    return found[order.to(found.device)]


def accumulate(variable: Tensor, gradient: Tensor | None) -> None:
    """Add the gradient of a micro-batch, wherever it was found, to what a variable has, as a backward pass does."""
    if gradient is not None:
        variable.grad = gradient if variable.grad is None else variable.grad + gradient


def _at(spots: Tensor, states: Tensor) -> Tensor:
    """States (b, t, d), or (b·t, d) as OPT's MLP sees them, at positions of b·t: (n, d) float32."""
    return states.reshape(-1, states.shape[-1])[spots.to(states.device)].float()


def _in_row_order(seen: Sequence[_Seen], rows: Sequence[Row], loaded: LoadedModel, gradients: bool) -> Trace:
    names = [m.name for m in loaded.modules]
    row = {n: torch.cat([one["index"][n] for one in seen]) for n in names}
    order = {n: torch.argsort(of, stable=True) for n, of in row.items()}
    losses, worst = torch.zeros(len(rows)), torch.zeros(len(rows))
    for one in seen:
        numbers = one["rows"]["numbers"]
        losses[numbers], worst[numbers] = one["rows"]["losses"], one["rows"]["worst"]
    return Trace(
        {n: torch.cat([one["keys"][n] for one in seen])[order[n]] for n in names},
        {n: torch.cat([one["gradients"][n] for one in seen])[order[n]] for n in names if gradients},
        {n: of[order[n]] for n, of in row.items()},
        losses,
        worst,
    )
