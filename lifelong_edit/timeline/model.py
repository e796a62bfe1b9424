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

from lifelong_edit.bench import Bench, Fixed, Say, prepare, silent
from lifelong_edit.editors.contract import Editor, Given
from lifelong_edit.editors.malmen.network import read_checkpoint
from lifelong_edit.editors.malmen.rule import pack, unpack
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.errors import ModelMismatchError, UnknownModelError, UsageError
from lifelong_edit.facts import Probe
from lifelong_edit.models import EditableModule, LoadedModel, load_model, tokenizer_fingerprint
from lifelong_edit.models.placement import spread
from lifelong_edit.policies.scoring import Scorer
from lifelong_edit.settings import StoreSettings, is_map
from lifelong_edit.stores import WEIGHTS, Init, Part, digest_bytes, encode_tensors, tensors_digest, zeros
from lifelong_edit.tasks import forms_of, ready, task_of
from lifelong_edit.timeline.config import Config, ModelIdentity, absolute, now
from lifelong_edit.timeline.defaults import are_bundled, is_large
from lifelong_edit.timeline.history import live_digest
from lifelong_edit.timeline.states import environment, sketch
from lifelong_edit.world import ALONE, World

NOISE = 3.0
"""Standard errors by which perplexity may rise in the store of a large model."""


@dataclass(frozen=True)
class Beginning:
    """All that a new store starts with."""

    record: Init
    blobs: dict[str, bytes]
    weights: str
    loaded: LoadedModel


def begin(
    model: str,
    settings: StoreSettings,
    *,
    hypernetwork: Path | None,
    scorer: Scorer,
    preserve: Sequence[Probe],
    text: Sequence[str],
    revision: str | None,
    trust_remote_code: bool,
    say: Say | None = None,
    world: World = ALONE,
) -> Beginning:
    """Load a model, prepare what `init` fixes, and make the record of step 0. Raises what loading raises.

    say: told in a few words what begins, wherever that takes long. world: the processes that do it together.
    """
    started, say, rule = time.perf_counter(), say or silent, rule_of(settings.editor)
    say(f"loading {model}")
    loaded = load_model(
        model,
        modules=settings.modules or None,
        revision=revision,
        device=settings.device,
        dtype=settings.dtype,
        trust_remote_code=trust_remote_code,
        places=rule.places,
        world=world,
    )
    share(loaded, settings, world)
    if loaded.left_out:
        say(f"left out, since only the language model is edited: {', '.join(loaded.left_out)}")
    settings = _from_anywhere(noise_settled(ready(settings, loaded), loaded))
    preserve = list(dict.fromkeys(preserve))  # one that is given twice would weigh twice
    given = given_to(hypernetwork, text, preserve)
    rule.require_kind(loaded.family.kind, loaded.modules)
    require_given(settings, given, loaded.modules)
    kept = {**given.network, **rule.fix(loaded, settings, given)}  # a network whatever the rule is
    measured = prepare(
        loaded, settings, text=text, preserve=preserve, scorer=scorer, rule=kept, say=say, statistics=rule.statistics,
        public=are_bundled(preserve),
    )  # fmt: skip
    fixed = encode_tensors(measured.arrays())
    windows = torch.from_numpy(measured.text.guard.astype(np.int64))
    identity = _identity(loaded, revision, trust_remote_code, settings.dtype)
    network = digest_bytes(encode_tensors(given.network)) if given.network else None
    config = Config.made(identity, settings, network)
    weights = zeros(identity.modules)
    stored, digest = encode_tensors(weights), tensors_digest(weights)
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
            "perplexity": task_of(loaded).health(loaded, windows),
            "seconds": time.perf_counter() - started,
        },
    )
    blobs = {digest_bytes(data): data for data in (fixed, stored)}
    return Beginning(record, blobs, digest_bytes(stored), loaded)


def noise_settled(settings: StoreSettings, loaded: LoadedModel) -> StoreSettings:
    """Settings with the gate's bound by noise, where they leave it open; see `StoreSettings.gate_noise`."""
    width = getattr(loaded.model.config.get_text_config(), "hidden_size", None)
    return settings.replace(gate_noise=NOISE) if settings.gate_noise is None and is_large(width) else settings


