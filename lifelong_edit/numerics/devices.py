"""Where models, statistics and solves live, and in which number formats: decided here and nowhere else."""

from __future__ import annotations

import os

import torch

from lifelong_edit.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_EXPECTED = "expected cpu, cuda, cuda:N, mps, auto, sharded or a device map (.json)"


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that a name stands for: "auto", "cpu", "cuda", "cuda:1", "mps".

    "auto" is the first accelerator that PyTorch can use, else the CPU.
    Raises UsageError for a name that PyTorch does not know and for a device that is not there.
    """
    name = str(device)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}: {_EXPECTED}") from None
    if found.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device {name!r} is not supported: {_EXPECTED}")
    if found.type == "cuda":
        _require_cuda(found, name)
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device 'mps' was asked for, but PyTorch finds none here; use --device cpu")
    return found


def _require_cuda(device: torch.device, name: str) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise UsageError(f"device {name!r} was asked for, but PyTorch finds no CUDA device here; use --device cpu")
    if device.index is not None and device.index >= count:
        raise UsageError(f"device {name!r} was asked for, but there are only {count} CUDA devices, from cuda:0")


def settle(device: torch.device) -> None:
    """Let an accelerator give the same numbers for the same work: deterministic kernels, float32 as float32.

    Where PyTorch has no deterministic kernel it says so (a warning), and what it computes may differ in the last bit
    from run to run. The weights of a state do not depend on it: they are what is stored.
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype that a model is loaded in: "float32", "bfloat16" or, on an accelerator, "float16".

    Raises UsageError for others: no integer or eight-bit weights, and no float16 on a CPU, where
    its range overflows in the backward pass and its kernels are slower than float32's.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UsageError(f"unknown dtype {name!r}: expected one of {', '.join(DTYPES)}")
    if name == "float16" and device.type == "cpu":
        raise UsageError("dtype float16 needs an accelerator; on a CPU use float32 or bfloat16")
    return DTYPES[name]


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are quicker there than in float32: where the processor does them itself.

    A CPU without such instructions takes three to four times as long with them.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    has = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return device.type == "cpu" and any(found() for found in has if found is not None)


def solve_device(device: torch.device) -> torch.device:
    """Where float64 work on numbers of this device is done: there, or on the CPU for a device without float64 (mps).

    No mps device was at hand: that mps leads to the CPU, and that solves, grams and metrics take their inputs there
    before they make float64 of them, is tested with tensors that only say they are on mps.
    """
    return torch.device("cpu") if device.type == "mps" else device


def to_solve(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float64 on the device that solves for its own: moved first, for mps could not hold it."""
    return tensor.to(solve_device(tensor.device)).double()
