"""A state on a transformers model that somebody holds already: put there, moved to new steps, taken off to the bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from lifelong_edit.bench import Bench
from lifelong_edit.errors import UsageError
from lifelong_edit.models import BASE, LoadedModel, Overlay
from lifelong_edit.models.families import family_of, find_modules
from lifelong_edit.models.forms import SameQuestion
from lifelong_edit.models.loading import load_tokenizer
from lifelong_edit.models.placement import device_of
from lifelong_edit.serving.turnstile import Turnstile
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.model import make_bench, make_editor
from lifelong_edit.timeline.names import StepName

_OFF = "found a state that was taken off its model, expected one that is on; attach it anew"


def attach(model: Any, store: str | Path | Timeline, *, at: StepName = "head", tokenizer: Any = None) -> Attached:
    """Put the state at a step on a model in memory, hooks and codebooks included; see `Attached`.

    model: a transformers model with the weights that the store was made with, in the store's dtype. store: its folder,
    which is then read alongside whoever writes to it, or an open Timeline. tokenizer: the model's, by default that of
    the place where the store's model lies. Raises ModelMismatchError where model or tokenizer is another one,
    UnknownModelError where a matrix is packed or wrapped, UsageError where there is no such step, or where the model
    has a state of some store already, and what opening a store raises.
    """
    with ExitStack() as undo:
        if isinstance(store, Timeline):
            timeline = store
        else:
            timeline = Timeline.open(store, read_only=True)
            undo.callback(timeline.close)
        attached = Attached(timeline, model, tokenizer, undo)
        attached.refresh(at)
        attached.keep(undo.pop_all())
    return attached


class Attached:
    """A state that stands on somebody's model until `detach`. Made by `attach`; a context manager that ends with it.

    Every `model.generate` is a request, in whatever thread, and every pass of a model that generates nothing, as of an
    encoder; `refresh` and `detach` wait until those that began are through, and those that come meanwhile wait for
    them, so that an answer belongs to one state. Whoever calls a model token by token does so within `request`.
    """

    def __init__(self, timeline: Timeline, model: Any, tokenizer: Any, undo: ExitStack) -> None:
        if any(hasattr(call, "attached") for call in (model.__dict__.get("generate"), type(model).__call__)):
            raise UsageError("found a model with a state on it, expected one without; detach the other one first")
        self._timeline, self._undo = timeline, ExitStack()
        self._turnstile, self._standing = Turnstile(), ExitStack()
        self._at: StepName = "head"
        self._overlay: Overlay = BASE
        self._off = False
        self._step: int | None = None
        identity = timeline.config.model
        if tokenizer is None:
            tokenizer = load_tokenizer(timeline.source, identity.revision)
        family = family_of(model.config, identity.entries)
        modules = find_modules(model, family, identity.entries)
        undo.callback(_as_it_was(model))
        own = copy.deepcopy(tokenizer)  # a bench says in it how long a text may be
        loaded = LoadedModel(model, own, family, modules, timeline.source, model.dtype, device_of(model))
        self._bench: Bench = make_bench(timeline.config, timeline.fixed(), None, None, loaded)
        self._editor = make_editor(self._bench)
        guard = _guarded if hasattr(model, "generate") else _guarded_passes
        undo.callback(guard(model, self))

    def keep(self, undo: ExitStack) -> None:
        """Take over what gives the model and the store back, for `detach` to do."""
        self._undo = undo

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def __repr__(self) -> str:
        return f"<Attached at step {self._step} of {self._timeline.path}>"

    @property
    def step(self) -> int:
        """The step whose state the model stands at. Raises UsageError after `detach`."""
        if self._step is None:
            raise UsageError(_OFF)
        return self._step

    @contextmanager
    def request(self) -> Iterator[int]:
        """Within the context the model stands at one state, whose step it gives; what would move it waits."""
        with self._turnstile.request():
            yield self.step

    def put(self, question: SameQuestion) -> SameQuestion:
        """A text or a turn as the state has it read: other than it is only for rules that remember facts as text."""
        with self._turnstile.request():
            return self._bench.loaded.put(question)

    def refresh(self, at: StepName | None = None) -> int:
        """Go to where `at` leads by now, the head by default and else as it was said last; the step it stands at.

        Waits for requests that are under way. Where the state is the same nothing is done. Raises UsageError within a
        request, after `detach`, and where there is no such step; the model then stands where it stood.
        """
        at = self._at if at is None else at
        if self._off:
            raise UsageError(_OFF)
        with self._timeline.lock:
            history = self._timeline.history()
            step = history.state_of(at)
            if step != self._step:
                overlay = self._editor.overlay(self._timeline.state(step))
        if step != self._step:
            with self._turnstile.change():
                self._stand(overlay)
                self._step = step
        self._at = at
        return step

    def _stand(self, overlay: Overlay) -> None:
        """Let the model stand at a state, or where it stood if that fails."""
        former, self._overlay = self._overlay, overlay
        self._standing.close()
        try:
            self._standing.enter_context(self._bench.loaded.at(overlay))
        except BaseException:
            self._overlay = former
            self._standing.enter_context(self._bench.loaded.at(former))
            raise

    def detach(self) -> None:
        """Take the state off: the model is what it was before, to the bit. Twice is harmless."""
        with self._turnstile.change():
            self._off, self._step = True, None
            self._standing.close()
            self._undo.close()


def _as_it_was(model: Any) -> Any:
    """What gives a model back the modes that editing takes from it: training, and gradients of parameters."""
    training = [(module, module.training) for module in model.modules()]
    wanting = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore() -> None:
        for module, mode in training:
            module.training = mode
        for parameter, wants in wanting:
            parameter.requires_grad_(wants)

    return restore


def _guarded(model: Any, attached: Attached) -> Any:
    """Make every `generate` of a model a request; what takes that away again."""
    before, former = model.generate, model.__dict__.get("generate")

    def generate(*arguments: Any, **options: Any) -> Any:
        with attached.request():
            return before(*arguments, **options)

    generate.attached = attached  # type: ignore[attr-defined]
    model.generate = generate

    def restore() -> None:
        if former is None:
            del model.generate
        else:
            model.generate = former

    return restore


def _guarded_passes(model: Any, attached: Attached) -> Any:
    """Make every pass of a model a request; what takes that away again.

    By a class of its own while the state is on: hooks of a state run before and after `forward`, and belong to the
    same request.
    """
    before = type(model)

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        with attached.request():
            return before.__call__(self, *arguments, **options)

    call.attached = attached  # type: ignore[attr-defined]
    model.__class__ = type(before.__name__, (before,), {"__call__": call, "__module__": before.__module__})

    def restore() -> None:
        model.__class__ = before

    return restore