def _from_anywhere(settings: StoreSettings) -> StoreSettings:
    """Settings that name a device map by its whole path."""
    return settings.replace(device=absolute(settings.device)) if is_map(settings.device) else settings


def _identity(loaded: LoadedModel, revision: str | None, trust_remote_code: bool, dtype: str) -> ModelIdentity:
    """Which model a new store belongs to."""
    return ModelIdentity(
        source=absolute(loaded.source),
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        fingerprint=loaded.fingerprint,
        modules={m.name: (m.d_in, m.d_out) for m in loaded.modules},
        subject_modules=tuple(m.name for m in loaded.modules if m.positions == "subject"),
        tokenizer=tokenizer_fingerprint(loaded.tokenizer),
    )


def given_to(hypernetwork: Path | None, text: Sequence[str], preserve: Sequence[Probe] = ()) -> Given:
    """What a rule is given at `init`: the arrays of a trained network, where there is one, the text, the prompts."""
    return Given(pack(None if hypernetwork is None else read_checkpoint(hypernetwork)), text, preserve)


def require_given(settings: StoreSettings, given: Given, modules: Sequence[EditableModule] = ()) -> None:
    """Refuse what the rule cannot do without, and a network that is for other modules, whatever the rule is."""
    rule_of(settings.editor).require(settings, given, modules)
    if given.network and modules:
        unpack(given.network).check(modules)


def make_bench(
    config: Config,
    fixed: Mapping[str, npt.NDArray[Any]],
    device: str | None,
    source: str | None,
    loaded: Any,
    world: World = ALONE,
) -> Bench:
    """The store's model on its bench. Raises ModelMismatchError, stating both fingerprints, where it is another.

    source: where to load the model from instead of where `init` did. loaded: the LoadedModel at hand, if any. world:
    the processes of which each has such a model, and which share its work.
    """
    model = config.model
    if loaded is None:
        place = model.source if source is None else source
        _require_there(place)
        try:
            loaded = load_model(
                place,
                modules=model.entries,
                revision=model.revision if source is None else None,
                device=device or config.settings.device,
                dtype=model.dtype,
                trust_remote_code=model.trust_remote_code and source is None,
                world=world,
            )
        except UnknownModelError as error:  # the store's own model has the modules that it edits
            raise ModelMismatchError(f"{place!r} is another model than the store's: {error}") from error
    loaded.require_fingerprint(model.fingerprint)
    loaded.require_tokenizer(model.tokenizer)
    loaded.forms = forms_of(config.settings)
    share(loaded, config.settings, world)
    return Bench(loaded, config.settings, Fixed.of(fixed))


def share(loaded: LoadedModel, settings: StoreSettings, world: World) -> None:
    """Say who works with a model, and where: processes that each have it share its work.

    Those of which each holds a shard of it do already.
    Raises UsageError where several processes have a model that is spread over accelerators, which each would fill.
    """
    loaded.solves_on_cpu = settings.solve_device == "cpu"
    if not loaded.world.passes_in_step:
        loaded.world = world
    places = {place for place in spread(loaded.model).values() if place not in ("cpu", "disk")}
    if loaded.world.size > 1 and len(places) > 1:
        raise UsageError(
            f"found {loaded.world.size} processes and a model that is spread over {len(places)} accelerators, expected "
            "one process; start it without --processes, since a device map shares a model out among them already"
        )


def _require_there(source: str) -> None:
    """Raise UsageError, with the way back, where a model was moved away since the store was made."""
    if Path(source).is_absolute() and not Path(source).exists():
        raise UsageError(
            f"the store's model is no more at {source!r}, expected it there; say where it is now, once by --model "
            "PLACE, or for good by `lifelong-edit relocate PLACE`"
        )


def make_editor(bench: Bench) -> Editor:
    """The store's rule at work on its bench."""
    return rule_of(bench.settings.editor).make(bench)


def as_tensors(weights: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, torch.Tensor]:
    """ΔW as torch tensors, which nobody may write to: a state of a large model is in memory once."""
    return {name: torch.from_numpy(array if array.flags.writeable else array.copy()) for name, array in weights.items()}
