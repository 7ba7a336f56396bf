"""The tensors that a callable carries with it: what its gradient could flow to."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import Node

Place = tuple[Node, int]
_DEPTH = 4  # steps from a function into what it holds


def captured_tensors(function: Callable[..., Any]) -> tuple[Tensor, ...]:
    """Tensors that want a gradient inside a function's closure, globals it names, defaults, or object.

    Looks into closures, ``functools.partial``, methods, objects, modules, lists, tuples, dictionaries, and functions
    that are called in turn; four steps deep.

    Args:
        function: anything callable.

    Returns:
        Each tensor once, in the order found.

    Raises:
        NotImplementedError: when a derivative would get lost or be counted twice: one tensor was computed from
            another, or is transformed by ``torch.func``, or moves (forward mode) without wanting a gradient.

    Example:
        >>> import torch
        >>> slope = torch.ones(2, requires_grad=True)
        >>> [t.shape for t in captured_tensors(lambda score: score * slope[0])]
        [torch.Size([2])]
    """
    found = _once(function)
    for tensor in found:
        _check_plain(tensor)
    wanting = tuple(tensor for tensor in found if tensor.requires_grad)
    _check_independent(wanting)
    return wanting


def captures_gradients(function: Callable[..., Any]) -> bool:
    """Whether any tensor inside a function wants a gradient."""
    return any(tensor.requires_grad for tensor in _once(function))


def _once(function: Callable[..., Any]) -> list[Tensor]:
    """All tensors inside a function, each once, the nearest first."""
    found: list[Tensor] = []
    seen: dict[int, Any] = {}  # holds what it saw, so that no number is given twice
    near: list[Any] = [function]
    for _ in range(_DEPTH + 1):
        new = {id(value): value for value in near if id(value) not in seen}
        seen |= new
        found += [value for value in new.values() if isinstance(value, Tensor)]
        near = [part for value in new.values() for part in _parts(value)]
    return found


def _check_plain(tensor: Tensor) -> None:
    """Refuse what no engine sees: it is called with plain tensors, and meets captured ones through Python alone."""
    shown = f"score_mod captured a tensor {tuple(tensor.shape)}"
    if _is_transformed(tensor):
        raise NotImplementedError(
            f"{shown} that torch.func transforms, which cannot see it there; use torch.autograd for captured tensors"
        )
    if not tensor.requires_grad and forward_ad.unpack_dual(tensor).tangent is not None:
        raise NotImplementedError(
            f"{shown} with a forward-mode tangent; let it require a gradient as well, or the tangent is not seen"
        )


def _is_transformed(tensor: Tensor) -> bool:
    """Whether any transform of ``torch.func`` that is under way differentiates or maps over a tensor."""
    bare = torch.func.debug_unwrap(tensor, recurse=False)
    while bare is not tensor:
        moves = tensor.requires_grad or forward_ad.unpack_dual(tensor).tangent is not None
        if moves or bare.dim() > tensor.dim():  # vmap hides a dimension
            return True
        tensor, bare = bare, torch.func.debug_unwrap(bare, recurse=False)
    return False


def _check_independent(tensors: tuple[Tensor, ...]) -> None:
    """Refuse tensors one of which was computed from another: the way between them would be counted twice."""
    if len(tensors) < 2 or all(tensor.is_leaf for tensor in tensors):
        return
    places = {_place(tensor): tensor for tensor in tensors}
    for tensor in tensors:
        for ancestor in _ancestors(tensor):
            if ancestor in places:
                raise NotImplementedError(
                    f"score_mod captured a tensor {tuple(places[ancestor].shape)} and one computed from it, "
                    f"{tuple(tensor.shape)}; let it hold only one of the two (self or a module brings all parameters)"
                )


def _place(tensor: Tensor) -> Place:
    """Where a tensor stands in autograd's graph; two views of one place are the same to it."""
    edge = torch.autograd.graph.get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _ancestors(tensor: Tensor) -> Iterator[Place]:
    """All places that a tensor was computed from."""
    seen: set[Place] = set()
    waiting = [_place(tensor)[0]]
    while waiting:
        for node, number in waiting.pop().next_functions:
            if node is not None and (node, number) not in seen:
                seen.add((node, number))
                waiting.append(node)
                yield node, number


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Tensor | type | ModuleType | str | bytes | int | float):
        return ()
    if isinstance(value, nn.Module):
        return _of_module(value)
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, FunctionType):
        return _of_function(value)
    slots = (getattr(value, name, None) for name in getattr(type(value), "__slots__", ()))
    return [*getattr(value, "__dict__", {}).values(), *slots]


def _of_module(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules():
        yield from (held for held in vars(part).values() if isinstance(held, Tensor))


def _of_function(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    names = set(_names(function.__code__))
    for held in (function.__globals__.get(name) for name in sorted(names)):
        if isinstance(held, ModuleType):  # module.slope
            yield from (vars(held).get(name) for name in names)
        else:
            yield held


def _names(code: CodeType) -> Iterator[str]:
    """Globals and attributes that code mentions, with those of the functions it defines."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
