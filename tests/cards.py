"""Cards for a machine that has none: tensors with real numbers, each of which says where it is.

Within `Cards` every call of torch looks where its tensors are. Over two devices it fails as it would on cards, with the
exceptions that torch makes: a number by itself may come from the CPU, and so may the indices of an access. All numbers
are the CPU's, so that what comes out can be held against what the CPU finds, to the bit. What torch does inside of one
call is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
_AT = "_card"
_MOVES = {Tensor.to, Tensor.type_as}
_TO_CPU = {Tensor.cpu}
_LEAVE = {Tensor.numpy, Tensor.__array__}
_INDEXED = {Tensor.__getitem__, Tensor.__setitem__, Tensor.index_put, Tensor.index_put_}
_ACROSS = {Tensor.copy_, torch._has_compatible_shallow_copy_type}
_ACROSS |= {torch.autograd.grad, torch.autograd.backward, Tensor.backward}


def at(tensor: Tensor) -> torch.device:
    """Where a tensor says it is."""
    return getattr(tensor, _AT, CPU)


def put(tensor: Tensor, device: torch.device) -> Tensor:
    """The same tensor, which says from now on that it is there."""
    setattr(tensor, _AT, device)
    return tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)


class WrongDevice(RuntimeError):
    """What torch says of tensors on two devices."""


class Cards(TorchFunctionMode):
    """Within the context tensors are where they say."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return at(args[0])
        if func == Tensor.grad.__get__:  # type: ignore[attr-defined]
            found = func(*args)
            return None if found is None else put(found, at(args[0]))
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            func(*args)
            put(args[0], at(args[1]))
            return None
        if func in _LEAVE and at(args[0]) != CPU:
            raise TypeError(f"can't convert {at(args[0])} device type tensor to numpy")
        if func in _TO_CPU:
            return self._moved(args[0], CPU, func(*args, **kwargs))
        if func in _MOVES:
            return self._to(func, args, kwargs)
        device = self._named(kwargs)
        if device is not None and device.type == "meta":
            return func(*args, **kwargs)
        if device is not None:
            kwargs["device"] = CPU
        here = self._common(func, args, kwargs)
        found = func(*args, **kwargs)
        if func in (torch.autograd.grad,):
            inputs = list(tensors_in(args[1] if len(args) > 1 else kwargs["inputs"]))
            for one, of in zip(found, inputs, strict=True):
                if one is not None:
                    put(one, at(of))
            return found
        # torch.tensor, as_tensor and from_numpy go to the CPU, whatever they are made of
        where = device if device is not None else here
        if where != CPU:
            for one in tensors_in(found):
                put(one, where)
        return found

    @staticmethod
    def _named(kwargs: dict[str, Any]) -> torch.device | None:
        given = kwargs.get("device")
        return None if given is None else torch.device(given)

    @staticmethod
    def _moved(tensor: Tensor, device: torch.device, made: Tensor) -> Tensor:
        """made: what torch makes of the tensor, which may be the tensor itself."""
        if at(tensor) == device:
            return put(made, device)
        return put(made.clone() if made is tensor else made, device)

    def _to(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        tensor, target, rest = args[0], None, []
        for part in args[1:]:
            if isinstance(part, Tensor):
                target = at(part)
                rest.append(part.dtype)
            elif isinstance(part, torch.device | str):
                target = torch.device(part)
            elif isinstance(part, torch.dtype):
                rest.append(part)
        if "device" in kwargs and (named := kwargs.pop("device")) is not None:
            target = torch.device(named)
        if "other" in kwargs:
            target = at(kwargs["other"])
            rest.append(kwargs.pop("other").dtype)
        kwargs.pop("non_blocking", None)
        made = Tensor.to(tensor, *rest, **kwargs) if rest or kwargs else tensor
        return self._moved(tensor, at(tensor) if target is None else target, made)

    @staticmethod
    def _common(func: Any, args: Any, kwargs: dict[str, Any]) -> torch.device:
        if func in _ACROSS or getattr(func, "__name__", "") == "__set__":
            return at(args[0]) if args and isinstance(args[0], Tensor) else CPU
        own = args[0] if args and isinstance(args[0], Tensor) else None
        given = list(tensors_in((args, kwargs)))
        if func in _INDEXED and own is not None:
            return _indexed(func, own, list(tensors_in(args[1:2])), list(tensors_in(args[2:])))
        # a number by itself comes from the CPU as well
        large = {at(one) for one in given if one.dim() or at(one) != CPU}
        if len(large) > 1:
            shapes = [(tuple(one.shape), str(at(one))) for one in given]
            raise WrongDevice(f"expected all tensors on one device in {getattr(func, '__name__', func)}: {shapes}")
        return large.pop() if large else CPU


def _indexed(func: Any, own: Tensor, indices: list[Tensor], values: list[Tensor]) -> torch.device:
    here = at(own)
    wrong = [one for one in indices if at(one) not in (CPU, here)]
    wrong += [one for one in values if at(one) != here and one.dim() and func != Tensor.__setitem__]
    # an assignment to a slice copies from anywhere, one to what is chosen by a tensor does not
    wrong += [one for one in values if at(one) != here and one.dim() and indices]
    if wrong:
        raise WrongDevice(f"a tensor on {here} is indexed with, or given, one on {at(wrong[0])}")
    return here


class Sending(AlignDevicesHook):
    """accelerate's hook, of a module whose weights say already where they are."""

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Nothing is to be moved."""
        return module


def spread_over(model: Any, place: Callable[[str], torch.device]) -> None:
    """Put the parts of a model on cards by their names, as `accelerate.dispatch_model` does.

    Each part with weights or buffers of its own, and each layer, fetches its inputs; the model gives its outputs where
    its inputs came from.
    """
    classes = set(model._no_split_modules)
    for name, module in model.named_modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        for tensor in own:
            put(tensor, place(name))
        if own or not name or type(module).__name__ in classes:
            hook = Sending(place(name), io_same_device=not name, skip_keys=model._skip_keys_device_placement)
            add_hook_to_module(module, hook)
