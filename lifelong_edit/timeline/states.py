"""States from the log: ΔW rebuilt and checked, live keys, the editor's own state."""

from __future__ import annotations

import functools
import logging
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt

from lifelong_edit.errors import StoreDamagedError
from lifelong_edit.stores import (
    KEYS,
    WEIGHTS,
    Content,
    EditLog,
    FactKeys,
    Part,
    Read,
    Shapes,
    StepRecord,
    Weights,
    advance,
    digest_bytes,
    encode_entries,
    entry_names,
    replay,
    tensors_digest,
    upsert,
    zeros,
)
from lifelong_edit.timeline.history import History
from lifelong_edit.timeline.names import StepName
from lifelong_edit.tracked import Tracked

FloatArray = npt.NDArray[np.float32]

LIBRARIES = ("numpy", "scipy", "torch", "transformers", "tokenizers", "safetensors", "lmdb", "lifelong-edit")
PROJECTIONS = 8
TOLERANCE = 1e-6
"""Relative to ‖ΔW‖: how far weights rebuilt in another environment may be from those that were logged."""

_NOTHING = tensors_digest({})
"""The digest of a part without anything in it."""
_LOGGER = logging.getLogger(__name__)


def weights_at(log: EditLog, history: History, step: StepName, shapes: Shapes) -> Weights:
    """ΔW at the state of a step, as stored or rebuilt by a left fold from the nearest snapshot, and checked.

    Raises UsageError where the state was dropped, StoreDamagedError where the digest of what was rebuilt is not the one
    that was logged; in an environment other than the step's, rounding within TOLERANCE of it is accepted and logged as
    a warning.
    """
    history.require_kept(step)
    record = history.record(history.state_of(step))
    head = log.head()
    if head.weights is not None and head.step <= history.head and history.state_of(head.step) == record.step:
        line = [Part(fold="sum", whole=head.weights, digest=record.weights_digest)]
    else:
        line = history.parts(step, WEIGHTS)
    return _check(replay(line, log.blob, zeros(shapes)), record, shapes)


def _check(weights: Weights, record: StepRecord, shapes: Shapes) -> Weights:
    found = {name: array.shape for name, array in weights.items()}
    if found != dict(shapes):
        raise StoreDamagedError(f"ΔW of step {record.step} has shapes {found}; expected {dict(shapes)}")
    digest = tensors_digest(weights)
    if digest == record.weights_digest:
        return weights
    changed = differences(record.provenance.get("environment", {}), environment())
    if not changed or not _close(weights, record.provenance.get("sketch", {})):
        raise StoreDamagedError(
            f"the weights of step {record.step} were rebuilt with digest {digest}, but {record.weights_digest} was "
            f"logged{' and they differ by more than rounding' if changed else ''}; restore the store from a backup"
        )
    _LOGGER.warning(
        "the weights of step %d equal the logged ones within %g, not bit for bit, because the environment changed: %s",
        record.step,
        TOLERANCE,
        "; ".join(changed),
    )
    return weights


# -- a sketch of ΔW, against which weights rebuilt elsewhere are compared


def sketch(weights: Mapping[str, FloatArray]) -> dict[str, list[float]]:
    """Per module ‖ΔW‖ and PROJECTIONS values uᵀ ΔW v for fixed random signs u, v, in float64.

    Each value of a difference E has mean 0 and variance ‖E‖², so together they bound ‖E‖ without storing ΔW.
    """
    result = {}
    for name, array in weights.items():
        exact = array.astype(np.float64)
        random = np.random.default_rng(int(digest_bytes(name.encode())[:15], 16))
        left = random.choice([-1.0, 1.0], (PROJECTIONS, array.shape[0]))
        right = random.choice([-1.0, 1.0], (PROJECTIONS, array.shape[1]))
        values = np.einsum("pi,pi->p", left @ exact, right)
        result[name] = [float(np.linalg.norm(exact)), *map(float, values)]
    return result


def _close(weights: Mapping[str, FloatArray], logged: Mapping[str, Sequence[float]]) -> bool:
    found = sketch(weights)
    if found.keys() != logged.keys() or any(len(logged[n]) != len(found[n]) for n in found):
        return False
    return all(
        np.sqrt(np.mean(np.square(np.subtract(found[n][1:], logged[n][1:])))) <= TOLERANCE * max(logged[n][0], 1e-30)
        for n in found
    )


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine(), "cores": str(os.cpu_count())}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = "unknown"
    return found


def environment(device: str | None = None) -> dict[str, str]:
    """What floating-point results may depend on: versions, processor, threads, device."""
    found = dict(_versions())
    found["threads"] = os.environ.get("OMP_NUM_THREADS", "default")
    if "torch" in sys.modules:
        found["torch_threads"] = str(sys.modules["torch"].get_num_threads())
    if device is not None:
        found["device"] = device
    return found


def differences(logged: Mapping[str, Any], here: Mapping[str, str]) -> list[str]:
    """Where two environments differ, of what is known of both."""
    return [f"{key} {logged[key]} → {here[key]}" for key in here if key in logged and logged[key] != here[key]]


