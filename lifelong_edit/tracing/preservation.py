"""What a solve must not change: the gram of text keys, and prompts whose answers are the base model's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from torch import Tensor

from lifelong_edit.errors import BadInputError
from lifelong_edit.eval.metrics.perplexity import WIDTH, text_windows
from lifelong_edit.facts import Probe
from lifelong_edit.models import (
    EditableModule,
    Encoded,
    LoadedModel,
    encode,
    encode_prompt,
    generate_from_ids,
    pad,
    subject_span,
)
from lifelong_edit.models.devices import to_solve
from lifelong_edit.numerics.grams import FactKeys, grid_scale, to_grid
from lifelong_edit.numerics.textgram import GramSum, gram_sum, rank_for
from lifelong_edit.tracing.rows import BaseAnswer, Row, draw
from lifelong_edit.tracing.trace import answer_logits, by_length, recording, trace

KEPT = 32
"""How many of the base model's most probable tokens are kept at each answer position."""

PROGRESS_SECONDS = 10.0
"""How often a long measurement says how far it is."""

Tensors = dict[str, np.ndarray]
_UNITS = "preserved/units/"
GUARDS = 200
"""The prompts of at most so many subjects stand guard."""


@dataclass(frozen=True)
class TextStatistics:
    """Per module: the sum of kᵀk over text keys, and the greatest |k| (d_in,), float64; tokens seen."""

    grams: dict[str, GramSum]
    largest: dict[str, Tensor]
    tokens: int


def text_statistics(
    loaded: LoadedModel,
    windows: Tensor,
    micro_batch: int,
    gram_rank: int | None = None,
    say: Callable[[str], None] | None = None,
) -> TextStatistics:
    """Gram and range of every position's keys over text windows (windows, length), streamed.

    Memory does not grow with the text: a gram (d_in, d_in) per module, or a sketch of it (see `rank_for`). say: told
    how far it is, every ten seconds.
    """
    grams = {m.name: gram_sum(m.d_in, rank_for(m.d_in, gram_rank), loaded.device) for m in loaded.modules}
    largest: dict[str, Tensor] = {}
    told = time.monotonic()
    for start in range(0, len(windows), micro_batch):
        ids = windows[start : start + micro_batch].to(loaded.device)
        with torch.no_grad(), recording(loaded, gradients=False) as (inputs, _):
            loaded.model(input_ids=ids, use_cache=False)
        for name, keys in inputs.items():
            flat = keys.flatten(0, -2).float()
            grams[name].add(flat)
            top = to_solve(flat.abs().amax(0))
            largest[name] = torch.maximum(largest[name], top) if name in largest else top
        if say is not None and time.monotonic() - told > PROGRESS_SECONDS:
            told = time.monotonic()
            say(f"measuring the text: {min(len(windows), start + micro_batch)} of {len(windows)} windows")
    return TextStatistics(grams, largest, windows.numel())


class _Reached(Exception):
    """The module was reached: the layers above are not needed."""


def lowest_keys(loaded: LoadedModel, prompts: Sequence[Sequence[int]], micro_batch: int) -> Tensor:
    """Key of the conflict module at each prompt's last token and the base weights, (n, d_in) float32.

    So it is the same at every state.
    """
    if loaded.modules[0] == loaded.conflict_module:
        return _last_keys(loaded, prompts, micro_batch)  # nothing beneath it is edited
    with loaded.at_base():
        return _last_keys(loaded, prompts, micro_batch)


