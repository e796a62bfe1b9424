"""A state of a timeline to look at: it stays what it is while the head moves on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from lifelong_edit.facts import Fact
from lifelong_edit.stores import StepRecord, Weights
from lifelong_edit.timeline.locking import Lock, locked

if TYPE_CHECKING:
    from lifelong_edit.bench import Bench
    from lifelong_edit.models import LoadedModel, Overlay, Question
    from lifelong_edit.models.forms import Role


class States(Protocol):
    """Where the states are that a view looks at: a timeline."""

    lock: Lock

    def show(self, step: int) -> StepRecord:
        """A step."""

    def live_facts(self, step: int) -> list[Fact]:
        """The facts live at the state of a step."""

    def weights(self, step: int) -> Weights:
        """ΔW by module at the state of a step."""

    def bench(self) -> Bench:
        """The model on its bench."""

    def overlay(self, step: int) -> Overlay:
        """How the state of a step shows in the model."""


class View:
    """The state at a step, read only. Made by `Timeline.at`; usable as long as its timeline is open."""

    def __init__(self, states: States, step: int, where: str = "") -> None:
        self._states, self.step, self._where = states, step, where

    @property
    def lock(self) -> Lock:
        """That of the timeline."""
        return self._states.lock

    def __repr__(self) -> str:
        return f"<View of step {self.step} of {self._where}>"

    @property
    @locked
    def record(self) -> StepRecord:
        """The step."""
        return self._states.show(self.step)

    @locked
    def facts(self) -> list[Fact]:
        """The facts live at this state, in the order in which they came."""
        return self._states.live_facts(self.step)

    @locked
    def shifts(self) -> dict[str, npt.NDArray[np.float32]]:
        """ΔW by module, (d_in, d_out) float32, checked against the digest logged with the step. No torch."""
        return self._states.weights(self.step)

    @property
    @locked
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._states.bench().loaded.tokenizer

    @locked
    def model(self) -> Any:
        """A fresh transformers model with the weights of this state; changing it changes nothing else.

        Raises UsageError where the state is more than weights, as of a rule that attaches hooks.
        """
        from lifelong_edit.models import without_hooks

        alone, shifts = without_hooks(self._states.bench().loaded, self._states.overlay(self.step))
        return alone.edited_copy(shifts)

    @contextmanager
    def standing(self) -> Iterator[LoadedModel]:
        """Within the context the timeline's own model is at this state, afterwards where it was; its lock is held."""
        with self.lock, self._states.bench().loaded.at(self._states.overlay(self.step)) as loaded:
            yield loaded

    @locked
    def ask(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 20,
        chat: bool = False,
        system: str | None = None,
        turns: Sequence[tuple[Role, str]] = (),
    ) -> str:
        """The model's greedy answer to a prompt at this state, up to its end of text or `max_new_tokens`.

        Of a classifier the label that it gives the text, with the probabilities of all (`Task.shown`).

        chat: the prompt is a turn of a conversation, put through the model's chat template; the answer ends with the
        model's turn. system: its system prompt, by default the store's. turns: earlier ones, each with who speaks
        ("user" or "assistant"). Raises UsageError for a turn to a model without a chat template, and BadInputError
        where the template refuses the conversation.
        """
        from lifelong_edit.models import Turn
        from lifelong_edit.tasks import task_of

        with self.standing() as loaded:
            asked: Question = prompt
            if chat:
                asked = Turn(prompt, loaded.forms.system if system is None else system, tuple(turns))
            task = task_of(loaded)
            (answer,) = task.answer(loaded, [asked], task.room(asked, max_new_tokens))
            return task.shown(loaded, asked, answer)
