"""The states that a server answers from: one model that moves between them, one answer at a time."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.models import LoadedModel, Overlay, Turn, end_ids, end_of_turn, has_template
from lifelong_edit.models.overlay import Putting
from lifelong_edit.serving import step_named
from lifelong_edit.tasks import require_causal
from lifelong_edit.timeline import Timeline

_KEPT = 4
"""States that are held ready beside the one at which the model stands."""


@dataclass(frozen=True)
class Served:
    """A state as a server calls it: a name that may move, and the step that it stood for when the request came."""

    name: str
    step: int

    @property
    def model(self) -> str:
        """The model that an answer says it is of."""
        return f"{self.name}@{self.step}"


class States:
    """States of a timeline by name, each asked through one model. Threads may share it; answers wait for each other."""

    def __init__(self, timeline: Timeline, names: Sequence[str]) -> None:
        self._timeline, self.names = timeline, tuple(dict.fromkeys(names))
        for name in self.names:
            self.named(name)
        self.loaded: LoadedModel = timeline.bench().loaded
        require_causal(self.loaded, "serving")
        self._lock, self._standing, self._at = threading.Lock(), ExitStack(), -1
        self._overlays: OrderedDict[int, Overlay] = OrderedDict()
        self.chat = has_template(self.loaded.tokenizer)

    def named(self, name: str | None) -> Served:
        """The state that a name stands for now, the first one by default; moves on as steps are committed.

        Raises UsageError for another name than those that are served.
        """
        name = self.names[0] if name is None else name
        if name not in self.names:
            raise UsageError(f"there is no model {name!r} here, expected {' or '.join(self.names)}")
        return Served(name, step_named(self._timeline, name))

    def overlay(self, step: int) -> Overlay:
        """How a state shows in the model."""
        with self._timeline.lock:
            found = self._overlays.get(step)
            if found is None:
                found = self._overlays[step] = self._timeline.overlay(step)
            self._overlays.move_to_end(step)
            while len(self._overlays) > _KEPT:
                self._overlays.popitem(last=False)
        return found

    def put(self, served: Served, text: str) -> str:
        """A text as a state has it read."""
        overlay = self.overlay(served.step)
        return overlay.put(text) if isinstance(overlay, Putting) else text

    def put_turn(self, served: Served, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """A conversation as a state has its last turn read, with the store's system prompt where it has none.

        Other turns than those of a system, users and assistants are left as they are.
        """
        told = [dict(message) for message in messages]
        system = self.loaded.forms.system
        if system is not None and not any(message.get("role") == "system" for message in told):
            told.insert(0, {"role": "system", "content": system})
        overlay = self.overlay(served.step)
        said = told[-1].get("content") if told else None
        if isinstance(overlay, Putting) and told[-1].get("role") == "user" and isinstance(said, str):
            told[-1]["content"] = overlay.put(Turn(said, system)).text
        return told

    @contextmanager
    def standing(self, step: int) -> Iterator[LoadedModel]:
        """Within the context the model stands at the state of a step. It stays there until another one is asked."""
        with self._lock:
            if step != self._at:
                overlay = self.overlay(step)
                self._standing.close()
                self._at = -1
                self._standing.enter_context(self.loaded.at(overlay))
                self._at = step
            yield self.loaded

    def close(self) -> None:
        """Let the model be the base again."""
        with self._lock:
            self._standing.close()
            self._at = -1


class StateModel:
    """The model at a state, as much of a transformers model as a server asks of one; all else is the model's own.

    chat: it is asked in turns, which end as the chat template ends them.
    """

    def __init__(self, states: States, served: Served, *, chat: bool) -> None:
        self._states, self._step = states, served.step
        loaded = states.loaded
        self.generation_config = copy.deepcopy(loaded.model.generation_config)
        ends = end_ids(loaded).union(end_of_turn(loaded.tokenizer)[-1:] if chat else ())
        self.generation_config.eos_token_id = sorted(ends)
        self.generation_config.pad_token_id = loaded.pad_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._states.loaded.model, name)

    def generate(self, **options: Any) -> Any:
        """As `generate` of transformers, at the state, and no further than the model's context reaches."""
        room = self._states.loaded.context - options["input_ids"].shape[1]
        config = options["generation_config"]
        config.max_new_tokens = min(config.max_new_tokens, room)
        with self._states.standing(self._step) as loaded:
            # Stops are looked up in the tokens themselves: no matter of a prompt that has to leave room.
            return loaded.model.generate(**{**options, "tokenizer": loaded.tokenizer})


def require_room(states: States, ids: Any) -> None:
    """Raise BadInputError for a prompt, (1, t) token ids, that leaves no room for an answer."""
    if ids.shape[1] >= states.loaded.context:
        raise BadInputError(
            f"the prompt has {ids.shape[1]} tokens and leaves no room in a context of "
            f"{states.loaded.context}; shorten it"
        )
