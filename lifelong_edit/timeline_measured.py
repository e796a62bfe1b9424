"""What was measured of a timeline's states, and kept. No torch."""

from __future__ import annotations

from lifelong_edit.stores import Measurement
from lifelong_edit.timeline_base import Part
from lifelong_edit.timeline_names import StepName


class Measured(Part):
    """The part of a timeline that keeps what was measured of its states: the rows of its forgetting matrix."""

    def keep_measurement(self, measurement: Measurement) -> None:
        """Keep what was measured of a step's state, in the place of what was there of that step. It is no step.

        Raises StoreError where the store is open read-only or cannot be written to, UsageError where there is no such
        step.
        """
        self._refuse_read_only()
        self._log.keep_measurement(measurement)

    def measurements(self, line_of: StepName | None = None) -> list[Measurement]:
        """What was measured, by step: of all states, or of those on the line of a step alone."""
        found = self._log.measurements()
        if line_of is None:
            return found
        line = {record.step for record in self.history().line(line_of)}
        return [measurement for measurement in found if measurement.step in line]
