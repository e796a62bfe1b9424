"""When to solve again over all live facts together."""

from __future__ import annotations

from typing import Protocol


class ReconsolidationPolicy(Protocol):
    """Decides after each edit."""

    def due(self, edits: int) -> bool:
        """Whether to reconsolidate now.

        edits: edit steps since the last reconsolidation, counted along the state's own line, so that a rollback
        takes its steps out of the count.
        """
        ...


class Never:
    """The first policy: only when asked for."""

    def due(self, edits: int) -> bool:
        """Always False."""
        return False