# -- the other parts


def keys_at(log: EditLog, history: History, step: int) -> dict[str, FactKeys]:
    """The keys of the facts live at the state of a step, as traced last on its line."""
    live = history.fold(step).live
    return _of_all(live, replay(history.parts(step, KEYS), log.blob, only=live))


def _of_all(live: Iterable[str], keys: Mapping[str, FactKeys]) -> dict[str, FactKeys]:
    """Keys in the order of the live facts. Raises StoreDamagedError where a fact has none."""
    live = list(live)
    _require_keys(live, keys)
    return {fact: keys[fact] for fact in live}


def _require_keys(live: Iterable[str], keys: Mapping[str, FactKeys]) -> None:
    missing = next((fact for fact in live if not isinstance(keys.get(fact), FactKeys)), None)
    if missing is not None:
        raise StoreDamagedError(f"the store has no keys of the live fact {missing}; restore it from a backup")


def key_ages_at(log: EditLog, history: History, step: int) -> dict[str, int]:
    """How many edit steps of the line the keys of each fact live at the state of a step have stood since their trace.

    0: traced by the last edit, or by a reconsolidation that no edit followed.
    """
    edits, traced = 0, dict[str, int]()
    for record in history.line(step):
        edits += record.kind == "edit"
        for blob in history.kept(record.key_blobs):
            traced.update((fact, edits) for fact in entry_names(log.blob(blob), f"keys of step {record.step}"))
    return {fact: edits - traced[fact] for fact in history.fold(step).live}


def parts_at(log: EditLog, history: History, step: StepName) -> dict[str, Content]:
    """What an editing rule keeps beside weights and keys at the state of a step: the content of each such part."""
    step = history.state_of(step)
    live = history.fold(step).live
    found = {n: replay(history.parts(step, n), log.blob, only=live) for n in history.further_parts(step)}
    return {name: content for name, content in found.items() if content}


@dataclass
class StoredState:
    """All parts of the state that a step made: made by `replay`, and moved by `advance` and `upsert` alone.

    Whoever appended a step calls `follow`, as anybody does who reads the log: there is one way to what comes after it.
    """

    record: StepRecord
    """The step that made it."""
    live: dict[str, None]
    """The live facts, in the order in which they came."""
    parts: dict[str, Content]
    """Those with entries of each fact are followed where they are: they go on with the state."""
    brought: dict[str, Part]
    """By part what the last step of the line brought that brought something."""
    shapes: Shapes

    @classmethod
    def at(cls, log: EditLog, history: History, step: StepName, shapes: Shapes) -> StoredState:
        """The state at a step. Raises as `weights_at` and `keys_at` do."""
        at = history.state_of(step)
        live = dict(history.fold(at).live)
        brought = {name: part for record in history.line(at) for name, part in record.parts.items()}
        parts = parts_at(log, history, at) | {
            WEIGHTS: dict(weights_at(log, history, at, shapes)),
            KEYS: Tracked(keys_at(log, history, at)),
        }
        return cls(history.record(at), live, parts, brought, shapes)

    def follow(self, record: StepRecord, read: Read) -> None:
        """Go on by the next step of the line, whose parent's state this is.

        Raises StoreDamagedError where a blob is damaged, or where the weights have not the digest that was logged.
        """
        for digest in record.superseded:
            self.live.pop(digest, None)
        self.live.update(dict.fromkeys(record.added))
        for name, part in record.parts.items():
            if part.fold == "upsert":
                upsert(self.parts.setdefault(name, {}), part, read, only=self.live)
            else:
                self.parts[name] = advance(self.parts.get(name, {}), part, read)
        self.brought |= record.parts
        gone = [digest for digest in record.superseded if digest not in self.live]
        for entries in [self.parts.get(name, {}) for name, part in self.brought.items() if part.fold == "upsert"]:
            for digest in gone:
                entries.pop(digest, None)
        _check(self.weights, record, self.shapes)
        anew = KEYS in record.parts and record.parts[KEYS].whole is not None
        _require_keys(self.live if anew else record.added, self.keys)
        self.record = record

    @property
    def weights(self) -> Weights:
        """ΔW by module, (d_in, d_out) float32."""
        return self.parts[WEIGHTS]

    @property
    def keys(self) -> dict[str, FactKeys]:
        """The keys of the live facts."""
        return self.parts[KEYS]

    @property
    def further(self) -> str:
        """What the content digest of a state says of its parts beside weights and keys, which follow from weights.

        Of entries it is what they hold, in whatever batches they came. Empty without such a part, and where the release
        that wrote the last one logged no digest of it. A part that was emptied is one that never was: what all facts
        were taken out of is a new store.
        """
        others = {n: self._digest_of(n, part) for n, part in self.brought.items() if n not in (WEIGHTS, KEYS)}
        return "".join(f"\n{name} {digest}" for name, digest in sorted(others.items()) if digest not in ("", _NOTHING))

    def _digest_of(self, name: str, part: Part) -> str:
        if part.fold != "upsert":
            return part.digest
        return digest_bytes(encode_entries(self.parts[name])) if self.parts[name] else ""
