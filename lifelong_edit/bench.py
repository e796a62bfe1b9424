"""What a store fixed at `init`, typed, and the bench on which its rule works: made once, used for every batch."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lifelong_edit import cache
from lifelong_edit.errors import StepRefusedError, StoreDamagedError
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.models import BASE, LoadedModel
from lifelong_edit.numerics.devices import solve_device
from lifelong_edit.numerics.textgram import TextGrams, is_gram, module_of, require_gram
from lifelong_edit.policies.scoring import Scorer, as_scorer, scorer_array
from lifelong_edit.settings import StoreSettings
from lifelong_edit.stores import Content, FactKeys
from lifelong_edit.tasks import leading, task_of
from lifelong_edit.tracing.conflict_keys import centred, lowest_keys
from lifelong_edit.tracing.preservation import PreservedArrays, PreservedPrompts, prepare_preserved, preserved_phase
from lifelong_edit.tracing.rows import Subjects
from lifelong_edit.tracing.text import TextArrays, measured_on, prepare_text

Arrays = Mapping[str, npt.NDArray[Any]]
Say = Callable[[str], None]
_SCALE, _GUARD, _MEAN, _SCORER, _PRESERVED = "scale/", "guard/windows", "conflict/mean", "conflict/scorer", "preserved/"


def silent(phase: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class Fixed:
    """What `init` fixed. `of` and `arrays` are its way out of a store and into one.

    text: mean grams of text keys, key grids and windows that stand guard. conflict_mean: (d_in,), the centre of the
    conflict keys. preserved: None without preserved prompts. scorer: None in a store that is older than scorers.
    rule: what the editing rule fixed for itself, by its own names (`Rule.fix`).
    """

    text: TextArrays
    conflict_mean: npt.NDArray[Any]
    preserved: PreservedArrays | None = None
    scorer: Scorer | None = None
    rule: Arrays = field(default_factory=dict)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All of it by name, to be stored."""
        found: dict[str, npt.NDArray[Any]] = {**self.text.grams, _GUARD: self.text.guard, _MEAN: self.conflict_mean}
        found |= {_SCALE + name: scale for name, scale in self.text.scale.items()}
        found |= {} if self.preserved is None else self.preserved.arrays(_PRESERVED)
        found |= {} if self.scorer is None else {_SCORER: scorer_array(self.scorer)}
        return {**found, **self.rule}

    @classmethod
    def of(cls, arrays: Arrays) -> Fixed:
        """The inverse of `arrays`. Raises StoreDamagedError where something is missing or cannot be read."""
        # torch wants arrays that it may write to, and those from a store are views of its bytes
        own = {name: np.array(array) for name, array in arrays.items()}
        try:
            scale = {n.removeprefix(_SCALE): own.pop(n) for n in list(own) if n.startswith(_SCALE)}
            grams = {n: own.pop(n) for n in list(own) if is_gram(n)}
            text = TextArrays(grams, scale, own.pop(_GUARD))
            prompts = {n.removeprefix(_PRESERVED): own.pop(n) for n in list(own) if n.startswith(_PRESERVED)}
            preserved = PreservedArrays.of(prompts) if prompts else None
            scorer = as_scorer(own.pop(_SCORER)) if _SCORER in own else None
            _require_alike(text, preserved)
            return cls(text, own.pop(_MEAN), preserved, scorer, own)
        except KeyError as error:
            raise StoreDamagedError(f"what init fixed lacks {error}; restore the store from a backup") from error


def _require_alike(text: TextArrays, preserved: PreservedArrays | None) -> None:
    """Raise KeyError, naming the array, where a module lacks one that its other arrays would be used with."""
    units = {} if preserved is None else preserved.units
    for name in {**text.scale, **units, **dict.fromkeys(map(module_of, text.grams))}:
        require_gram(text.grams, name)
        if name not in text.scale:
            raise KeyError(_SCALE + name)
        if preserved is not None and name not in units:
            raise KeyError(f"{_PRESERVED}units/{name}")


@dataclass
class State:
    """A state of a store as a rule meets it: ΔW per module (d_in, d_out), the live facts, their keys, further parts.

    parts: what is held of each part that the rule declares beside weights and keys. digest: content digest of the
    state (its parts, the live set, what was fixed at `init`); every draw is a function of it.
    """

    shifts: dict[str, Tensor] = field(default_factory=dict)
    live: dict[str, Fact] = field(default_factory=dict)
    keys: dict[str, FactKeys] = field(default_factory=dict)
    parts: dict[str, Content] = field(default_factory=dict)
    digest: str = ""
    _subjects: Subjects = field(default_factory=Subjects, init=False, repr=False, compare=False)

    def subjects(self) -> Container[str]:
        """What the live facts are about, case-folded; for asking, and only until the state changes."""
        return self._subjects.follow(self.live)