def _last_keys(loaded: LoadedModel, prompts: Sequence[Sequence[int]], micro_batch: int) -> Tensor:
    found: list[Tensor] = []
    where: list[int] = []

    def stop(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        found.append(arguments[0])
        raise _Reached

    handle = loaded.model.get_submodule(loaded.conflict_module.name).register_forward_pre_hook(stop)
    keys: list[Tensor] = []
    try:
        for chosen in by_length([len(p) for p in prompts], micro_batch):
            batch = pad([Encoded(tuple(prompts[i]), len(prompts[i])) for i in chosen], loaded.pad_id, loaded.device)
            with torch.no_grad():
                try:
                    loaded.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
                except _Reached:
                    states = found.pop()
            # OPT's MLP sees (b·t, d).
            states = states.reshape(*batch.ids.shape, -1)
            keys.append(states[torch.arange(len(chosen)), batch.lengths - 1].float())
            where.extend(chosen)
    finally:
        handle.remove()
    return torch.cat(keys)[torch.argsort(torch.tensor(where))]


def answer_of(loaded: LoadedModel, probes: Sequence[Probe], tokens: int) -> list[Encoded]:
    """Preserved prompts with the answers given, or with the model's own greedy continuation of a few tokens.

    A continuation ends with its first token or before the first one that holds a full stop, a comma or a line
    break: what follows a short answer is text of its own, on which edits have every right to act.
    """
    open_ones = [i for i, p in enumerate(probes) if p.target is None]
    prompts = [encode_prompt(loaded.tokenizer, probes[i].prompt) for i in open_ones]
    encoded: dict[int, Encoded] = {
        i: encode(loaded.tokenizer, p.prompt, p.target, p.subject) for i, p in enumerate(probes) if p.target is not None
    }
    for i, prompt, found in zip(open_ones, prompts, generate_from_ids(loaded, prompts, tokens), strict=True):
        ids = list(found.ids) or [loaded.pad_id]
        ends = [n for n, token in enumerate(ids) if set(loaded.tokenizer.decode([token])) & set(".,;!?\n")]
        ids = ids[: max(1, ends[0])] if ends else ids
        span = subject_span(loaded.tokenizer, probes[i].prompt, probes[i].subject)
        encoded[i] = Encoded((*prompt, *ids), len(prompt), span)
    return [encoded[i] for i in range(len(probes))]


def base_answers(loaded: LoadedModel, encoded: Sequence[Encoded], micro_batch: int) -> list[BaseAnswer]:
    """The distribution of the model as it stands at every answer position of prompts with answers."""
    answers: dict[int, BaseAnswer] = {}
    for chosen in by_length([len(e.ids) for e in encoded], micro_batch):
        batch = pad([encoded[i] for i in chosen], loaded.pad_id, loaded.device)
        with torch.no_grad():
            logits = answer_logits(loaded, batch)
        total = logits.logsumexp(-1)
        top, ids = logits.topk(min(KEPT, logits.shape[-1] - 1), dim=-1)
        rest = logits.scatter(-1, ids, -torch.inf).logsumexp(-1) - total
        sizes = [len(encoded[i].ids) - encoded[i].answer_start for i in chosen]
        parts = zip(chosen, ids.split(sizes), (top - total[:, None]).split(sizes), rest.split(sizes), strict=True)
        for i, kept, logp, others in parts:
            answer = encoded[i].ids[encoded[i].answer_start :]
            answers[i] = BaseAnswer(answer, kept.cpu().numpy(), logp.cpu().numpy(), others.cpu().numpy())
    return [answers[i] for i in range(len(encoded))]


@dataclass
class PreservedPrompts:
    """Preserved prompts with the base model's answers and the keys it had there.

    subjects: where the subject's tokens stand in each prompt. keys: those at the editing positions, on the grid, with
    the conflict key. directions: the conflict keys centred and normalised, (n, d_in). guard: numbers of those that are
    never rows nor in a gram, so that they can judge: all prompts of the subjects drawn.
    """

    probes: list[Probe]
    prompts: list[list[int]]
    subjects: list[tuple[int, int]]
    answers: list[BaseAnswer]
    keys: list[FactKeys]
    directions: Tensor
    guard: frozenset[int] = frozenset()

    def free(self, subjects: frozenset[str]) -> list[int]:
        """Numbers of the prompts that a solve may use: no guards, and none about an edited subject (case-folded)."""
        return [i for i, p in enumerate(self.probes) if i not in self.guard and not _speaks_of(p, subjects)]

    def guards(self, subjects: frozenset[str]) -> list[int]:
        """Numbers of the guards that are asked, the first of each subject.

        Not those about one of the edited `subjects` (case-folded): their answers may have to change.
        """
        first: dict[str, int] = {}
        for i in sorted(self.guard):
            if not _speaks_of(self.probes[i], subjects):
                first.setdefault(_about(self.probes[i]), i)
        return list(first.values())

    def keys_outside(self, subjects: frozenset[str]) -> dict[str, FactKeys]:
        """The keys of all prompts but guards and those about one of the edited `subjects` (case-folded), by number."""
        return {str(i): self.keys[i] for i in self.free(subjects)}

    def rows(self, count: int, near: Tensor, weight: float, subjects: frozenset[str], *parts: object) -> list[Row]:
        """`count` rows: half the nearest to the directions `near` (m, d_in), half drawn at random by `parts`.

        Prompts about one of the edited `subjects` (case-folded) are left out: their answers may have to change.
        """
        allowed = self.free(subjects)
        count = min(count, len(allowed))
        if count == 0:
            return []
        closeness = (self.directions[allowed].to(near) @ near.T).amax(1) if len(near) else torch.zeros(len(allowed))
        ranked = torch.argsort(closeness, descending=True, stable=True).tolist()
        nearest = ranked[: count // 2]
        others = sorted(ranked[count // 2 :])
        chosen = nearest + [others[i] for i in draw(len(others), count - len(nearest), "preserved", *parts)]
        return [self.row(allowed[i], weight) for i in sorted(chosen)]

    def row(self, index: int, weight: float) -> Row:
        """The row of one preserved prompt."""
        answer = self.answers[index]
        prompt = self.prompts[index]
        encoded = Encoded((*prompt, *answer.ids), len(prompt), self.subjects[index])
        return Row(encoded, "preserved", weight, None, answer)


def _about(probe: Probe) -> str:
    """What a prompt is about, case-folded: its subject, or itself where that is not known."""
    return (probe.subject or probe.prompt).casefold()


def _draw_guards(probes: Sequence[Probe], seed: int) -> frozenset[int]:
    """Numbers of all prompts about a tenth of the subjects: a phrasing among the rows would be half the answer."""
    about = list(dict.fromkeys(map(_about, probes)))
    chosen = {about[i] for i in draw(len(about), guarding(len(about)), "guard", seed)}
    return frozenset(i for i, probe in enumerate(probes) if _about(probe) in chosen)


def guarding(subjects: int) -> int:
    """Of how many of so many subjects the prompts stand guard."""
    return min(GUARDS, subjects // 10)


def preserved_phase(probes: Sequence[Probe]) -> str:
    """What is said before preserved prompts are asked: how many there are, and whether some can stand guard."""
    if not probes:
        return "no preserved prompts: rows are derived from the facts, and no guard will judge locality"
    few = "" if guarding(len(set(map(_about, probes)))) else "; of too few subjects to guard locality"
    return f"asking the preserved prompts ({len(probes)}){few}"


def _speaks_of(probe: Probe, subjects: frozenset[str]) -> bool:
    return probe.subject is not None and probe.subject.casefold() in subjects


def centred(keys: Tensor, mean: Tensor) -> Tensor:
    """Keys (n, d_in) minus the mean fixed at `init`, each of length one."""
    return torch.nn.functional.normalize(keys - mean, dim=-1)


def prepare_preserved(
    loaded: LoadedModel, probes: Sequence[Probe], tokens: int, micro_batch: int, scale: Mapping[str, Tensor]
) -> Tensors:
    """Preserved prompts as arrays to be fixed at `init`; answers and keys are those of the model as it stands.

    scale: width of the grid, module → (d_in,).
    """
    if not probes:
        return {}
    encoded = answer_of(loaded, probes, tokens)
    prompts = [list(e.ids[: e.answer_start]) for e in encoded]
    answers = base_answers(loaded, encoded, micro_batch)
    return {
        "preserved/probes": np.frombuffer(msgspec.json.encode(list(probes)), dtype=np.uint8),
        "preserved/prompt_lengths": np.array([len(p) for p in prompts], dtype=np.int32),
        "preserved/prompt_tokens": np.concatenate([np.array(p, dtype=np.int32) for p in prompts]),
        "preserved/subjects": np.array([e.subject for e in encoded], dtype=np.int32),
        "preserved/answer_lengths": np.array([len(a.ids) for a in answers], dtype=np.int32),
        "preserved/answer_tokens": np.concatenate([np.array(a.ids, dtype=np.int32) for a in answers]),
        "preserved/top_ids": np.concatenate([a.top_ids for a in answers]).astype(np.int32),
        "preserved/top_logp": np.concatenate([a.top_logp for a in answers]),
        "preserved/rest_logp": np.concatenate([a.rest_logp for a in answers]),
        "preserved/keys": lowest_keys(loaded, prompts, micro_batch).cpu().numpy(),
        **_units(
            loaded,
            [Row(e, "preserved", 1.0, None, a) for e, a in zip(encoded, answers, strict=True)],
            micro_batch,
            scale,
        ),
    }


def _units(loaded: LoadedModel, rows: Sequence[Row], micro_batch: int, scale: Mapping[str, Tensor]) -> Tensors:
    """The rows' keys on the grid, `preserved/units/MODULE` → (positions, d_in) int16; many rows, few at a time."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in scale}
    for start in range(0, len(rows), 16 * micro_batch):
        traced = trace(loaded, rows[start : start + 16 * micro_batch], micro_batch, gradients=False)
        for name, found in parts.items():
            found.append(to_grid(traced.keys[name], scale[name]))
    return {_UNITS + name: np.concatenate(found) for name, found in parts.items()}


def load_preserved(fixed: Tensors, modules: Sequence[EditableModule], mean: Tensor, seed: int) -> PreservedPrompts:
    """The preserved prompts fixed at `init`, ready to become rows; a tenth of them, drawn by `seed`, stand guard."""
    if "preserved/probes" not in fixed:
        return PreservedPrompts([], [], [], [], [], torch.zeros(0, len(mean)))
    probes = msgspec.json.decode(fixed["preserved/probes"].tobytes(), type=list[Probe])
    prompts = _ragged(fixed["preserved/prompt_tokens"], fixed["preserved/prompt_lengths"])
    ids = _ragged(fixed["preserved/answer_tokens"], fixed["preserved/answer_lengths"])
    cuts = np.cumsum(fixed["preserved/answer_lengths"])[:-1]
    parts = zip(
        ids,
        np.split(fixed["preserved/top_ids"].astype(np.int64), cuts),
        np.split(fixed["preserved/top_logp"], cuts),
        np.split(fixed["preserved/rest_logp"], cuts),
        strict=True,
    )
    answers = [BaseAnswer(tuple(i), top, logp, rest) for i, top, logp, rest in parts]
    directions = centred(torch.from_numpy(fixed["preserved/keys"]).to(mean), mean)
    subjects = fixed.get("preserved/subjects", np.zeros((len(probes), 2), np.int32))
    ends = {"answer": cuts, "subject": np.cumsum(subjects[:, 1] - subjects[:, 0])[:-1]}
    units = {m.name: np.split(fixed[_UNITS + m.name], ends[m.positions]) for m in modules}
    keys = [FactKeys({n: u[i] for n, u in units.items()}, fixed["preserved/keys"][i]) for i in range(len(probes))]
    spans = [(int(start), int(end)) for start, end in subjects]
    return PreservedPrompts(probes, prompts, spans, answers, keys, directions, _draw_guards(probes, seed))


def _ragged(flat: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(flat, np.cumsum(lengths)[:-1])]


def prepare_text(
    loaded: LoadedModel,
    text: Sequence[str],
    tokens: int,
    micro_batch: int,
    gram_rank: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Tensors:
    """Mean grams, key grids and guard windows to be fixed at `init`; the guard windows are in no gram."""
    windows = text_windows(loaded, "\n".join(text), max(1, tokens // WIDTH)).cpu()
    if windows.shape[1] < (least := min(WIDTH, loaded.context)):
        raise BadInputError(
            f"the preservation text has {windows.shape[1]} tokens; expected at least {least}; give a longer text"
        )
    guard = max(1, min(24, len(windows) // 8))
    statistics = text_statistics(
        loaded, windows[guard:] if len(windows) > guard else windows, micro_batch, gram_rank, say
    )
    fixed: Tensors = {"guard/windows": windows[:guard].numpy().astype(np.int32)}
    for name, gram in statistics.grams.items():
        fixed |= gram.arrays(name, statistics.tokens)
        fixed[f"scale/{name}"] = grid_scale(statistics.largest[name]).cpu().numpy()
    return fixed
