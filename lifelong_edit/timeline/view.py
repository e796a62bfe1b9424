"""A state of a timeline to look at: it stays what it is while the head moves on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lifelong_edit.facts import Fact
from lifelong_edit.stores import StepRecord
from lifelong_edit.timeline.locking import Lock, locked

if TYPE_CHECKING:
    from lifelong_edit.models import LoadedModel
    from lifelong_edit.timeline import Timeline


class View:
    """The state at a step, read only. Made by `Timeline.at`; usable as long as its timeline is open."""

    def __init__(self, timeline: Timeline, step: int) -> None:
        self._timeline, self.step = timeline, step

    @property
    def lock(self) -> Lock:
        """That of the timeline."""
        return self._timeline.lock

    def __repr__(self) -> str:
        return f"<View of step {self.step} of {self._timeline.path}>"

    @property
    @locked
    def record(self) -> StepRecord:
        """The step."""
        return self._timeline.show(self.step)

    @locked
    def facts(self) -> list[Fact]:
        """The facts live at this state, in the order in which they came."""
        return self._timeline.facts("live", at=self.step)

    @locked
    def shifts(self) -> dict[str, npt.NDArray[np.float32]]:
        """ΔW by module, (d_in, d_out) float32, checked against the digest logged with the step. No torch."""
        return self._timeline.weights(self.step)

    @property
    @locked
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._timeline.bench().loaded.tokenizer

    @locked
    def model(self) -> Any:
        """A fresh transformers model with the weights of this state; changing it changes nothing else."""
        from lifelong_edit.timeline.model import as_tensors

        return self._timeline.bench().loaded.edited_copy(as_tensors(self.shifts()))

    @locked
    def loaded(self) -> LoadedModel:
        """The timeline's own model, moved to this state; the next user may move it elsewhere."""
        from lifelong_edit.timeline.model import as_tensors

        loaded = self._timeline.bench().loaded
        loaded.set_shifts(as_tensors(self.shifts()))
        return loaded

    @locked
    def ask(self, prompt: str, *, max_new_tokens: int = 20) -> str:
        """The model's greedy answer to a prompt at this state, up to its end of text or `max_new_tokens`."""
        from lifelong_edit.models import generate_greedy

        loaded = self.loaded()
        text: str = loaded.tokenizer.decode(generate_greedy(loaded, [prompt], max_new_tokens)[0])
        return text
