"""The format `gguf`: one file for llama.cpp and what is built on it, with weights, tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from lifelong_edit.errors import LifelongEditError
from lifelong_edit.export.asking import differing
from lifelong_edit.export.gguf_header import FILE, architecture_of, finish, require_config, require_tokens, write_header
from lifelong_edit.export.placing import weights_meant
from lifelong_edit.models import LoadedModel, Question, load_model
from lifelong_edit.models.placement import names_of, whole

EIGHT = "q8_0"
"""Blocks of 32 numbers, with eight bits for each and a scale."""
_TYPES = {torch.float32: Type.F32, torch.float16: Type.F16, torch.bfloat16: Type.BF16}
_FILE_TYPES = {
    Type.F32: gguf.LlamaFileType.ALL_F32,
    Type.F16: gguf.LlamaFileType.MOSTLY_F16,
    Type.BF16: gguf.LlamaFileType.MOSTLY_BF16,
    Type.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
}
# Of a norm that is written as 1 + w, in float32.
_ROUNDED = 2.0**-23


def write_gguf(
    loaded: LoadedModel,
    shifts: Mapping[str, Tensor],
    folder: Path,
    dtype: torch.dtype | None = None,
    packed: str | None = None,
    questions: Sequence[Question] = (),
) -> dict[str, Any]:
    """Write the model with weights W₀ + ΔW as a GGUF file, and read it back.

    shifts: module name → ΔW (d_in, d_out) float32. dtype: of the matrices, by default that of the base; what is no
    matrix is float32, as llama.cpp wants it. packed: "q8_0" packs matrices into blocks of eight bits. questions: asked
    of the state and of what was read back, to tell which answers differ. Unless packed, what is read back is what was
    meant, number by number. Raises UsageError for a model that the format cannot say (`require_sayable`),
    LifelongEditError where it reads back as another one or where numbers are too large for `dtype`, or OSError.
    """
    config, path = loaded.model.config, folder / FILE
    meant = weights_meant(loaded, shifts, dtype)
    kind = Type.Q8_0 if packed == EIGHT else _TYPES[dtype or loaded.dtype]
    writer = gguf.GGUFWriter(path, architecture_of(config).name)
    write_header(writer, config, loaded.tokenizer, _name(loaded), _ends(loaded))
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, tensor in _stored(loaded, meant):
        array, raw = _as(kind, name, tensor)
        writer.add_tensor(name, array, raw_dtype=raw)
    finish(writer)
    read = load_model(str(path), modules=[m.name for m in loaded.modules], dtype="float32")
    require_config(config, read.model.config)
    require_tokens(loaded.tokenizer, read.tokenizer)
    error = _furthest(loaded, meant, read, exact=packed is None)
    told = {"type": kind.name, "architecture": architecture_of(config).name, "error": error}
    beside = differing(loaded, shifts, replace(read, forms=loaded.forms), {}, questions, "gguf")
    return {"gguf": {**told, **beside}}


def _name(loaded: LoadedModel) -> str:
    return f"{loaded.source.rstrip('/').rpartition('/')[2].removesuffix('.gguf')}, edited"


def _ends(loaded: LoadedModel) -> list[int]:
    """The tokens by which the model's own generation settings end a text."""
    said = getattr(loaded.model.generation_config, "eos_token_id", None)
    return [number for number in (said if isinstance(said, list) else [said]) if number is not None]


def _stored(loaded: LoadedModel, meant: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every parameter, each tied one once, by its name in the file and as the file has it."""
    config = loaded.model.config
    form = architecture_of(config)
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == form.name)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for own in names_of(loaded.model):
        name = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise LifelongEditError(
                f"the parameter {own} has no name in a GGUF file of architecture {form.name}; take --format "
                "transformers"
            )
        yield name, form.stored(name, meant[own] if own in meant else whole(loaded.model, own), config)


def _as(kind: Type, name: str, tensor: Tensor) -> tuple[npt.NDArray[Any], Type]:
    """A parameter in a type. Matrices alone are in another than float32, and packed where their rows can be cut."""
    array = tensor.detach().cpu().float().contiguous().numpy()
    if array.ndim < 2 or name.startswith("position_embd"):
        kind = Type.F32
    elif kind == Type.Q8_0 and array.shape[-1] % gguf.GGML_QUANT_SIZES[Type.Q8_0][0]:
        kind = Type.F16
    return gguf.quants.quantize(array, kind), kind


def _furthest(loaded: LoadedModel, meant: Mapping[str, Tensor], read: LoadedModel, *, exact: bool) -> float:
    """The largest share of a parameter, by Frobenius norm, by which it is read back differently.

    Raises LifelongEditError where a parameter is not there, and, if it is to be exact, where a number is another.
    """
    found = dict(read.model.named_parameters())
    furthest = 0.0
    for name in names_of(loaded.model):
        wanted = (meant[name] if name in meant else whole(loaded.model, name)).cpu().float()
        if name not in found or found[name].shape != wanted.shape:
            raise LifelongEditError(f"{name} is not read back from what was exported; nothing of it was kept")
        off = (found[name].float() - wanted).abs()
        if exact and float(off.max()) > (_ROUNDED if name.endswith("norm.weight") else 0.0):
            raise LifelongEditError(f"{name} is read back as other numbers than were exported; nothing of it was kept")
        norm = float(np.linalg.norm(wanted))
        furthest = max(furthest, float(np.linalg.norm(off)) / norm if norm else 0.0)
    return furthest
