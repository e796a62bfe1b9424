"""The one way in which a model changes: overlays replace each other, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lifelong_edit.errors import ModelMismatchError, UnknownModelError
from lifelong_edit.models import BASE, LoadedModel, Shifts, compose, fingerprint_of, load_model


class Louder:
    """An overlay that multiplies what a module gives by a factor, with a hook; it may shift weights as well."""

    def __init__(self, module: str, factor: float, shifts: Mapping[str, Tensor] | None = None) -> None:
        self.module, self.factor, self.shifts = module, factor, dict(shifts or {})
        self.entered = self.left = 0

    @contextmanager
    def attach(self, model: Any) -> Iterator[None]:
        """The hook, for as long as the context lasts."""
        handle = model.get_submodule(self.module).register_forward_hook(self._louder)
        self.entered += 1
        try:
            yield
        finally:
            handle.remove()
            self.left += 1

    def _louder(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * self.factor


class Broken(Louder):
    """An overlay whose hooks cannot be attached."""

    @contextmanager
    def attach(self, model: Any) -> Iterator[None]:
        """Fails at once."""
        raise RuntimeError("no place to attach to")
        yield


@pytest.fixture(scope="module")
def loaded(tiny_gpt2: Path) -> LoadedModel:
    return load_model(str(tiny_gpt2))


def shift(loaded: LoadedModel, seed: int, *numbers: int) -> dict[str, Tensor]:
    """A random ΔW of some of the modules."""
    g = torch.Generator().manual_seed(seed)
    modules = [loaded.modules[n] for n in numbers]
    return {m.name: torch.randn(m.d_in, m.d_out, generator=g) * 0.1 for m in modules}


def hooks(loaded: LoadedModel) -> int:
    """How many forward hooks the model has."""
    return sum(len(module._forward_hooks) for module in loaded.model.modules())


def logits(loaded: LoadedModel) -> Tensor:
    """What the model says to a few tokens, as it stands."""
    with torch.no_grad():
        found: Tensor = loaded.model(input_ids=torch.arange(5, 17)[None]).logits
    return found


def stands_at(loaded: LoadedModel, shifts: Mapping[str, Tensor]) -> bool:
    """Whether the weights are W₀ + ΔW, added once, and those of all other modules W₀."""
    return all(
        torch.equal(loaded.weight(m.name), compose(loaded.base_weight(m.name), shifts.get(m.name)))
        for m in loaded.modules
    )


@pytest.fixture(autouse=True)
def at_the_base(loaded: LoadedModel) -> Iterator[None]:
    """Before a test and after it."""
    yield
    assert fingerprint_of(loaded.model) == loaded.fingerprint
    assert hooks(loaded) == 0


def test_overlays_replace_each_other_and_come_back_bit_for_bit(loaded: LoadedModel) -> None:
    """An inner one is not added to the outer one, also where they shift different modules."""
    assert len(loaded.modules) > 1
    outer, inner = shift(loaded, 1, 0), shift(loaded, 2, 0, 1)
    other = shift(loaded, 3, 1)
    start = logits(loaded)
    with loaded.at(outer) as model:
        assert model is loaded
        first = logits(loaded)
        with loaded.at(inner):
            assert stands_at(loaded, inner)
            with loaded.at(other):
                assert stands_at(loaded, other)
            assert stands_at(loaded, inner)
        assert stands_at(loaded, outer)
        assert torch.equal(logits(loaded), first)
        with loaded.at(BASE):
            assert fingerprint_of(loaded.model) == loaded.fingerprint
            assert torch.equal(logits(loaded), start)
        with loaded.at(Shifts(outer)):
            assert torch.equal(logits(loaded), first)
    assert not torch.equal(first, start)
    assert torch.equal(logits(loaded), start)
    # Added up they would stand elsewhere: the check can fail.
    assert not torch.equal(outer[loaded.modules[0].name] + inner[loaded.modules[0].name], inner[loaded.modules[0].name])


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_an_exception_at_any_depth_takes_the_model_back_as_far_as_it_gets(loaded: LoadedModel, depth: int) -> None:
    shifts = [shift(loaded, seed, seed % len(loaded.modules)) for seed in range(3)]

    def deeper(level: int) -> None:
        with loaded.at(shifts[level]):
            if level + 1 == depth:
                raise KeyboardInterrupt
            try:
                deeper(level + 1)
            finally:
                assert stands_at(loaded, shifts[level])

    with pytest.raises(KeyboardInterrupt):
        deeper(0)
    assert stands_at(loaded, {})


def test_a_weight_that_is_no_number_leaves_none_behind(loaded: LoadedModel) -> None:
    """Undone by subtraction it would."""
    module = loaded.modules[0]
    with loaded.at({module.name: torch.full((module.d_in, module.d_out), float("nan"))}):
        assert not bool(torch.isfinite(logits(loaded)).any())
    assert bool(torch.isfinite(logits(loaded)).all())


def test_hooks_are_taken_off_within_the_base_and_put_on_again_after_it(loaded: LoadedModel) -> None:
    overlay, start = Louder(loaded.modules[0].name, 3.0), logits(loaded)
    with loaded.at(overlay):
        loud = logits(loaded)
        assert not torch.equal(loud, start)
        assert (hooks(loaded), overlay.entered, overlay.left) == (1, 1, 0)
        with loaded.at(BASE):
            assert (hooks(loaded), overlay.entered, overlay.left) == (0, 1, 1)
            assert torch.equal(logits(loaded), start)
        assert (hooks(loaded), overlay.entered, overlay.left) == (1, 2, 1)
        assert torch.equal(logits(loaded), loud)
        with pytest.raises(RuntimeError, match="on the way"), loaded.at(shift(loaded, 1, 0)):
            assert hooks(loaded) == 0
            raise RuntimeError("on the way")
        assert torch.equal(logits(loaded), loud)
    assert (overlay.entered, overlay.left) == (3, 3)
    assert torch.equal(logits(loaded), start)


def test_an_overlay_may_shift_and_hook_at_once_and_replaces_hooks_by_hooks(loaded: LoadedModel) -> None:
    name = loaded.modules[0].name
    outer, inner = Louder(name, 3.0, shift(loaded, 1, 0)), Louder(name, 0.5, shift(loaded, 2, 1))
    with loaded.at(outer.shifts):
        plain = logits(loaded)
    with loaded.at(outer):
        assert stands_at(loaded, outer.shifts)
        first = logits(loaded)
        assert not torch.equal(first, plain)
        with loaded.at(inner):
            assert stands_at(loaded, inner.shifts)
            assert hooks(loaded) == 1  # and not both of them
            second = logits(loaded)
        assert torch.equal(logits(loaded), first)
    with loaded.at(inner):
        assert torch.equal(logits(loaded), second)


@pytest.mark.parametrize("within", ["the base", "a shift", "hooks"])
@pytest.mark.parametrize("wrong", ["an unknown module", "another shape", "transposed", "hooks that fail"])
def test_what_cannot_be_stood_at_leaves_the_model_as_it_was(loaded: LoadedModel, within: str, wrong: str) -> None:
    first = loaded.modules[0]
    good = shift(loaded, 5, 1)
    overlays: dict[str, Any] = {
        "an unknown module": {**good, "transformer.h.0.mlp.c_fc": torch.ones(32, 128)},
        "another shape": {**good, first.name: torch.ones(first.d_in, first.d_out + 1)},
        "transposed": {**good, first.name: torch.ones(first.d_out, first.d_in)},
        "hooks that fail": Broken(first.name, 2.0, good),
    }
    errors = {"an unknown module": UnknownModelError, "hooks that fail": RuntimeError}
    around: dict[str, Any] = {"the base": BASE, "a shift": shift(loaded, 1, 0), "hooks": Louder(first.name, 3.0)}
    with loaded.at(around[within]):
        before, weights = logits(loaded), [loaded.weight(m.name).clone() for m in loaded.modules]
        with pytest.raises(errors.get(wrong, ModelMismatchError)), loaded.at(overlays[wrong]):
            pytest.fail("the model stood there")
        assert all(torch.equal(loaded.weight(m.name), w) for m, w in zip(loaded.modules, weights, strict=True))
        assert torch.equal(logits(loaded), before)
        assert hooks(loaded) == (within == "hooks")


PATHS = st.recursive(st.just(()), lambda below: st.lists(st.tuples(st.integers(0, 4), below), max_size=3), max_leaves=8)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=PATHS)
def test_any_tree_of_overlays_is_walked_without_a_trace(loaded: LoadedModel, path: Any) -> None:
    """Wherever the walk stands, the model is what the innermost overlay alone makes of the base."""
    name = loaded.modules[1].name
    overlays: list[Any] = [BASE, *(Shifts(shift(loaded, seed, seed % 2)) for seed in (1, 2)), Louder(name, 2.0)]
    overlays.append(Louder(name, 0.5, shift(loaded, 3, 0)))

    def walk(branches: Any, at: Any) -> None:
        for number, below in branches:
            with loaded.at(overlays[number]):
                assert stands_at(loaded, overlays[number].shifts)
                assert hooks(loaded) == (number >= 3)
                walk(below, overlays[number])
            assert stands_at(loaded, at.shifts)
            assert hooks(loaded) == isinstance(at, Louder)

    walk(path, BASE)
