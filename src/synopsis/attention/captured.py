"""The tensors that a callable carries with it: what its gradient could flow to."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

_DEPTH = 4  # how far to look into containers and objects


def captured_tensors(function: Callable[..., Any]) -> tuple[Tensor, ...]:
    """Tensors that want a gradient inside a function's closure, globals it names, defaults, or object.

    Looks into closures, ``functools.partial``, methods, callable objects, modules, lists, tuples and dictionaries.

    Args:
        function: anything callable.

    Returns:
        Each tensor once, in the order found.

    Example:
        >>> import torch
        >>> slope = torch.ones(2, requires_grad=True)
        >>> [t.shape for t in captured_tensors(lambda score: score * slope[0])]
        [torch.Size([2])]
    """
    found: dict[int, Tensor] = {}
    for tensor in _tensors(function, _DEPTH):
        if tensor.requires_grad:
            found.setdefault(id(tensor), tensor)
    return tuple(found.values())


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
        yield from value.buffers()
    elif depth:
        for inner in _parts(value):
            yield from _tensors(inner, depth - 1)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    if hasattr(value, "__code__"):
        return _of_function(value)
    if hasattr(value, "__func__"):  # a bound method
        return [value.__self__, value.__func__]
    if callable(value) and not isinstance(value, type):
        return vars(value).values() if hasattr(value, "__dict__") else ()
    return ()


def _of_function(function: Any) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for name in function.__code__.co_names:
        held = function.__globals__.get(name)
        if isinstance(held, (Tensor, nn.Module)):
            yield held
