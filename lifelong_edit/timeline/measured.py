"""What was measured of a timeline's states, and kept. No torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lifelong_edit.errors import StoreDamagedError
from lifelong_edit.stores import Measurement, conflict_entries, decode_tensors
from lifelong_edit.timeline.base import Facet
from lifelong_edit.timeline.locking import locked
from lifelong_edit.timeline.names import StepName


class Measured(Facet):
    """The facet of a timeline that keeps what was measured of its states: the rows of its forgetting matrix."""

    @locked
    def keep_measurement(self, measurement: Measurement) -> None:
        """Keep what was measured of a step's state, in the place of what was there of that step. It is no step.

        Raises StoreError where the store is open read-only or cannot be written to, UsageError where there is no such
        step.
        """
        self._refuse_read_only()
        self._log.keep_measurement(measurement)

    @locked
    def measurements(self, line_of: StepName | None = None) -> list[Measurement]:
        """What was measured, by step: of all states, or of those on the line of a step alone."""
        found = self._log.measurements()
        if line_of is None:
            return found
        line = {record.step for record in self.history().line(line_of)}
        return [measurement for measurement in found if measurement.step in line]

    @locked
    def key_directions(self, line_of: StepName) -> dict[str, npt.NDArray[np.float32]]:
        """Of each fact that a line taught, its conflict key centred and of length 1: digest → (d_in,).

        As traced last, which for these keys is as traced first; facts whose keys were dropped are left out. Raises
        StoreDamagedError where parts do not fit each other.
        """
        history, found = self.history(), dict[str, npt.NDArray[np.float32]]()
        fixed = decode_tensors(self._log.blob(str(history.record(0).fixed)), "what init fixed", only=("conflict/mean",))
        try:
            mean = fixed["conflict/mean"].astype(np.float32)
            for record in history.line(line_of):
                for blob in history.kept(record.key_blobs):
                    facts, keys = conflict_entries(self._log.blob(blob), f"keys of step {record.step}")
                    keys = keys - mean
                    keys /= np.maximum(np.linalg.norm(keys, axis=1, keepdims=True), np.finfo(np.float32).tiny)
                    found.update(zip(facts, keys, strict=True))
        except (KeyError, ValueError) as error:
            raise StoreDamagedError(f"keys in {self._log.path} do not fit each other ({error}); see `fsck`") from error
        return found
