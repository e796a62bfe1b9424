"""What the facets of a timeline have in common. No torch."""

from __future__ import annotations

from abc import ABC, abstractmethod

from lifelong_edit.stores import EditLog, StepRecord, Weights
from lifelong_edit.timeline.commit import Draft
from lifelong_edit.timeline.history import History
from lifelong_edit.timeline.locking import Lock
from lifelong_edit.timeline.names import StepName


class Facet(ABC):
    """A facet of a timeline: it reads the log and, through `_commit`, adds steps to it."""

    _log: EditLog
    lock: Lock
    """Held by every method while it runs."""

    @property
    @abstractmethod
    def head(self) -> int:
        """The last step of the log."""

    @abstractmethod
    def history(self) -> History:
        """The log as read so far."""

    @abstractmethod
    def weights(self, step: StepName) -> Weights:
        """ΔW by module at the state of a step."""

    @abstractmethod
    def _commit(self, draft: Draft) -> StepRecord: ...

    @abstractmethod
    def _refuse_read_only(self, reason: str | None = None) -> None: ...
