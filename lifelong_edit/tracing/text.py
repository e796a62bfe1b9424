"""Keys of ordinary text, which a solve must not change: their gram, their range, windows that stand guard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from torch import Tensor

from lifelong_edit import cache
from lifelong_edit.errors import BadInputError
from lifelong_edit.models import LoadedModel, tokenizer_fingerprint
from lifelong_edit.numerics.devices import to_solve
from lifelong_edit.numerics.grams import grid_scale
from lifelong_edit.numerics.textgram import GramSum, gram_sum, rank_for
from lifelong_edit.stores.digests import digest_bytes
from lifelong_edit.tasks import WIDTH, task_of
from lifelong_edit.tracing.progress import Progress
from lifelong_edit.tracing.trace import recording

_SCALE = "scale/"
SAMPLE = 8
"""Windows that are measured where no solve asks for the gram of all."""


def guarding(windows: int) -> int:
    """How many of so many windows, the first ones, stand guard."""
    return max(1, min(24, windows // 8))


@dataclass(frozen=True)
class TextStatistics:
    """Per module: the sum of kᵀk over text keys, and the greatest |k| (d_in,), float64; how many keys it had.

    A decoder beside an encoder reads another part of a text than that does.
    """

    grams: dict[str, GramSum]
    largest: dict[str, Tensor]
    tokens: dict[str, int]


def text_statistics(
    loaded: LoadedModel,
    windows: Tensor,
    micro_batch: int,
    gram_rank: int | None = None,
    say: Callable[[str], None] | None = None,
) -> TextStatistics:
    """Gram and range of every position's keys over text windows (windows, length), streamed.

    Memory does not grow with the text: a gram (d_in, d_in) per module, or a sketch of it (see `rank_for`). say: told
    how far it is (`Progress`).
    """
    grams = {m.name: gram_sum(m.d_in, rank_for(m.d_in, gram_rank), loaded.desk(m.name)) for m in loaded.modules}
    largest: dict[str, Tensor] = {}
    read: dict[str, int] = {}
    task = task_of(loaded)
    progress = Progress(say, "measuring the text", len(windows), "windows")
    for start in range(0, len(windows), micro_batch):
        ids = windows[start : start + micro_batch].to(loaded.device)
        with torch.no_grad(), recording(loaded, gradients=False) as (inputs, _):
            task.read(loaded, ids)
        for name, keys in inputs.items():
            flat = keys.flatten(0, -2).to(loaded.desk(name)).float()
            grams[name].add(flat)
            read[name] = read.get(name, 0) + len(flat)
            top = to_solve(flat.abs().amax(0))
            largest[name] = torch.maximum(largest[name], top) if name in largest else top
        progress.at(min(len(windows), start + micro_batch))
    return TextStatistics(grams, largest, read)


@dataclass(frozen=True)
class TextArrays:
    """What `init` fixes of ordinary text: mean grams by their names, (d_in,) grids by module, windows on guard (n, t).

    The guard's windows are in no gram.
    """

    grams: Mapping[str, np.ndarray]
    scale: Mapping[str, np.ndarray]
    guard: np.ndarray


def prepare_text(
    loaded: LoadedModel,
    text: Sequence[str],
    tokens: int,
    micro_batch: int,
    gram_rank: int | None = None,
    say: Callable[[str], None] | None = None,
    whole: bool = True,
) -> TextArrays:
    """Mean grams, key grids and guard windows to be fixed at `init`; the guard windows are in no gram.

    whole: measure all of the text; else SAMPLE windows of it, for a rule that solves with no gram. What was measured on
    a model and a text is kept per user (`cache`), without the text: another store of the two has it at once.
    """
    windows = task_of(loaded).windows(loaded, "\n".join(text), max(1, tokens // WIDTH)).cpu()
    if windows.shape[1] < (least := min(WIDTH, loaded.context)):
        raise BadInputError(
            f"the preservation text has {windows.shape[1]} tokens; expected at least {least}; give a longer text"
        )
    guard = guarding(len(windows))
    measured = windows[guard:] if len(windows) > guard else windows
    measured = measured if whole else measured[:SAMPLE]

    def measure() -> dict[str, np.ndarray]:
        statistics = text_statistics(loaded, measured, micro_batch, gram_rank, say)
        found = {_SCALE + name: grid_scale(largest).cpu().numpy() for name, largest in statistics.largest.items()}
        for name, gram in statistics.grams.items():
            found |= gram.arrays(name, statistics.tokens[name])
        return found

    found = cache.arrays("text", _identity(loaded, measured, micro_batch, gram_rank), measure, loaded.world)
    grams = {name: array for name, array in found.items() if not name.startswith(_SCALE)}
    scale = {m.name: found[_SCALE + m.name] for m in loaded.modules}
    return TextArrays(grams, scale, windows[:guard].numpy().astype(np.int32))


def _identity(loaded: LoadedModel, windows: Tensor, micro_batch: int, gram_rank: int | None) -> str:
    return measured_on(loaded, micro_batch, repr((gram_rank, list(windows.shape))).encode(), windows.numpy().tobytes())


def measured_on(loaded: LoadedModel, micro_batch: int, *parts: bytes) -> str:
    """A digest of the model, of all else that decides figures that are taken of it, rounding included, and of parts."""
    modules = [module.entry for module in loaded.modules]
    model = (loaded.fingerprint, tokenizer_fingerprint(loaded.tokenizer), modules, str(loaded.dtype), micro_batch)
    machine = (loaded.device.type, torch.get_num_threads(), torch.__version__, transformers.__version__)
    return digest_bytes(repr((model, machine, loaded.forms)).encode(), *parts)
