"""Devices without float64: numbers go to the CPU before they become float64.

No mps device was at hand. The tensors here lie on the CPU, say that they lie on mps, and refuse float64 as mps does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lifelong_edit.editors.ridge.gradient import output_metric
from lifelong_edit.editors.ridge.targets import Seen
from lifelong_edit.editors.ultraedit.rule import NormalisedTargets
from lifelong_edit.facts import Fact
from lifelong_edit.models import LoadedModel
from lifelong_edit.numerics.devices import settle, solve_device, to_solve
from lifelong_edit.numerics.grams import grid_scale, to_grid
from lifelong_edit.numerics.solver import factorise, solve, solve_backward
from lifelong_edit.numerics.textgram import gram_sum
from lifelong_edit.tracing.rows import fact_rows
from lifelong_edit.tracing.trace import trace

MPS = torch.device("mps:0")


class OnMps(Tensor):
    """A tensor that says it lies on mps: no float64 until it was moved to the CPU, which makes it a plain one."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:
            return MPS
        if func == Tensor.cpu or (func == Tensor.to and str(args[1]) == "cpu"):
            with torch._C.DisableTorchFunctionSubclass():
                return args[0].as_subclass(Tensor)
        if func == Tensor.double or any(part is torch.float64 for part in (*args, *kwargs.values())):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


def on_mps(seed: int, *shape: int) -> OnMps:
    """Random float32 numbers that say they lie on mps."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).as_subclass(OnMps)


def plain(tensor: Tensor) -> Tensor:
    """The same numbers on the CPU."""
    return tensor.cpu()


def test_only_mps_solves_elsewhere() -> None:
    assert solve_device(MPS) == torch.device("cpu")
    assert solve_device(torch.device("cpu")) == torch.device("cpu")
    assert solve_device(torch.device("cuda:1")) == torch.device("cuda:1")


def test_the_stand_in_refuses_float64_as_mps_does() -> None:
    tensor = on_mps(0, 3)
    assert tensor.device == MPS
    with pytest.raises(TypeError, match="float64"):
        tensor.double()
    with pytest.raises(TypeError, match="float64"):
        tensor.to(torch.float64)
    found = to_solve(tensor)
    assert (type(found), found.dtype, found.device) == (Tensor, torch.float64, torch.device("cpu"))


def test_a_tensor_that_is_where_it_should_be_is_not_copied() -> None:
    tensor = torch.zeros(2, dtype=torch.float64)
    assert to_solve(tensor) is tensor


@pytest.mark.parametrize("form", ["primal", "kept factor", "P = 0"])
def test_a_solve_and_its_gradient(form: str) -> None:
    keys, values, slope, weights = on_mps(1, 5, 12), on_mps(2, 5, 3), on_mps(3, 12, 3), on_mps(4, 5).abs()
    root = on_mps(5, 12, 12)
    preserved = None if form == "P = 0" else root.T @ root
    held = None if preserved is None else plain(preserved)
    kept, same_kept = (
        factorise(part, 1.0) if part is not None and form == "kept factor" else None for part in (preserved, held)
    )
    solution = solve(keys, values, weights, preserved, 1.0, kept)
    same = solve(plain(keys), plain(values), plain(weights), held, 1.0, same_kept)
    assert type(solution.shift) is Tensor
    assert torch.equal(solution.shift, same.shift)
    found, wanted = solve_backward(solution, slope), solve_backward(same, plain(slope))
    assert torch.equal(found[0], wanted[0])
    assert found[1] == wanted[1]


def test_grids_grams_and_metrics() -> None:
    keys, gradients = on_mps(6, 7, 6), on_mps(7, 7, 4)
    scale = grid_scale(keys.abs().amax(0))
    assert scale.device == torch.device("cpu")
    np.testing.assert_array_equal(to_grid(keys, scale), to_grid(plain(keys), scale))
    for rank in (0, 2):
        found, wanted = gram_sum(6, rank, MPS), gram_sum(6, rank, torch.device("cpu"))
        found.add(keys)
        wanted.add(plain(keys))
        for name, array in wanted.arrays("m", 7).items():
            np.testing.assert_array_equal(found.arrays("m", 7)[name], array)
    targets = NormalisedTargets(1.0, centre=True)
    moments = targets.ready(Seen({"m": keys}, {"m": gradients}), {}).moments
    wanted_moments = targets.ready(Seen({"m": plain(keys)}, {"m": plain(gradients)}), {}).moments
    assert moments.keys() == wanted_moments.keys()
    for name, array in wanted_moments.items():
        np.testing.assert_array_equal(moments[name], array)


def test_a_metric_goes_back_to_where_its_gradients_are(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = on_mps(8, 7, 4)
    went: list[object] = []
    real = Tensor.to

    def watched(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        went.extend(args)
        return tensor if MPS in args else real(tensor, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", watched)
    found = output_metric(gradients, 0.5)
    assert went[-1] == MPS
    assert torch.equal(found, output_metric(plain(gradients), 0.5))


@pytest.fixture
def as_before() -> Iterator[None]:
    """PyTorch's switches are put back."""
    deterministic, fast = torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.matmul.allow_tf32
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cuda.matmul.allow_tf32 = fast


def test_an_accelerator_is_asked_for_deterministic_kernels(as_before: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.use_deterministic_algorithms(False)
    settle(torch.device("cpu"))
    assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    torch.backends.cuda.matmul.allow_tf32 = True
    settle(torch.device("cuda:0"))
    assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8" and not torch.backends.cuda.matmul.allow_tf32


class Waits(TorchDispatchMode):
    """How often something is asked for that an accelerator would have to be waited for."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found += str(func) in ("aten.nonzero.default", "aten._local_scalar_dense.default")
        return func(*args, **(kwargs or {}))


def test_tracing_waits_for_each_kind_of_positions_and_not_for_each_matrix(
    loaded: LoadedModel, news: list[Fact]
) -> None:
    """Of four matrices as often as of two, which are edited at the same two kinds of positions."""
    rows, few = fact_rows(loaded, news[:4], 0), loaded.editing(["1@subject", "3"])
    assert {m.positions for m in few.modules} == {m.positions for m in loaded.modules}
    found = []
    for model in (loaded, few):
        with Waits() as waits:
            trace(model, rows, 2)
        found.append(waits.found)
    assert found[0] == found[1] > 0
