"""Arrays that lie in a file as one run of numbers, read some rows at a time: ``.npy`` and safetensors.

Files are read, not mapped: mapped pages would pile up in resident memory. The buffers that blocks are read into are
used again once nobody holds their tensors, because fresh pages cost more than the reading.
"""

import json
import math
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import safetensors
import torch
from jaxtyping import Float
from torch import Tensor

_NPY_DTYPES = {"f2": torch.float16, "f4": torch.float32, "f8": torch.float64}
_SAFETENSORS_DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class SourceError(ValueError):
    """A file of keys or values that cannot be read; the message names it."""


@dataclass(frozen=True)
class FlatArray:
    """``(..., length, width)`` numbers in a file.

    Args:
        path: of the file.
        offset: byte where the first number stands.
        shape: two dimensions at least; the last but one is read in pieces.
        dtype: of the numbers.
        reversed_axes: stored in Fortran order, that is, as the transpose in C order.
        swapped: in the byte order that is not this machine's.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    reversed_axes: bool = False
    swapped: bool = False

    def __post_init__(self) -> None:
        if len(self.shape) < 2 or 0 in (*self.shape[:-2], self.shape[-1]):
            raise SourceError(f"{self.path}: has shape {self.shape}; it needs (..., length, width)")
        size = self.path.stat().st_size
        needed = self.offset + math.prod(self.shape) * self.dtype.itemsize
        if size < needed:
            raise SourceError(
                f"{self.path}: is cut short: {needed:,} bytes are announced, {size:,} are there"
            )

    def pieces(self, block: int) -> Iterator[Float[Tensor, "... rows width"]]:
        """All rows in order, ``block`` at a time; the last piece may be shorter.

        Raises:
            SourceError: when the file ends early.
        """
        rows = self.shape[-2]
        buffers = _Buffers(math.prod(self.shape) // max(1, rows) * min(block, rows) * self._item)
        with self.path.open("rb", buffering=0) as file:
            for start in range(0, rows, block):  # no name for what is yielded: it would outlive it
                yield self._read(file, start, min(block, rows - start), buffers)

    @property
    def _item(self) -> int:
        return self.dtype.itemsize

    def _strips(self) -> tuple[int, int, int]:
        """In the order of the file: runs of all rows, rows of a run, numbers of a row."""
        if self.reversed_axes:
            return self.shape[-1], self.shape[-2], math.prod(self.shape[:-2])
        return math.prod(self.shape[:-2]), self.shape[-2], self.shape[-1]

    def _read(self, file: FileIO, start: int, rows: int, buffers: "_Buffers") -> Tensor:
        runs, _, width = self._strips()
        raw = buffers.take(runs * rows * width * self._item)
        self._fill(file, raw.numpy().reshape(runs, -1), start)
        numbers, leading = raw.view(self.dtype), self.shape[:-2]
        if not self.reversed_axes:
            return numbers.view(*leading, rows, width)
        numbers = numbers.view(runs, rows, *reversed(leading))
        return numbers.permute(*reversed(range(numbers.dim()))).contiguous()

    def _fill(self, file: FileIO, strips: "np.ndarray", start: int) -> None:
        _, rows, width = self._strips()
        for run, strip in enumerate(strips):
            file.seek(self.offset + (run * rows + start) * width * self._item)
            rest = memoryview(strip)
            while rest:
                count = file.readinto(rest)
                if not count:
                    raise SourceError(
                        f"{self.path}: ended while it was read, {len(rest)} bytes early"
                    )
                rest = rest[count:]
        if self.swapped:
            strips.reshape(-1).view(f"u{self._item}").byteswap(inplace=True)


def open_npy(path: Path) -> FlatArray:
    """An array saved by ``numpy.save``: float16, float32 or float64, in either order of axes and bytes."""
    from numpy.lib import format as npy

    try:
        with path.open("rb") as file:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(file)
            offset = file.tell()
    except (ValueError, SyntaxError) as error:
        raise SourceError(f"{path}: not a .npy file: {_first_line(error)}") from error
    name = dtype.str[1:]
    if name not in _NPY_DTYPES:
        hint = "; save bfloat16 as safetensors" if name == "V2" else ""
        raise SourceError(f"{path}: holds {dtype}; float16, float32 or float64 is needed{hint}")
    swapped = not dtype.isnative
    return FlatArray(path, offset, tuple(shape), _NPY_DTYPES[name], bool(fortran), swapped)


def open_safetensors(path: Path, name: str | None = None) -> FlatArray:
    """One tensor of a safetensors file: float16, bfloat16, float32 or float64.

    Args:
        path: of the file.
        name: of the tensor; None when there is only one.
    """
    try:
        with safetensors.safe_open(
            path, framework="pt"
        ) as file:  # checks every offset and the size
            names = sorted(file.keys())
    except safetensors.SafetensorError as error:
        raise SourceError(f"{path}: not a whole safetensors file: {_first_line(error)}") from error
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        asked = "which tensor is meant?" if name is None else f"there is no tensor {name!r};"
        raise SourceError(f"{path}: {asked} it holds {', '.join(names) or 'none'}: write FILE:NAME")
    with path.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
        entry = json.loads(stream.read(header))[name]
    if entry["dtype"] not in _SAFETENSORS_DTYPES:
        raise SourceError(f"{path}: {name} holds {entry['dtype']}; a floating dtype is needed")
    offset = 8 + header + entry["data_offsets"][0]
    return FlatArray(path, offset, tuple(entry["shape"]), _SAFETENSORS_DTYPES[entry["dtype"]])


class _Buffers:
    """Memory for tensors that comes back when the last tensor on it is gone.

    Args:
        size: bytes of the largest tensor.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lent: dict[int, tuple[weakref.ref[np.ndarray], np.ndarray]] = {}
        self._ended: deque[weakref.ref[np.ndarray]] = deque()

    def take(self, size: int) -> Tensor:
        """Bytes that nobody else looks at."""
        buffer: np.ndarray | None = None
        while self._ended:
            _, buffer = self._lent.pop(id(self._ended.popleft()))
        if buffer is None:
            buffer = np.empty(max(1, self._size), np.uint8)
        view = buffer[:]  # lives as long as the tensor's storage
        # The callback is C code alone: an interrupt in a Python one would be swallowed, and Ctrl-C lost.
        end = weakref.ref(view, self._ended.append)
        self._lent[id(end)] = (end, buffer)
        return torch.from_numpy(view)[:size]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
