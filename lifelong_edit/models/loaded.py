"""A model that is ready to be edited: base weights that never change, and the one way to stand at edited ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from lifelong_edit.errors import ModelMismatchError, UnknownModelError, UsageError
from lifelong_edit.models.families import EditableModule, Family, find_modules, labels_of
from lifelong_edit.models.fingerprint import fingerprint_of, tokenizer_fingerprint
from lifelong_edit.models.forms import PLAIN, Forms, SameQuestion
from lifelong_edit.models.overlay import BASE, Overlay, Putting, Shifts
from lifelong_edit.models.placement import is_shard, require_unsharded
from lifelong_edit.world import ALONE, World


def compose(base: Tensor, shift: Tensor | None) -> Tensor:
    """Edited weights: W₀ + ΔW, added in float32 and rounded once to the dtype of `base`.

    base: (d_in, d_out) in the model's dtype. shift: (d_in, d_out) float32, or None for no edit, which
    gives `base` itself. Every edited weight of this package comes from here: `W += S; W -= S` is exact
    in no dtype, so weights are always rebuilt from the base and never undone.
    """
    if shift is None:
        return base
    return (base.float() + shift.to(base.device)).to(base.dtype)


# By which names configurations say how long a sequence may be.
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
_COUNTED_FROM_PAD = frozenset({"roberta", "xlm-roberta", "camembert"})
LONGEST = 2048
"""The context of a model that says nowhere how long a sequence it takes, in tokens."""


def context_of(config: Any, tokenizer: Any) -> int:
    """The longest sequence that a model takes, in tokens: what its configuration says, else what its tokenizer does.

    Where neither says anything, as of a model without positions (Mamba), it is `LONGEST`. RoBERTa and its kin count
    positions from behind the padding token's number on.
    """
    text = config.get_text_config()
    for name in _LENGTHS:
        if isinstance(found := getattr(text, name, None), int) and found > 0:
            return found - (text.pad_token_id + 1 if text.model_type in _COUNTED_FROM_PAD else 0)
    # Tokenizers say 1e30 where they do not know.
    return int(tokenizer.model_max_length) if tokenizer.model_max_length < 10**9 else LONGEST


@dataclass(eq=False)
class LoadedModel:
    """A language model with its tokenizer and what is needed to edit it. Make one with `load_model`.

    model: a transformers model in evaluation mode, no parameter of which requires gradients.
    modules: the editable weight matrices in order of depth. source: what it was loaded from.
    fingerprint: digest of the base weights as loaded (`fingerprint_of`), whatever the shifts are. forms: those in which
    it is taught and asked, as a store's `init` fixes them. left_out: what of the checkpoint is beside the language
    model and was not loaded, by the first part of its names. world: the processes that have this model alike, and
    share out what is asked of it by whole micro-batches. device: where inputs go and outputs come from; a model may be
    spread over several (`placement`). solves_on_cpu: see `desk`.
    """

    model: Any
    tokenizer: Any
    family: Family
    modules: tuple[EditableModule, ...]
    source: str
    dtype: torch.dtype
    device: torch.device
    fingerprint: str = ""
    forms: Forms = PLAIN
    left_out: tuple[str, ...] = ()
    world: World = ALONE
    solves_on_cpu: bool = False
    _base: dict[str, Tensor] = field(init=False, repr=False)
    _overlay: Overlay = field(init=False, repr=False, default=BASE)
    _attached: ExitStack = field(init=False, repr=False, default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.model.eval()
        self.model.requires_grad_(False)
        self.fingerprint = self.fingerprint or fingerprint_of(self.model)
        for module in self.modules:
            if is_shard(self._weight(self.model, module)):
                raise UsageError(
                    f"{module.name} is in shards, and only what was to be edited when the model was loaded is whole; "
                    "load the model with these modules, or on another device"
                )
            if self._weight(self.model, module).device.type == "meta":
                raise UsageError(
                    f"{module.name}, which is edited, is kept off the device that it runs on, where its weights cannot "
                    "change; expected it on a device: load the model with another device map, or edit other modules"
                )
        self._base = {m.name: self._weight(self.model, m).clone() for m in self.modules}

    @staticmethod
    def _weight(model: Any, module: EditableModule) -> Tensor:
        """The live weights of a module as (d_in, d_out), a view whichever way they are stored."""
        weight: Tensor = model.get_submodule(module.name).weight.detach()
        return weight if module.orientation == "conv1d" else weight.T

    @property
    def context(self) -> int:
        """The longest sequence that the model takes, in tokens."""
        return context_of(self.model.config, self.tokenizer)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of a classifier's labels by number; none of another model."""
        return labels_of(self.family, self.model.config)

    @property
    def conflict_module(self) -> EditableModule:
        """The lowest module edited at answer positions, whose key at a prompt's end tells what the prompt asks for.

        At the base weights, where something beneath it is edited: then the key never goes stale.
        """
        return next((m for m in self.modules if m.positions == "answer"), self.modules[0])

    @property
    def pad_id(self) -> int:
        """A token id to fill batches with; masked everywhere, so any valid one will do."""
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0

    @property
    def layers(self) -> int:
        """How many layers the model has; 0 where its configuration does not say."""
        return int(getattr(self.model.config.get_text_config(), "num_hidden_layers", 0))

    def editing(self, entries: Sequence[str]) -> LoadedModel:
        """The same model with other modules to edit, as entries of `--modules`. Both share one set of weights.

        So neither may be asked within a context of the other's `at`. Raises UnknownModelError as loading does.
        """
        modules = find_modules(self.model, self.family, entries)
        return replace(self, modules=modules)

    def module(self, name: str) -> EditableModule:
        """The editable module of that name. Raises UnknownModelError where there is none."""
        for module in self.modules:
            if module.name == name:
                return module
        raise UnknownModelError(
            f"{name!r} is not among the modules being edited: {', '.join(m.name for m in self.modules)}"
        )

    def device_of(self, name: str) -> torch.device:
        """The device on which a module that is edited lives and runs."""
        return self._base[self.module(name).name].device

    def desk(self, name: str) -> torch.device:
        """The device that holds keys, gradients and statistics of a module, and solves for it.

        That on which the module lives, or the CPU where `solves_on_cpu` says so; float64 may be elsewhere yet
        (`numerics.devices.solve_device`).
        """
        return torch.device("cpu") if self.solves_on_cpu else self.device_of(name)

    def zeros(self) -> dict[str, Tensor]:
        """No shift of any module, (d_in, d_out) float32, each at its desk."""
        return {m.name: torch.zeros(m.d_in, m.d_out, device=self.desk(m.name)) for m in self.modules}

    def base_weight(self, name: str) -> Tensor:
        """W₀ of a module, (d_in, d_out) float32. A view of the kept copy where it can be: do not write to it."""
        return self._base[self.module(name).name].float()

    def weight(self, name: str) -> Tensor:
        """The weights of a module as the model has them now, (d_in, d_out) float32. A view where it can be."""
        return self._weight(self.model, self.module(name)).float()

    @contextmanager
    def at(self, overlay: Overlay | Mapping[str, Tensor]) -> Iterator[Self]:
        """Within the context the model is what an overlay makes of the base; afterwards what it was, bit for bit.

        The only way in which a model changes. overlay: or just ΔW by module, (d_in, d_out) float32 on any device;
        `BASE` is the base model. Overlays do not add up: within another one's context the inner one alone holds.
        Raises UnknownModelError for a module that is not edited, ModelMismatchError for a shift of another shape.
        """
        overlay = Shifts(overlay) if isinstance(overlay, Mapping) else overlay
        for name, shift in overlay.shifts.items():
            self._check(name, shift)
        before = self._overlay
        try:
            self._stand_at(overlay)
            yield self
        finally:
            self._stand_at(before)

    def _stand_at(self, overlay: Overlay) -> None:
        self._attached.close()
        for module in self.modules:
            if module.name in overlay.shifts or module.name in self._overlay.shifts:
                composed = compose(self._base[module.name], overlay.shifts.get(module.name))
                self._weight(self.model, module).copy_(composed)
        self._overlay = overlay
        self._attached.enter_context(overlay.attach(self.model))

    def put(self, question: SameQuestion) -> SameQuestion:
        """A question as the overlay in force has it read: the same one unless it says otherwise (`Putting`).

        Whoever makes tokens of a question calls it, once, so that all who ask see the same state.
        """
        return self._overlay.put(question) if isinstance(self._overlay, Putting) else question

    def _check(self, name: str, shift: Tensor) -> None:
        module = self.module(name)
        if tuple(shift.shape) != (module.d_in, module.d_out):
            raise ModelMismatchError(
                f"shift of {name} has shape {tuple(shift.shape)}, but its weights have {(module.d_in, module.d_out)}"
            )

    def edited_copy(self, shifts: Mapping[str, Tensor]) -> Any:
        """A fresh transformers model with W₀ + ΔW, which shares nothing with this one.

        What this model's own shifts are does not matter and does not change. Raises UsageError for one in shards.
        """
        require_unsharded(self.model)
        fresh = copy.deepcopy(self.model)
        for name, weight in self.edited_weights(shifts).items():
            fresh.get_parameter(name).data.copy_(weight)
        return fresh

    def edited_weights(self, shifts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """W₀ + ΔW of every editable module as the model stores it: parameter name → contiguous tensor.

        Modules not named in `shifts` have W₀. What this model's own shifts are does not matter.
        """
        for name, shift in shifts.items():
            self._check(name, shift)
        weights = {}
        for module in self.modules:
            weight = compose(self._base[module.name], shifts.get(module.name))
            stored = weight if module.orientation == "conv1d" else weight.T
            weights[f"{module.name}.weight"] = stored.contiguous()
        return weights

    def require_fingerprint(self, expected: str) -> None:
        """Raise ModelMismatchError, stating both, unless the base weights have the fingerprint `expected`."""
        require_fingerprint(expected, self.fingerprint, self.source)

    def require_tokenizer(self, expected: str | None) -> None:
        """Raise ModelMismatchError, stating both, unless the tokenizer has the fingerprint `expected`; None is any."""
        found = None if expected is None else tokenizer_fingerprint(self.tokenizer)
        if found != expected:
            raise ModelMismatchError(
                f"the tokenizer of {self.source!r} has fingerprint {found}, expected {expected}: load the model with "
                "the tokenizer and chat template that the store was made with"
            )


def require_fingerprint(expected: str, found: str, source: str) -> None:
    """Raise ModelMismatchError, stating both fingerprints, where a model is not the expected one."""
    if expected != found:
        raise ModelMismatchError(
            f"the base weights of {source!r} have fingerprint {found}, expected {expected}: load the model, revision "
            "and dtype that the store was made with"
        )
