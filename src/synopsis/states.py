"""What was seen, as a value: frozen trees of tensors that become bytes and come back.

A state is a frozen dataclass whose fields are tensors, other states, tuples of those, or plain values (text, numbers,
None). Every state is a pytree, so it passes through ``torch.func`` and ``torch.compile``; and every state serialises
to one safetensors file whose header holds the structure, the plain values and a checksum over every byte. Reading runs
no code and imports nothing by name: only kinds declared by classes that are already loaded are accepted.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Self, get_origin

import safetensors.torch
import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node, tree_leaves

FORMAT_VERSION = 1
_MAX_HEADER_BYTES = 1 << 20  # JSON grows some twentyfold in memory
_NO_CHECKSUM = "0" * 64
_CHECKSUM = re.compile(rb"checksum[\\\": ]+([0-9a-f]{64})")
_KINDS: dict[str, type["State"]] = {}


class StateFormatError(ValueError):
    """Bytes that are not a whole, unchanged state of a known kind and version."""


class State:
    """Base of every state: a frozen dataclass of tensors that can be measured, saved and read back.

    Subclasses are frozen dataclasses, name a unique ``kind``, and have ``count``: how many items each stream has seen.
    """

    kind: ClassVar[str]
    count: Any

    def __init_subclass__(cls) -> None:
        if _KINDS.setdefault(cls.kind, cls).__qualname__ != cls.__qualname__:
            raise TypeError(
                f"two states call themselves {cls.kind!r}: {cls} and {_KINDS[cls.kind]}"
            )
        register_pytree_node(
            cls, _flatten, _unflattener(cls), serialized_type_name=f"synopsis.{cls.kind}"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(leaf.nbytes for leaf in tree_leaves(self) if isinstance(leaf, Tensor))

    def serialize(self) -> bytes:
        """The state as one safetensors file: equal states give equal bytes.

        Example:
            >>> import torch
            >>> from synopsis import AttentionState
            >>> state = AttentionState.empty(torch.ones(1, 1, 2), value_dim=2)
            >>> AttentionState.deserialize(state.serialize()).count
            tensor(0)
        """
        structure, tensors = _describe(self)
        header = {
            "format": FORMAT_VERSION,
            "count": int(torch.as_tensor(self.count).sum()),
            "state": structure,
            "checksum": _NO_CHECKSUM,
        }
        text = json.dumps(header, separators=(",", ":"), sort_keys=True)
        data = safetensors.torch.save(tensors, metadata={"synopsis": text})
        digest = hashlib.sha256(data).hexdigest()
        return data.replace(_NO_CHECKSUM.encode(), digest.encode(), 1)

    @classmethod
    def deserialize(cls, data: bytes) -> Self:
        """Read back what :meth:`serialize` wrote.

        Args:
            data: the bytes of one state of this class (of any class when called on ``State``).

        Raises:
            StateFormatError: when anything at all is wrong with them, and no other error.
        """
        try:
            state = _read(data)
        except StateFormatError:
            raise
        except Exception as error:  # whatever hostile bytes provoke, the caller sees one type
            raise StateFormatError(f"not a state: {type(error).__name__}: {error}") from error
        if not isinstance(state, cls):
            raise StateFormatError(f"expected a state of kind {cls.kind!r}, found {state.kind!r}")
        return state

    def check(self) -> None:
        """Raise ValueError when the tensors do not fit each other; called on reading."""


def header(data: bytes) -> dict[str, Any]:
    """The verified header of a serialised state: format, count and structure with its plain values.

    Raises:
        StateFormatError: when anything is wrong with it.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 0 < length <= min(len(data) - 8, _MAX_HEADER_BYTES):
        raise StateFormatError(f"not a state: {len(data)} bytes with a header of {length}")
    _verify(data, length)
    try:
        found: dict[str, Any] = json.loads(
            json.loads(data[8 : 8 + length])["__metadata__"]["synopsis"]
        )
        version = found["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StateFormatError(f"not a state: its header says nothing ({error!r})") from error
    if version != FORMAT_VERSION:
        raise StateFormatError(f"state has format {version!r}; this version reads {FORMAT_VERSION}")
    return found


def _verify(data: bytes, length: int) -> None:
    found = _CHECKSUM.search(data, 8, 8 + length)
    if found is None:
        raise StateFormatError("not a state: the header has no checksum")
    start, end = found.span(1)
    digest = hashlib.sha256(data[:start])
    digest.update(_NO_CHECKSUM.encode())
    digest.update(memoryview(data)[end:])
    if digest.hexdigest() != found.group(1).decode():
        raise StateFormatError("state is damaged: its checksum does not match")


def _read(data: bytes) -> State:
    structure = header(data)["state"]
    tensors = safetensors.torch.load(data)
    state = _build(structure, "", tensors)
    if tensors:
        raise StateFormatError(f"state holds tensors nobody asked for: {sorted(tensors)}")
    return state


def _describe(state: State, prefix: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON structure and tensors by path; a tensor stands in the JSON as null under "tensor"."""
    tensors: dict[str, Tensor] = {}

    def visit(value: Any, path: str) -> dict[str, Any]:
        if isinstance(value, Tensor):
            # A copy: two fields may be the same tensor, which safetensors refuses.
            tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {"tensor": None}
        if isinstance(value, State):
            inner, below = _describe(value, f"{path}.")
            tensors.update(below)
            return {"state": inner}
        if isinstance(value, tuple):
            return {"tuple": [visit(item, f"{path}.{i}") for i, item in enumerate(value)]}
        return {"value": value}

    found = {f.name: visit(getattr(state, f.name), f"{prefix}{f.name}") for f in _fields(state)}
    return {"kind": state.kind, "fields": found}, tensors


def _build(structure: dict[str, Any], prefix: str, tensors: dict[str, Tensor]) -> State:
    kind = _KINDS.get(structure["kind"])
    if kind is None:
        raise StateFormatError(f"unknown kind of state {structure['kind']!r}")
    names = {f.name for f in _fields(kind)}
    if set(structure["fields"]) != names:
        raise StateFormatError(f"a {kind.kind!r} holds {sorted(names)}, found other fields")

    def visit(value: dict[str, Any], path: str) -> Any:
        ((what, content),) = value.items()
        if what == "tensor":
            return tensors.pop(path)
        if what == "state":
            return _build(content, f"{path}.", tensors)
        if what == "tuple":
            return tuple(visit(item, f"{path}.{i}") for i, item in enumerate(content))
        return content

    found = {name: visit(v, f"{prefix}{name}") for name, v in structure["fields"].items()}
    for field in _fields(kind):
        _check_type(kind.kind, field, found[field.name])
    state = kind(**found)
    state.check()
    return state


def _check_type(kind: str, field: Any, value: Any) -> None:
    """A field declares what it holds: dtype and number of dimensions of a tensor, or the type of a plain value."""
    checkable = isinstance(field.type, (type, UnionType)) and get_origin(field.type) is not tuple
    if checkable and not isinstance(value, field.type):
        shown = (
            f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:80]
        )
        raise StateFormatError(f"{field.name} of a {kind!r} cannot be {shown}")


def _fields(state: Any) -> tuple[Any, ...]:
    return fields(state)


def _is_branch(value: Any) -> bool:
    return isinstance(value, (Tensor, State)) or (
        isinstance(value, tuple) and any(_is_branch(item) for item in value)
    )


def _flatten(state: State) -> tuple[list[Any], tuple[Any, ...]]:
    values = {f.name: getattr(state, f.name) for f in _fields(state)}
    branches = {name: value for name, value in values.items() if _is_branch(value)}
    static = tuple((name, value) for name, value in values.items() if name not in branches)
    return list(branches.values()), (tuple(branches), static)


def _unflattener(cls: type[State]) -> Callable[[Any, Any], State]:
    def unflatten(leaves: Any, context: Any) -> State:
        names, static = context
        state = object.__new__(cls)  # leaves may be anything while a transform is under way
        for name, value in (*zip(names, leaves, strict=True), *static):
            object.__setattr__(state, name, value)
        return state

    return unflatten


def check_streams(state: State, streams: int) -> None:
    """Raise ValueError unless a state is of so many streams: broadcasting would mix them silently."""
    if len(state.count) != streams:
        raise ValueError(
            f"the state is of {len(state.count)} streams, but {streams} came; they must agree"
        )


def read_state(path: Path) -> State:
    """Read a state file of any kind; StateFormatError names the file."""
    try:
        return State.deserialize(Path(path).read_bytes())
    except OSError as error:
        raise StateFormatError(f"{path}: {error.strerror}") from error
    except StateFormatError as error:
        raise StateFormatError(f"{path}: {error}") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one, whole."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    with suppress(OSError):  # some file systems refuse to sync a directory; the rename stands
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