class Bench:
    """A model with what its store fixed at `init`, ready for use. It knows no editing rule."""

    def __init__(self, loaded: LoadedModel, settings: StoreSettings, fixed: Fixed) -> None:
        self.loaded, self.settings, self.fixed, self.task = loaded, settings, fixed, task_of(loaded)
        self.names = [m.name for m in loaded.modules]
        self.at_subject = frozenset(m.name for m in loaded.modules if m.positions == "subject")
        self.text_gram = TextGrams(fixed.text.grams, {n: loaded.desk(n) for n in self.names})
        self.scale = scales(loaded, {n: fixed.text.scale[n] for n in self.names})
        self.conflict_mean = torch.from_numpy(fixed.conflict_mean).to(loaded.device)
        self.scorer = fixed.scorer
        self.guard_windows = torch.from_numpy(fixed.text.guard.astype(np.int64))
        self.preserved = PreservedPrompts.load(
            fixed.preserved, loaded.modules, self.conflict_mean, settings.seed, loaded.forms.system
        )

    def under(self, settings: StoreSettings) -> Bench:
        """The same bench for a rule with other settings, as of one inside of another; nothing is read anew."""
        found = copy(self)
        found.settings = settings
        return found

    # -- conflict keys: what a prompt looks like to the base model, so that two that ask the same are found

    def conflict_of(self, facts: Sequence[Fact]) -> dict[str, np.ndarray]:
        """The conflict key of each fact's prompt as it is stored, digest → (d_in,): neither centred nor scaled.

        In the leading form: that of the turn where facts are taught in conversations alone. Rounded as the store keeps
        it, before anything is decided by it. Raises StepRefusedError where 16 bits do not hold it.
        """
        keys = self._raw_conflict_keys(facts).cpu().numpy()
        if self.settings.key_dtype == "float16":
            keys = in_16_bits(keys)
        return {fact.digest: key.copy() for fact, key in zip(facts, keys, strict=True)}

    def centred_keys(self, conflict: Mapping[str, np.ndarray], facts: Sequence[Fact]) -> Tensor:
        """What `conflict_keys` gives for the prompts of facts, from the keys of `conflict_of`, (n, d_in)."""
        keys = torch.from_numpy(np.stack([conflict[fact.digest] for fact in facts]))
        return centred(keys.to(self.loaded.device), self.conflict_mean)

    def conflict_keys(self, prompts: Sequence[Fact | str]) -> np.ndarray:
        """Centred normalised conflict keys, those of `lowest_keys` at each prompt's last token, (n, d_in) float32.

        prompts: or facts, of which one may say itself how it is put as a turn.
        """
        return centred(self._raw_conflict_keys(prompts), self.conflict_mean).cpu().numpy()

    def _raw_conflict_keys(self, prompts: Sequence[Fact | str]) -> Tensor:
        with self.loaded.at(BASE):  # whatever is remembered at a state, a key is that of the prompt alone
            ids = [self.task.encode_question(self.loaded, leading(self.loaded, p)) for p in prompts]
        return lowest_keys(self.loaded, ids, self.settings.micro_batch)


def in_16_bits(keys: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Keys as float16. Raises StepRefusedError where an entry is too large for it."""
    with np.errstate(over="ignore"):
        found = keys.astype(np.float16)
    if not np.isfinite(found).all():
        raise StepRefusedError(
            "a key has an entry above 65,504, the most that 16 bits keep; expected a smaller one; make the store with "
            "--set key_dtype=float32"
        )
    return found


def _preserved(
    loaded: LoadedModel,
    settings: StoreSettings,
    preserve: Sequence[Probe],
    scale: Mapping[str, Tensor],
    say: Say,
    *,
    public: bool,
) -> PreservedArrays | None:
    """What is fixed of preserved prompts, measured, or read where they are public and were measured before."""
    batch, tokens = settings.micro_batch, settings.preserved_tokens

    def measured() -> PreservedArrays | None:
        return prepare_preserved(loaded, preserve, tokens, batch, scale, say)

    def arrays() -> dict[str, npt.NDArray[Any]]:
        found = measured()
        return {} if found is None else found.arrays("")

    if not (public and preserve):
        return measured()
    grid = [scale[name].cpu().numpy().tobytes() for name in sorted(scale)]
    key = measured_on(loaded, batch, repr(tokens).encode(), msgspec.json.encode(list(preserve)), *grid)
    return PreservedArrays.of(cache.arrays("prompts", key, arrays, loaded.world))


def scales(loaded: LoadedModel, fixed: Arrays) -> dict[str, Tensor]:
    """The grids of modules, (d_in,) float64, each where solves for its module are."""
    return {name: torch.from_numpy(fixed[name]).to(solve_device(loaded.desk(name))) for name in fixed}


def prepare(
    loaded: LoadedModel,
    settings: StoreSettings,
    *,
    text: Sequence[str],
    preserve: Sequence[Probe] = (),
    scorer: Scorer | None = None,
    rule: Arrays | None = None,
    say: Say = silent,
    statistics: bool = True,
    public: bool = False,
) -> Fixed:
    """What `init` fixes, measured on the base model: text grams, key grids, preserved prompts, conflict centre.

    statistics: whether the rule solves with the grams of all of the text. public: whether the prompts are those that
    come with the program, so that what the model says to them may be kept per user (`cache`).
    """
    with loaded.at(BASE):
        say("measuring the text")
        tokens, rank = settings.text_tokens, settings.gram_rank
        texts = prepare_text(loaded, text, tokens, settings.micro_batch, rank, say, whole=statistics)
        scale = scales(loaded, texts.scale)
        say(preserved_phase(preserve))
        preserved = _preserved(loaded, settings, preserve, scale, say, public=public)
        if preserved is not None:
            mean = preserved.keys.mean(0)
        else:
            guard = [row.tolist() for row in texts.guard]
            starts = [window[: 4 + i % 24] for i, window in enumerate(guard * 8)]
            mean = lowest_keys(loaded, starts, settings.micro_batch).mean(0).cpu().numpy()
    return Fixed(texts, mean, preserved, scorer, rule or {})
