"""Where a timeline meets a model: what `init` fixes, and the bench on which batches are edited. Imports torch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from lifelong_edit.editors.malmen.network import NetworkConfig, NetworkSet, read_checkpoint, restore_network
from lifelong_edit.editors.ridge.batch import Bench, Say, prepare, silent
from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.errors import StoreDamagedError
from lifelong_edit.facts import Probe
from lifelong_edit.models import LoadedModel, load_model
from lifelong_edit.policies.scoring import FIXED, Scorer, as_array
from lifelong_edit.stores import WEIGHTS, Init, Part, digest_bytes, encode_tensors, tensors_digest, zeros
from lifelong_edit.tasks.causal.perplexity import perplexity_of
from lifelong_edit.timeline.config import Config, ModelIdentity, now
from lifelong_edit.timeline.history import live_digest
from lifelong_edit.timeline.states import environment, sketch

Arrays = dict[str, npt.NDArray[Any]]
NETWORK, NETWORK_CONFIG = "network/", "network.config"


@dataclass(frozen=True)
class Beginning:
    """All that a new store starts with."""

    record: Init
    blobs: dict[str, bytes]
    weights: str
    loaded: LoadedModel


def begin(
    model: str,
    settings: Settings,
    *,
    hypernetwork: Path | None,
    scorer: Scorer,
    preserve: Sequence[Probe],
    text: Sequence[str],
    revision: str | None,
    trust_remote_code: bool,
    say: Say | None = None,
) -> Beginning:
    """Load a model, prepare what `init` fixes, and make the record of step 0. Raises what loading raises.

    say: told in a few words what begins, wherever that takes long.
    """
    started, say = time.perf_counter(), say or silent
    say(f"loading {model}")
    loaded = load_model(
        model,
        modules=settings.modules or None,
        revision=revision,
        device=settings.device,
        dtype=settings.dtype,
        trust_remote_code=trust_remote_code,
    )
    networks = None if hypernetwork is None else read_checkpoint(hypernetwork)
    if networks is not None:
        networks.check(loaded.modules)
    preserve = list(dict.fromkeys(preserve))  # one that is given twice would weigh twice
    arrays = prepare(loaded, settings, text=text, preserve=preserve, say=say)
    sample = torch.from_numpy(arrays["guard/windows"].astype(np.int64)).to(loaded.device)
    arrays[FIXED] = as_array(scorer)
    packed = _pack(networks)
    fixed = encode_tensors({**arrays, **packed})
    identity = ModelIdentity(
        source=_absolute(model),
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=settings.dtype,
        fingerprint=loaded.fingerprint,
        modules={m.name: (m.d_in, m.d_out) for m in loaded.modules},
        subject_modules=tuple(m.name for m in loaded.modules if m.positions == "subject"),
    )
    network = digest_bytes(encode_tensors(packed)) if packed else None
    config = Config(model=identity, settings=settings, hypernetwork=network)
    weights = zeros(identity.modules)
    stored = encode_tensors(weights)
    digest = tensors_digest(weights)
    record = Init(
        step=0,
        parent=-1,
        previous="",
        time=now(),
        fixed=digest_bytes(fixed),
        parts={WEIGHTS: Part(fold="sum", digest=digest)},
        weights_digest=digest,
        live_digest=live_digest(()),
        provenance={
            **config.provenance(),
            "config": msgspec.to_builtins(config),
            "environment": environment(settings.device),
            "sketch": sketch(weights),
            "preserved": len(preserve),
            "perplexity": perplexity_of(loaded, sample),
            "seconds": time.perf_counter() - started,
        },
    )
    blobs = {digest_bytes(data): data for data in (fixed, stored)}
    return Beginning(record, blobs, digest_bytes(stored), loaded)


def _absolute(model: str) -> str:
    """A local folder by its whole path, so that the store can be opened from anywhere; other sources as they are."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.is_dir() else model


def _pack(networks: NetworkSet | None) -> Arrays:
    """A hypernetwork as arrays, so that the store holds all it needs."""
    if networks is None:
        return {}
    config = np.frombuffer(msgspec.json.encode(networks.config), np.uint8)
    return {NETWORK_CONFIG: config, **{NETWORK + name: array for name, array in networks.tensors().items()}}


def _unpack(fixed: Mapping[str, npt.NDArray[Any]]) -> NetworkSet | None:
    if NETWORK_CONFIG not in fixed:
        return None
    try:
        config = msgspec.json.decode(fixed[NETWORK_CONFIG].tobytes(), type=NetworkConfig)
    except msgspec.MsgspecError as error:
        raise StoreDamagedError(f"the store's hypernetwork has no readable config ({error})") from error
    tensors = {n.removeprefix(NETWORK): array for n, array in fixed.items() if n.startswith(NETWORK)}
    return restore_network(config, tensors)


def make_bench(
    config: Config, fixed: Mapping[str, npt.NDArray[Any]], device: str | None, source: str | None, loaded: Any
) -> Bench:
    """The store's model on its bench. Raises ModelMismatchError, stating both fingerprints, for another model.

    source: where to load the model from instead of where `init` did. loaded: the LoadedModel at hand, if any.
    """
    model = config.model
    if loaded is None:
        loaded = load_model(
            model.source if source is None else source,
            modules=model.entries,
            revision=model.revision if source is None else None,
            device=device or config.settings.device,
            dtype=model.dtype,
            trust_remote_code=model.trust_remote_code and source is None,
        )
    loaded.require_fingerprint(model.fingerprint)
    # torch wants arrays that it may write to, and those from the store are views of its bytes
    own = {name: np.array(array) for name, array in fixed.items()}
    return Bench(loaded, config.settings, own, _unpack(own))


def as_tensors(weights: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, torch.Tensor]:
    """ΔW as torch tensors of their own."""
    return {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
