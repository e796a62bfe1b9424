"""Prompts that an edit must not change: with the answers that the base model gives and the keys it had there."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, fields

import msgspec
import numpy as np
import torch
from torch import Tensor

from lifelong_edit.facts import Probe, question_of
from lifelong_edit.models import EditableModule, Encoded, LoadedModel, Question, Turn, by_length
from lifelong_edit.numerics.grams import FactKeys, to_grid
from lifelong_edit.tasks import BaseAnswer, form_of, leading, questions_of, task_of
from lifelong_edit.tracing.conflict_keys import centred, lowest_keys
from lifelong_edit.tracing.progress import Progress
from lifelong_edit.tracing.rows import Row, draw
from lifelong_edit.tracing.trace import trace

KEPT = 32
"""How many of the base model's most probable tokens are kept at each answer position."""

_UNITS = "units/"
GUARDS = 200
"""The prompts of at most so many subjects stand guard."""


def answer_of(
    loaded: LoadedModel,
    probes: Sequence[Probe],
    tokens: int,
    questions: Sequence[Question] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Encoded]:
    """Preserved prompts with the answers given, or with the model's own, of a few tokens, as far as they are held.

    See `Task.held`. questions: how each is put, by default in the model's leading form. say: told how far it is.
    """
    task = task_of(loaded)
    asked = [leading(loaded, probe) for probe in probes] if questions is None else list(questions)
    open_ones = [i for i, p in enumerate(probes) if p.target is None]
    encoded: dict[int, Encoded] = {
        i: task.encode(loaded, asked[i], p.target, p.subject) for i, p in enumerate(probes) if p.target is not None
    }
    progress = Progress(say, "asking the preserved prompts", len(open_ones), "prompts")
    lengths = [task.room(asked[i], tokens) for i in open_ones]
    said = task.answer(loaded, [asked[i] for i in open_ones], lengths, tell=progress.at)
    for i, found in zip(open_ones, said, strict=True):
        held = task.held(loaded, asked[i], found)
        encoded[i] = task.encode_said(loaded, asked[i], held, probes[i].subject)
    return [encoded[i] for i in range(len(probes))]


def in_forms(loaded: LoadedModel, probes: Sequence[Probe]) -> tuple[list[Probe], list[Question]]:
    """Each probe as often as the model has forms, and how it is put in each: one form beside the other."""
    pairs = [(probe, question) for probe in probes for question in questions_of(loaded, probe)]
    return [probe for probe, _ in pairs], [question for _, question in pairs]


def base_answers(
    loaded: LoadedModel, encoded: Sequence[Encoded], micro_batch: int, say: Callable[[str], None] | None = None
) -> list[BaseAnswer]:
    """The distribution of the model as it stands at every answer position of prompts with answers.

    say: told how far it is.
    """
    progress = Progress(say, "measuring the preserved prompts", len(encoded), "prompts")
    task = task_of(loaded)

    def work(chosen: list[int]) -> list[BaseAnswer]:
        asked = [encoded[i] for i in chosen]
        with torch.no_grad():
            logits = task.logits(loaded, task.collate(loaded, asked))
        total = logits.logsumexp(-1)
        top, ids = logits.topk(min(KEPT, logits.shape[-1] - 1), dim=-1)
        rest = logits.scatter(-1, ids, -torch.inf).logsumexp(-1) - total
        sizes = task.counts(asked)
        parts = zip(asked, ids.split(sizes), (top - total[:, None]).split(sizes), rest.split(sizes), strict=True)
        return [
            BaseAnswer(e.answer, kept.cpu().numpy(), logp.cpu().numpy(), others.cpu().numpy())
            for e, kept, logp, others in parts
        ]

    return loaded.world.across(by_length([len(e.ids) for e in encoded], micro_batch), work, progress.at)


