"""Models from the bundled default, a local folder or a hub id: safetensors only, no code of others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lifelong_edit.errors import LifelongEditError, UsageError
from lifelong_edit.models.families import EditableModule, Family, Kind, Positions, family_of, find_modules
from lifelong_edit.models.forms import PLAIN, Forms
from lifelong_edit.models.loaded import LoadedModel
from lifelong_edit.models.quiet import quiet_transformers
from lifelong_edit.numerics.devices import resolve_device, resolve_dtype

BUNDLED = "atlas"
AUTO: dict[Kind, Any] = {"causal": AutoModelForCausalLM}
"""What loads the models of a kind."""


def load_model(
    source: str,
    *,
    modules: Sequence[str] | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    trust_remote_code: bool = False,
    places: Positions = "answer",
) -> LoadedModel:
    """Load a language model to be edited.

    source: "atlas" (bundled), a local folder, or a hub id. modules: names of weight matrices, layer
    numbers or ranges ("3-5"), with "@subject" behind those to be edited at the tokens of the subject; by default
    the MLP output projections of `default_layers`, or with `places` "subject" of `subject_layers`.
    Raises UsageError, UnknownModelError, or LifelongEditError with the reason in one sentence.
    """
    if trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise UsageError(
            "trust_remote_code runs code of others: name the commit that you have read, --revision <40 hex digits>"
        )
    place = resolve_device(device)
    kind = resolve_dtype(dtype, place)
    path = locate(source)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    with _one_sentence(source):
        config = AutoConfig.from_pretrained(path, **options)
        family = family_of(config.model_type, modules)
        model = _weights(family, path, kind, source, options).to(place)
        tokenizer = _tokenizer(path, source, options)
    loaded = LoadedModel(model, tokenizer, family, find_modules(model, family, modules, places), source, kind, place)
    tokenizer.model_max_length = min(tokenizer.model_max_length, loaded.context)
    return loaded


def locate(source: str) -> str:
    """The folder or hub id that a source stands for. Raises LifelongEditError for folders that cannot be used."""
    if source == BUNDLED:
        path = Path(str(files("lifelong_edit.atlas"))) / "model"
        if not path.is_dir():
            raise LifelongEditError(f"the bundled model is missing at {path}: install lifelong-edit again")
    else:
        path = Path(source).expanduser()
    if path.is_dir():
        _check_folder(path)
        return str(path)
    if path.exists() or path.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1:
        raise UsageError(f"no model at {source!r}: expected {BUNDLED!r}, a folder with config.json, or a hub id a/b")
    return source


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise UsageError(f"folder {path} holds no model: expected config.json in it")
    if not any(path.glob("*.safetensors")):
        found = ", ".join(sorted(p.name for p in path.glob("*.bin"))) or "no weights"
        raise LifelongEditError(
            f"folder {path} has {found}, but weights are read from *.safetensors only, because other formats can run "
            "code; convert them with save_pretrained(..., safe_serialization=True)"
        )
    index = path / "model.safetensors.index.json"
    if index.is_file():
        _check_index(index)


def _check_index(index: Path) -> None:
    """Refuse an index that names files outside its folder."""
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise LifelongEditError(f"{index} is damaged: expected a JSON object with weight_map") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise LifelongEditError(f"{index} names {name!r}: expected a *.safetensors file beside it")


def _weights(family: Family, path: str, dtype: torch.dtype, source: str, options: dict[str, Any]) -> Any:
    model, info = AUTO[family.kind].from_pretrained(
        path, dtype=dtype, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    # transformers fills in what is missing or misshapen at random and only logs it.
    lacking = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
    if lacking:
        raise LifelongEditError(
            f"the weights of {source!r} do not fit its configuration: {len(lacking)} are missing or have another "
            f"shape, first {lacking[0]}"
        )
    return model


def _tokenizer(path: str, source: str, options: dict[str, Any]) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(path, **options)
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


def outline_of(path: str, modules: Sequence[str], revision: str | None, places: Positions = "answer") -> Outline | None:
    """The outline of a model at a folder or hub id; None where loading the model has to say what is wrong with it.

    Raises UnknownModelError for modules that the model does not have.
    """
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(path, revision=revision)
            family = family_of(config.model_type, modules)
            with torch.device("meta"):  # shapes without numbers
                bare = AUTO[family.kind].from_config(config)
            tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
        context = int(config.get_text_config().max_position_embeddings)
        tokenizer.model_max_length = min(tokenizer.model_max_length, context)
        return Outline(family, find_modules(bare, family, modules, places), tokenizer)
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
