"""A stream folded through the pack of one ConvLuna layer: does memory stay flat, does it equal the whole?"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from synopsis.attention.resident_memory import measured_call
from synopsis.memory.conv_luna import SimplifiedConvLunaLayer
from synopsis.memory.luna_stream import ConvLuna, ConvLunaState
from synopsis.memory.sequence_filters import Filter

_EVERY = 10  # times that memory is looked at


@dataclass(frozen=True)
class Stream:
    """What is folded: a layer with random weights, over random items that are made piece by piece.

    Args:
        items: how many.
        piece: items at once.
        dim: width of items and cells.
        heads: of pack.
        cells: of the memory.
        kernel: taps of the filter.
        stride: of the filter.
    """

    items: int = 1_000_000
    piece: int = 10_000
    dim: int = 64
    heads: int = 4
    cells: int = 16
    kernel: int = 4
    stride: int = 1

    def pieces(self) -> Iterator[Float[Tensor, "1 piece dim"]]:
        """The items, the same ones each time."""
        for start in range(0, self.items, self.piece):
            generator = torch.Generator().manual_seed(start)
            length = min(self.piece, self.items - start)
            yield torch.randn(1, length, self.dim, generator=generator)


@dataclass(frozen=True)
class StreamFacts:
    """What was found.

    Args:
        state_bytes: what is kept of the stream, after each tenth of it.
        peaks: bytes of resident memory at the peak of folding each tenth, beyond what was there before.
        cpu_seconds: of folding, one thread.
        batch_peak: the same of packing all items at once.
        batch_cpu_seconds: of that.
        difference: largest absolute difference between the two memories.
        scale: largest absolute entry of the memory, to hold the difference against.
    """

    state_bytes: list[int]
    peaks: list[int]
    cpu_seconds: float
    batch_peak: int
    batch_cpu_seconds: float
    difference: float
    scale: float


def check_stream(stream: Stream) -> StreamFacts:
    """Fold a stream, then pack the same items at once, in a process of its own with one thread."""
    ended = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(asdict(stream)),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if ended.returncode:
        raise OSError(f"the process that measures has died: {ended.stderr.strip()[-500:]}")
    return StreamFacts(**json.loads(ended.stdout))


def _check_here(stream: Stream) -> StreamFacts:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    filtering = Filter(kernel=stream.kernel, stride=stream.stride)
    layer = SimplifiedConvLunaLayer(stream.dim, stream.heads, 8, filtering=filtering)
    memory = ConvLuna(layer.eval(), stream.cells)
    with torch.no_grad():
        streamed, sizes, peaks = _streamed(stream, memory)
        x = torch.cat(list(stream.pieces()), 1)
        batch_peak, packed = measured_call(lambda: layer.packed(memory.memory, x, None))
        whole = layer.remember(memory.memory, packed)
        seconds = _seconds(lambda: _fold(memory, memory.init((1,)), stream.pieces()))
        batch_seconds = _seconds(lambda: layer.packed(memory.memory, x, None))
    difference = (streamed - whole).abs().max().item()
    costs = (seconds, batch_peak, batch_seconds)
    return StreamFacts(sizes, peaks, *costs, difference, whole.abs().max().item())


def _streamed(stream: Stream, memory: ConvLuna) -> tuple[Tensor, list[int], list[int]]:
    """The memory that the stream leaves, and what it took to keep it, tenth by tenth."""
    state, pieces = memory.init((1,)), stream.pieces()
    many = -(-stream.items // stream.piece)
    sizes, peaks = list[int](), list[int]()
    state_after = memory.update(state, torch.zeros(1, stream.piece, stream.dim))  # a first use
    del state_after
    for tenth in range(_EVERY):
        begin, end = (round(k * many / _EVERY) for k in (tenth, tenth + 1))
        tenths = islice(pieces, end - begin)
        peak, state = measured_call(partial(_fold, memory, state, tenths))
        sizes.append(state.nbytes)
        peaks.append(peak)
    return memory.memory_of(state), sizes, peaks


def _fold(memory: ConvLuna, state: ConvLunaState, pieces: Iterable[Tensor]) -> ConvLunaState:
    for piece in pieces:
        state = memory.update(state, piece)
    return state


def _seconds(call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(_check_here(Stream(**json.loads(sys.stdin.read()))))))


__all__ = ["Stream", "StreamFacts", "check_stream"]
