"""Models from the bundled default, a folder, a GGUF file or a hub id: no pickled weights, no code of others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from lifelong_edit.errors import LifelongEditError, UsageError
from lifelong_edit.models.complete import (
    names_in,
    require_complete,
    require_full_precision,
    require_no_adapter,
    require_rows,
)
from lifelong_edit.models.families import (
    FAMILIES,
    EditableModule,
    Family,
    Home,
    Kind,
    family_of,
    find_modules,
    labels_of,
)
from lifelong_edit.models.forms import PLAIN, Forms, Question
from lifelong_edit.models.gguf import read_header
from lifelong_edit.models.loaded import LoadedModel, context_of
from lifelong_edit.models.placement import (
    CPU,
    DISK,
    Map,
    device_of,
    fetch_inputs,
    keep_with,
    map_for,
    may_be_spread,
    scratch,
    where_tokens_go,
)
from lifelong_edit.models.places import Place, locate
from lifelong_edit.models.quiet import quiet_transformers, without_bars
from lifelong_edit.models.shards import require_shardable, shard
from lifelong_edit.numerics.devices import resolve_dtype, settle
from lifelong_edit.settings import SHARDED
from lifelong_edit.world import ALONE, World

AUTO: dict[Kind, Any] = {
    "causal": AutoModelForCausalLM,
    "classify": AutoModelForSequenceClassification,
    "masked": AutoModelForMaskedLM,
    "seq2seq": AutoModelForSeq2SeqLM,
}
"""What loads the models of a kind."""
Weights = tuple[Any, tuple[str, ...]]
"""A model with its weights, and what of the checkpoint is beside it."""
# Where a kernel for packed weights is at hand, newer releases of transformers would leave them packed.
_UNPACKED = (
    {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
)


def load_model(
    source: str,
    *,
    modules: Sequence[str] | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    trust_remote_code: bool = False,
    places: Home = "answer",
    world: World = ALONE,
) -> LoadedModel:
    """Load a language model to be edited.

    source: "atlas" (bundled), a local folder, a GGUF file, or a hub id. modules: names of weight matrices, layer
    numbers or ranges ("3-5"), with "@subject" behind those to be edited at the tokens of the subject; by default
    the MLP output projections of `default_layers`, or those of `default_entries` at other `places`. device: one device;
    "auto", an accelerator, and if the model is too large for it all else that there is, the disk last; the path of a
    device map, which ends in ".json"; or "sharded", a shard in each process of a world, in one process the CPU. world:
    the processes that load the model together, if it is to be sharded.
    Raises UsageError, UnknownModelError, or LifelongEditError with the reason in one sentence.
    """
    if trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise UsageError(
            "trust_remote_code runs code of others: name the commit that you have read, --revision <40 hex digits>"
        )
    device = CPU if str(device) == SHARDED and world.size == 1 else str(device)
    place = where_tokens_go(device)
    kind = resolve_dtype(dtype, place)
    settle(place)
    home = locate(source, revision)
    options = {"revision": revision, "trust_remote_code": trust_remote_code, **home.options}
    with _one_sentence(source):
        config = config_of(home, options)
        require_full_precision(config, source)
        require_no_adapter(home, source, revision)
        family = family_of(config, modules)
        options["config"] = config
        spread = None
        if may_be_spread(device):
            bare = _bare(family, options)
            spread = map_for(device, bare, find_modules(bare, family, modules, places), kind)
        if home.gguf is not None and DISK in (spread or {}).values():
            raise UsageError(
                f"{source!r} is a GGUF file, which is unpacked in memory: nothing of it can stay on the disk; map all "
                "of it to devices, or save it as safetensors (`lifelong-edit export --format transformers`) and load "
                "that"
            )
        if device == SHARDED:
            require_shardable(family.kind, source)
            model = _bare(family, options)
            edited = find_modules(model, family, modules, places)
            # A GGUF file is unpacked in memory.
            lying: Map | None = {"": DISK} if home.gguf is None and may_be_spread("auto") else None
            read = partial(_weights, family, home, kind, source, options, lying)
            left_out = _take_shards(model, read, edited, world, place)
        else:
            model, left_out = _weights(family, home, kind, source, options, spread)
        tokenizer = _tokenizer(home, source, options)
        require_rows(tokenizer, model.get_input_embeddings().num_embeddings, source)
    if spread is None and device != SHARDED:
        model = model.to(place)
    elif spread is not None:
        place = device_of(model)
    tokenizer.model_max_length = min(tokenizer.model_max_length, context_of(model.config, tokenizer))
    found = find_modules(model, family, modules, places)
    loaded = LoadedModel(model, tokenizer, family, found, source, kind, place, left_out=left_out)
    if device == SHARDED:
        loaded.world = world.in_step()
    return loaded


def _take_shards(
    bare: Any, read: Callable[[], Weights], edited: Sequence[EditableModule], world: World, place: torch.device
) -> tuple[str, ...]:
    """Give a model without weights those that process 0 reads, in shards (`shard`); what was left out."""
    held: list[Any] = []

    def first() -> tuple[tuple[str, ...], Any]:
        model, left_out = read()
        held.append(model)
        return left_out, getattr(model, "generation_config", None)

    left_out, own = world.lead(first)
    if own is not None:
        bare.generation_config = own
    shard(bare, held[0] if held else None, [f"{module.name}.weight" for module in edited], world, place)
    return left_out


def _bare(family: Family, options: Mapping[str, Any]) -> Any:
    """A model without its weights."""
    told = {"trust_remote_code": True} if options["trust_remote_code"] else {}
    with torch.device("meta"):
        return auto_of(family.kind, options["config"]).from_config(options["config"], **told)


def config_of(home: Place, options: Mapping[str, Any]) -> Any:
    """The configuration of a model at its place. options: further ones of `from_pretrained`; raises what that does."""
    config = AutoConfig.from_pretrained(home.path, **{**options, **home.options})
    if home.file is not None and config.model_type == "gpt2":
        # transformers reads them under names that GPT-2 has no use for, and takes 1,024 positions of any file.
        told = read_header(home.file).values
        config.n_positions = int(told["gpt2.context_length"])
        config.n_inner = int(told["gpt2.feed_forward_length"])
    return config


def auto_of(kind: Kind, config: Any) -> Any:
    """What loads a model of a kind and configuration: one that sees as well is loaded with all that it has."""
    sees = kind == "causal" and type(config) in AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if sees else AUTO[kind]


def _weights(
    family: Family, home: Place, dtype: torch.dtype, source: str, options: dict[str, Any], places: Map | None
) -> Weights:
    """The model with its weights. places: its device map, if it has one."""
    folder = None
    if places is not None:
        options = {**options, "device_map": places}
        folder = scratch(options)
    if home.gguf is not None:
        options = {**options, **_UNPACKED}
    with without_bars() if home.gguf is not None else nullcontext():
        model, info = auto_of(family.kind, options["config"]).from_pretrained(
            home.path,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    keep_with(model, folder)
    fetch_inputs(model)
    # transformers fills in what is missing or misshapen at random and only logs it.
    lacking = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
    if lacking:
        raise LifelongEditError(
            f"the weights of {source!r} do not fit its configuration: {len(lacking)} are missing or have another "
            f"shape, first {lacking[0]}"
        )
    if home.file is not None:
        layers = int(model.config.get_text_config().num_hidden_layers)
        read_header(home.file).require_whole(sum(p.numel() for p in model.parameters()), layers)
        _forget_packing(model)
    return model, require_complete(model, info["unexpected_keys"], names_in(home, options["revision"]), source)


def _forget_packing(model: Any) -> None:
    """Take from a model what says that it was packed: it is not any more, and would not be saved otherwise."""
    for thing in (model, model.config):
        for name in ("hf_quantizer", "quantization_method", "quantization_config", "_pre_quantization_dtype"):
            if hasattr(thing, name):
                delattr(thing, name)
        for name in ("is_quantized", "_is_quantized"):
            if hasattr(thing, name):
                setattr(thing, name, False)


def load_config(source: str, revision: str | None = None) -> Any:
    """The configuration of a model alone. Raises UsageError or LifelongEditError as `load_model`."""
    home = locate(source)
    with _one_sentence(source):
        return config_of(home, {"revision": revision})


def load_tokenizer(source: str, revision: str | None = None) -> Any:
    """The tokenizer of a model alone. Raises UsageError or LifelongEditError as `load_model`."""
    home = locate(source, revision)
    with _one_sentence(source):
        return _tokenizer(home, source, {"revision": revision, **home.options})


def _tokenizer(home: Place, source: str, options: dict[str, Any]) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(home.path, **options)
    # Without its files transformers makes one with an empty vocabulary.
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise LifelongEditError(
            f"model {source!r} comes without a tokenizer: expected tokenizer.json beside its weights"
        )
    return tokenizer


# -- what can be told before the weights are read


@dataclass(frozen=True)
class Outline:
    """What is known of a model before its weights are read: its family, the modules to edit, how it takes text."""

    family: Family
    modules: tuple[EditableModule, ...]
    tokenizer: Any
    forms: Forms = PLAIN
    labels: tuple[str, ...] = ()

    def put(self, question: Question) -> Question:
        """The question itself: there is no state yet."""
        return question


def kind_and_width(source: str, revision: str | None = None) -> tuple[Kind | None, int | None]:
    """What a model is and the width of its states, by its configuration alone; None for what that does not say."""
    try:
        home = locate(source, revision)
        with quiet_transformers():
            config = config_of(home, {"revision": revision})
        kind = family_of(config, ()).kind if config.model_type in FAMILIES else "causal"
        return kind, int(config.get_text_config().hidden_size)
    except Exception:  # loading meets it again and puts it into one sentence
        return None, None


def outline_of(home: Place, modules: Sequence[str], revision: str | None, places: Home = "answer") -> Outline | None:
    """The outline of a model at its place; None where loading the model has to say what is wrong with it.

    Raises UnknownModelError for modules that the model does not have.
    """
    try:
        with quiet_transformers():
            options = {"revision": revision, **home.options}
            config = config_of(home, options)
            require_full_precision(config, home.path)
            family = family_of(config, modules)
            with torch.device("meta"):  # shapes without numbers
                bare = auto_of(family.kind, config).from_config(config)
            tokenizer = AutoTokenizer.from_pretrained(home.path, **options)
        tokenizer.model_max_length = min(tokenizer.model_max_length, context_of(config, tokenizer))
        found = find_modules(bare, family, modules, places)
        return Outline(family, found, tokenizer, labels=labels_of(family, config))
    except LifelongEditError:
        raise
    except Exception:  # transformers raises anything; loading meets it again and puts it into one sentence
        return None


@contextmanager
def _one_sentence(source: str) -> Iterator[None]:
    """Turn what transformers raises into one sentence."""
    try:
        with quiet_transformers():
            yield
    except LifelongEditError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise LifelongEditError(f"cannot load model {source!r}: {first[0]}") from error
