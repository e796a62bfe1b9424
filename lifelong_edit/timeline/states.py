"""States from the log: ΔW rebuilt and checked, live keys, the editor's own state."""

from __future__ import annotations

import functools
import logging
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lifelong_edit.errors import StoreDamagedError
from lifelong_edit.stores import (
    EditLog,
    Shapes,
    StepRecord,
    Weights,
    decode_tensors,
    decode_whole,
    digest_bytes,
    encode_tensors,
    fold,
    tensors_digest,
    zeros,
)
from lifelong_edit.timeline.history import History
from lifelong_edit.timeline.names import StepName

if TYPE_CHECKING:
    from lifelong_edit.numerics.grams import FactKeys

FloatArray = npt.NDArray[np.float32]

LIBRARIES = ("numpy", "scipy", "torch", "transformers", "tokenizers", "safetensors", "lmdb", "lifelong-edit")
PROJECTIONS = 8
TOLERANCE = 1e-6
"""Relative to ‖ΔW‖: how far weights rebuilt in another environment may be from those that were logged."""

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
        stored = head.weights
    elif (whole := history.whole(record)) is not None:
        stored = whole
    else:
        return _check(_rebuild(log, history, step, shapes), record, shapes)
    return _check(_stored(log, stored, f"ΔW of step {record.step}"), record, shapes)


def _stored(log: EditLog, digest: str, what: str) -> Weights:
    return decode_whole(log.blob(digest), what)


def _rebuild(log: EditLog, history: History, step: StepName, shapes: Shapes) -> Weights:
    line = history.line(step)
    start = next((i for i in reversed(range(len(line))) if history.whole(line[i]) is not None), None)
    if start is None:
        weights, rest = zeros(shapes), line
    else:
        weights = _stored(log, str(history.whole(line[start])), f"snapshot of step {line[start].step}")
        rest = line[start + 1 :]
    return fold(weights, ((f"shift of step {r.step}", log.blob(r.shift)) for r in rest if r.shift is not None))


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


# -- keys and the editor's state


def encode_keys(keys: Mapping[str, FactKeys]) -> bytes:
    """Keys of facts as bytes: rows concatenated per module, with the number of rows of each fact."""
    facts = sorted(keys)
    tensors: dict[str, npt.NDArray[Any]] = {
        "facts": np.frombuffer(bytes.fromhex("".join(facts)), np.uint8).reshape(len(facts), -1),
        "conflict": np.stack([keys[fact].conflict for fact in facts]),
    }
    for module in keys[facts[0]].rows:
        tensors[f"rows/{module}"] = np.concatenate([keys[fact].rows[module] for fact in facts])
        tensors[f"counts/{module}"] = np.array([len(keys[fact].rows[module]) for fact in facts], np.int32)
    return encode_tensors(tensors)


def decode_keys(data: bytes, what: str) -> dict[str, FactKeys]:
    """The inverse of `encode_keys`. Raises StoreDamagedError where parts do not fit each other."""
    from lifelong_edit.numerics.grams import FactKeys

    tensors = decode_tensors(data, what)
    try:
        facts = [row.tobytes().hex() for row in tensors["facts"]]
        modules = [name.removeprefix("rows/") for name in tensors if name.startswith("rows/")]
        split = {m: np.split(tensors[f"rows/{m}"], np.cumsum(tensors[f"counts/{m}"])[:-1]) for m in modules}
        conflict = tensors["conflict"]
        if {len(conflict), *map(len, split.values())} != {len(facts)}:
            raise ValueError("one part has keys of more facts than another")
    except (KeyError, ValueError) as error:
        raise StoreDamagedError(f"{what}: the parts do not fit each other ({error})") from error
    return {fact: FactKeys({m: split[m][i] for m in modules}, conflict[i]) for i, fact in enumerate(facts)}


def keys_at(log: EditLog, history: History, step: int) -> dict[str, FactKeys]:
    """The keys of the facts live at the state of a step, as traced last on its line."""
    live = history.fold(step).live
    found: dict[str, FactKeys] = {}
    for record in history.line(step):
        for blob in history.kept(record.key_blobs):
            traced = decode_keys(log.blob(blob), f"keys of step {record.step}")
            found.update({fact: keys for fact, keys in traced.items() if fact in live})
    missing = [fact for fact in live if fact not in found]
    if missing:
        raise StoreDamagedError(f"the store has no keys of the live fact {missing[0]}; restore it from a backup")
    return {fact: found[fact] for fact in live}


def key_ages_at(log: EditLog, history: History, step: int) -> dict[str, int]:
    """How many edit steps of the line the keys of each fact live at the state of a step have stood since their trace.

    0: traced by the last edit, or by a reconsolidation that no edit followed.
    """
    edits, traced = 0, dict[str, int]()
    for record in history.line(step):
        edits += record.kind == "edit"
        for blob in history.kept(record.key_blobs):
            tensors = decode_tensors(log.blob(blob), f"keys of step {record.step}")
            traced.update((row.tobytes().hex(), edits) for row in tensors["facts"])
    return {fact: edits - traced[fact] for fact in history.fold(step).live}


def editor_state_at(log: EditLog, history: History, step: int) -> dict[str, npt.NDArray[Any]]:
    """The editor's own state at the state of a step, empty where it has none."""
    for record in reversed(history.line(step)):
        if record.editor_state is not None:
            tensors = decode_tensors(log.blob(record.editor_state), f"editor state of step {record.step}")
            return {name: array.copy() for name, array in tensors.items()}
    return {}