@dataclass(frozen=True)
class PreservedArrays:
    """Preserved prompts as `init` fixes them: n prompts, their tokens and answers laid end to end.

    One that is asked in two forms is two of them. probes: JSON as bytes. prompt_lengths, answer_lengths: (n,). chat:
    (n,) uint8, 1 where it is a turn; None where none is. subjects: (n, 2), where its tokens stand in a prompt; None in
    stores that are older. top_ids, top_logp: (answer tokens, k); rest_logp: (answer tokens,). keys: (n, d_in),
    the conflict keys, of the leading form. units: by module the keys at its editing positions, on the grid, (positions,
    d_in) int16.
    """

    probes: np.ndarray
    prompt_lengths: np.ndarray
    prompt_tokens: np.ndarray
    answer_lengths: np.ndarray
    answer_tokens: np.ndarray
    top_ids: np.ndarray
    top_logp: np.ndarray
    rest_logp: np.ndarray
    keys: np.ndarray
    units: Mapping[str, np.ndarray]
    subjects: np.ndarray | None = None
    chat: np.ndarray | None = None

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """All of them by name."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "units"}
        found = {prefix + name: array for name, array in plain.items() if array is not None}
        return found | {f"{prefix}{_UNITS}{module}": array for module, array in self.units.items()}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> PreservedArrays:
        """The inverse of `arrays`, names without the prefix. Raises KeyError where one is missing."""
        units = {n.removeprefix(_UNITS): array for n, array in arrays.items() if n.startswith(_UNITS)}
        plain = {f.name: arrays[f.name] for f in fields(cls) if f.name not in ("units", "subjects", "chat")}
        return cls(**plain, units=units, subjects=arrays.get("subjects"), chat=arrays.get("chat"))


@dataclass
class PreservedPrompts:
    """Preserved prompts with the base model's answers and the keys it had there.

    subjects: where the subject's tokens stand in each prompt. keys: those at the editing positions, on the grid, with
    the conflict key. directions: the conflict keys centred and normalised, (n, d_in). guard: numbers of those that are
    never rows nor in a gram, so that they can judge: all prompts of the subjects drawn. chat: numbers of those that are
    turns, after the system prompt `system`.
    """

    probes: list[Probe]
    prompts: list[list[int]]
    subjects: list[tuple[int, int]]
    answers: list[BaseAnswer]
    keys: list[FactKeys]
    directions: Tensor
    guard: frozenset[int] = frozenset()
    chat: frozenset[int] = frozenset()
    system: str | None = None

    def question(self, index: int) -> Question:
        """How a prompt is put: as it is, or as a turn."""
        probe = self.probes[index]
        return Turn(question_of(probe), self.system) if index in self.chat else probe.prompt

    def free(self, subjects: Container[str]) -> list[int]:
        """Numbers of the prompts that a solve may use: no guards, and none about an edited subject (case-folded)."""
        return [i for i, p in enumerate(self.probes) if i not in self.guard and not _speaks_of(p, subjects)]

    def guards(self, subjects: Container[str]) -> list[int]:
        """Numbers of the guards that are asked, the first of each subject in each form.

        Not those about one of the edited `subjects` (case-folded): their answers may have to change.
        """
        first: dict[tuple[str, bool], int] = {}
        for i in sorted(self.guard):
            if not _speaks_of(self.probes[i], subjects):
                first.setdefault((_about(self.probes[i]), i in self.chat), i)
        return list(first.values())

    def keys_outside(self, subjects: Container[str]) -> dict[str, FactKeys]:
        """The keys of all prompts but guards and those about one of the edited `subjects` (case-folded), by number."""
        return {str(i): self.keys[i] for i in self.free(subjects)}

    def rows(self, count: int, near: Tensor, weight: float, subjects: Container[str], *parts: object) -> list[Row]:
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
        encoded = Encoded.of(self.prompts[index], answer.ids, self.subjects[index])
        return Row(encoded, "preserved", weight, None, answer, "chat" if index in self.chat else "plain")

    @classmethod
    def load(
        cls,
        fixed: PreservedArrays | None,
        modules: Sequence[EditableModule],
        mean: Tensor,
        seed: int,
        system: str | None = None,
    ) -> PreservedPrompts:
        """The preserved prompts fixed at `init`, ready to become rows; a tenth, drawn by `seed`, stand guard.

        mean: the conflict centre, (d_in,). system: the store's system prompt.
        """
        if fixed is None:
            return cls([], [], [], [], [], torch.zeros(0, len(mean)))
        probes = msgspec.json.decode(fixed.probes.tobytes(), type=list[Probe])
        cuts = np.cumsum(fixed.answer_lengths)[:-1]
        parts = zip(
            _ragged(fixed.answer_tokens, fixed.answer_lengths),
            np.split(fixed.top_ids.astype(np.int64), cuts),
            np.split(fixed.top_logp, cuts),
            np.split(fixed.rest_logp, cuts),
            strict=True,
        )
        answers = [BaseAnswer(tuple(i), top, logp, rest) for i, top, logp, rest in parts]
        directions = centred(torch.from_numpy(fixed.keys).to(mean), mean)
        subjects = np.zeros((len(probes), 2), np.int32) if fixed.subjects is None else fixed.subjects
        ends = {
            "answer": cuts,
            "subject": np.cumsum(subjects[:, 1] - subjects[:, 0])[:-1],
            "question": np.cumsum(fixed.prompt_lengths)[:-1],
        }
        units = {m.name: np.split(fixed.units[m.name], ends[m.positions]) for m in modules}
        keys = [FactKeys({n: u[i] for n, u in units.items()}, fixed.keys[i]) for i in range(len(probes))]
        spans = [(int(start), int(end)) for start, end in subjects]
        prompts = _ragged(fixed.prompt_tokens, fixed.prompt_lengths)
        chat = frozenset() if fixed.chat is None else frozenset(np.flatnonzero(fixed.chat).tolist())
        return cls(probes, prompts, spans, answers, keys, directions, _draw_guards(probes, seed), chat, system)


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


def _speaks_of(probe: Probe, subjects: Container[str]) -> bool:
    return _about(probe) in subjects


def prepare_preserved(
    loaded: LoadedModel,
    probes: Sequence[Probe],
    tokens: int,
    micro_batch: int,
    scale: Mapping[str, Tensor],
    say: Callable[[str], None] | None = None,
) -> PreservedArrays | None:
    """Preserved prompts as arrays to be fixed at `init`; answers and keys are those of the model as it stands.

    In every form of the model, each with the conflict key of its leading one: so that what is near to a batch is near
    in all forms. scale: width of the grid, module → (d_in,). say: told how far it is. None without prompts.
    """
    if not probes:
        return None
    forms = len(loaded.forms.names)
    probes, questions = in_forms(loaded, probes)
    encoded = answer_of(loaded, probes, tokens, questions, say)
    prompts = [list(e.prompt) for e in encoded]
    chat = [form_of(question) == "chat" for question in questions]
    answers = base_answers(loaded, encoded, micro_batch, say)
    rows = [Row(e, "preserved", 1.0, None, a) for e, a in zip(encoded, answers, strict=True)]
    return PreservedArrays(
        probes=np.frombuffer(msgspec.json.encode(list(probes)), dtype=np.uint8),
        prompt_lengths=np.array([len(p) for p in prompts], dtype=np.int32),
        prompt_tokens=np.concatenate([np.array(p, dtype=np.int32) for p in prompts]),
        subjects=np.array([e.subject for e in encoded], dtype=np.int32),
        answer_lengths=np.array([len(a.ids) for a in answers], dtype=np.int32),
        answer_tokens=np.concatenate([np.array(a.ids, dtype=np.int32) for a in answers]),
        top_ids=np.concatenate([a.top_ids for a in answers]).astype(np.int32),
        top_logp=np.concatenate([a.top_logp for a in answers]),
        rest_logp=np.concatenate([a.rest_logp for a in answers]),
        keys=lowest_keys(loaded, prompts[::forms], micro_batch).cpu().numpy().repeat(forms, axis=0),
        units=_units(loaded, rows, micro_batch, scale, say),
        chat=np.array(chat, dtype=np.uint8) if any(chat) else None,
    )


def _units(
    loaded: LoadedModel,
    rows: Sequence[Row],
    micro_batch: int,
    scale: Mapping[str, Tensor],
    say: Callable[[str], None] | None,
) -> dict[str, np.ndarray]:
    """The rows' keys on the grid, module → (positions, d_in) int16; many rows, few at a time."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in scale}
    progress = Progress(say, "tracing the preserved prompts", len(rows), "prompts")
    for start in range(0, len(rows), 16 * micro_batch):
        traced = trace(loaded, rows[start : start + 16 * micro_batch], micro_batch, gradients=False)
        for name, found in parts.items():
            found.append(to_grid(traced.keys[name], scale[name]))
        progress.at(min(len(rows), start + 16 * micro_batch))
    return {name: np.concatenate(found) for name, found in parts.items()}


def _ragged(flat: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(flat, np.cumsum(lengths)[:-1])]
