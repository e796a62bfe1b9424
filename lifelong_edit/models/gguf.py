"""Models as llama.cpp keeps them: one file with configuration, tokenizer and weights. Needs no torch.

The header is read here, a few kilobytes of numbers and names, so that what transformers would leave out is known
before its minutes of work. Layout: the GGUF specification, versions 2 and 3.
"""

from __future__ import annotations

import importlib.util
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from lifelong_edit.errors import LifelongEditError

NEEDED = ("gguf", "accelerate")
"""Packages by which transformers reads such files."""
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_LONGEST = 1 << 24  # of a name or a text in bytes; what is longer is damage


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself. values: numbers and texts by name, arrays left out. tensors: shapes by name."""

    path: Path
    values: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]

    @property
    def architecture(self) -> str:
        """What kind of model it is, in llama.cpp's words."""
        return str(self.values.get("general.architecture", "nothing"))

    def require_readable(self) -> None:
        """Raise LifelongEditError for what transformers cannot read, or would read as another model."""
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise LifelongEditError(
                f"{self.path} is a GGUF file, which cannot be read without the package {missing[0]}; install it with "
                "`pip install 'lifelong-edit[gguf]'`"
            )
        if int(self.values.get("split.count", 1)) > 1:
            raise LifelongEditError(
                f"{self.path} is one of {self.values['split.count']} parts of a GGUF file; join them into one with "
                "llama.cpp's `llama-gguf-split --merge`"
            )
        if self.architecture not in architectures():
            raise LifelongEditError(
                f"{self.path} is a GGUF file of architecture {self.architecture!r}, but transformers reads "
                f"{', '.join(architectures())}; load the model's safetensors instead"
            )
        self._require_plain_positions()

    def _require_plain_positions(self) -> None:
        """Refuse stretched positions: transformers takes the base frequency from these files and nothing else."""
        scaling = {key: value for key, value in self.values.items() if ".rope.scaling." in key}
        stretched = [
            key
            for key, value in scaling.items()
            if (key.endswith(".type") and value != "none") or (key.endswith("factor") and value != 1)
        ]
        stretched += [name for name in self.tensors if name.startswith(("rope_freqs.", "rope_factors"))]
        if stretched and self.architecture != "gpt-oss":
            raise LifelongEditError(
                f"{self.path} has {stretched[0]}, which transformers leaves out of a GGUF file, though it says what "
                "positions mean; load the model's safetensors instead"
            )

    def require_whole(self, numbers: int, layers: int) -> None:
        """Raise LifelongEditError unless all that the file holds is in the model.

        numbers: how many the model's own parameters are, each tied one counted once. layers: how many it has.
        """
        for name in self.tensors:
            block = re.match(r"blk\.(\d+)\.", name)
            if block and int(block[1]) >= layers:
                raise LifelongEditError(
                    f"{self.path} has {name}, but the model that it describes has layers 0 to {layers - 1}; load the "
                    "model's safetensors instead"
                )
        held = sum(math.prod(shape) for shape in self.tensors.values())
        if held != numbers:
            raise LifelongEditError(
                f"{self.path} holds {held:,} weights, of which transformers makes a model of {numbers:,}; load the "
                "model's safetensors instead"
            )


def architectures() -> tuple[str, ...]:
    """The architectures of language models that the installed transformers reads from GGUF files, sorted."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    # Its table has other tables' names among its own, and other names than the files for some.
    known = {name for name in GGUF_SUPPORTED_ARCHITECTURES if name not in ("general", "tokenizer")}
    try:
        from transformers.integrations.gguf.utils import GGUF_ARCHS
    except ImportError:  # before transformers 5
        pass
    else:
        known |= set(GGUF_ARCHS)
    return tuple(sorted({_IN_FILES.get(name, name) for name in known} - {"t5", "umt5"}))


_IN_FILES = {
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gpt_oss": "gpt-oss",
    "minimax_m2": "minimax-m2",
    "mistral": "llama",
}


def read_header(path: Path) -> Header:
    """The header of a GGUF file. Raises LifelongEditError where the file is none, is damaged, or cannot be read."""
    try:
        with path.open("rb") as file:
            magic, version, tensors, values = _numbers(file, "4sIQQ")
            if magic != b"GGUF" or version not in (2, 3):
                raise LifelongEditError(f"{path} is no GGUF file of version 2 or 3; download or convert it again")
            found = {_text(file): _value(file, *_numbers(file, "I")) for _ in range(values)}
            shapes = dict(_tensor(file) for _ in range(tensors))
    except (ValueError, struct.error, OverflowError, MemoryError):
        raise LifelongEditError(f"the GGUF file {path} is damaged; download or convert it again") from None
    except OSError as error:
        raise LifelongEditError(f"cannot read {path}: {error.strerror or error}") from error
    return Header(path, {key: value for key, value in found.items() if value is not None}, shapes)


def _numbers(file: BufferedReader, form: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))


def _text(file: BufferedReader) -> str:
    (length,) = _numbers(file, "Q")
    if length > _LONGEST:
        raise ValueError
    (raw,) = _numbers(file, f"{length}s")
    return str(raw, "utf-8")


def _value(file: BufferedReader, kind: int) -> Any:
    """A number or a text; None for an array, whose end is found."""
    if kind in _NUMBERS:
        return _numbers(file, _NUMBERS[kind])[0]
    if kind == _TEXT:
        return _text(file)
    if kind != _ARRAY:
        raise ValueError
    inner, count = _numbers(file, "IQ")
    if inner in _NUMBERS:
        file.seek(count * struct.calcsize(f"<{_NUMBERS[inner]}"), 1)
        return None
    if inner != _TEXT:
        raise ValueError
    for _ in range(count):
        file.seek(_numbers(file, "Q")[0], 1)
    return None


def _tensor(file: BufferedReader) -> tuple[str, tuple[int, ...]]:
    name = _text(file)
    (dimensions,) = _numbers(file, "I")
    if dimensions > 8:
        raise ValueError
    shape = _numbers(file, f"{dimensions}Q")
    _numbers(file, "IQ")
    return name, shape
