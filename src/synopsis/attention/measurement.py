"""What attention costs: CPU time, and peak memory beyond inputs and outputs, each cell in a process of its own.

A helper process imports torch once and forks for every cell: a cell starts without anything that another one left
behind, and without the seconds that an import takes. Operating systems without ``fork`` cannot measure.
"""

import importlib
import math
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from synopsis.attention.exact import scaled_dot_product_attention
from synopsis.attention.forks import END, Forks, say, serve
from synopsis.attention.resident_memory import measured_call

Method = Literal["standard", "torch", "synopsis", "jax"]
Dtype = Literal["float32", "bfloat16"]
DIM = 64  # of the paper's single head
MIB = 2**20
_WARM_UP = 64  # queries and keys of the call before the measured one
_ENOUGH_SECONDS, _MOST_CALLS = 0.2, 50  # short calls are timed more often than asked,
_MOST_SECONDS = 5.0  # and long ones less often
_LARGEST_STANDARD = 2**28  # pairs: 16,384², or 256 queries of 1,048,576 keys


@dataclass(frozen=True)
class Cell:
    """One thing to measure: batch 1, one head of width 64, no mask.

    Args:
        method: ``standard`` (the textbook's softmax), ``torch`` (its function), ``synopsis`` (ours) or ``jax``.
        queries: how many, at least 1.
        keys: how many, at least 1.
        dtype: ``float32`` or ``bfloat16``.
        differentiate: forward and backward, from a given gradient of the output; else forward alone.
    """

    method: Method
    queries: int
    keys: int
    dtype: Dtype = "float32"
    differentiate: bool = False

    @property
    def pairs(self) -> int:
        """Queries times keys, what time is proportional to."""
        return self.queries * self.keys


@dataclass(frozen=True)
class Figure:
    """What a cell costs.

    Args:
        seconds: CPU time of one call, median.
        overhead: bytes of resident memory at the peak, beyond inputs and outputs.
    """

    seconds: float
    overhead: int


def methods() -> tuple[Method, ...]:
    """Those that can be measured here: JAX only where it is installed."""
    found: tuple[Method, ...] = ("standard", "torch", "synopsis")
    return (*found, "jax") if find_spec("jax") else found


def is_bearable(cell: Cell) -> bool:
    """Whether a cell may be run: those that store every score need the memory for it, twice over."""
    if cell.method in ("torch", "synopsis"):
        return True
    needed = cell.pairs * 4 * (4 if cell.differentiate else 3)
    return cell.pairs <= _LARGEST_STANDARD and 2 * needed <= _available()


class FreshProcesses(Forks):
    """Measures cells, each in a process of its own; a context manager.

    Raises:
        OSError: on an operating system without ``fork``.

    Example:
        >>> with FreshProcesses() as fresh:    # doctest: +SKIP
        ...     fresh.measure(Cell("synopsis", 1024, 1024)).overhead
        24576
    """

    def __init__(self) -> None:
        super().__init__(__name__, _ONE_JAX_THREAD)

    def measure(self, cell: Cell, repeats: int = 3) -> Figure | None:
        """The figure of one cell, or None when its process died, usually for lack of memory.

        Args:
            cell: what to run.
            repeats: timed calls, 1 or more; short ones are repeated more often, long ones less.
        """
        found = self.ask({"repeats": repeats, **asdict(cell)})
        return None if found.pop(END) else Figure(**found)


_ONE_JAX_THREAD = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}


def measure_here(cell: Cell, repeats: int) -> Figure:
    """The figure of one cell, in this process: right only where nothing has been freed before."""
    prepare = _jax_call if cell.method == "jax" else _torch_call
    warm = prepare(Cell(cell.method, _WARM_UP, _WARM_UP, cell.dtype, cell.differentiate))
    warm()  # what is loaded on first use is not memory of the method
    call = prepare(cell)
    extra, results = measured_call(call)
    outputs = sum(tensor.nbytes for tensor in results)
    del results
    return Figure(_median_seconds(call, repeats), max(0, extra - outputs))


def _median_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median CPU-seconds of one call, that has been made before."""
    times: list[float] = []
    while not _is_enough(times, repeats):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def _is_enough(times: list[float], repeats: int) -> bool:
    spent = sum(times)
    often = spent >= _ENOUGH_SECONDS or len(times) >= _MOST_CALLS
    return bool(times) and (spent >= _MOST_SECONDS or (often and len(times) >= repeats))


def _torch_call(cell: Cell) -> Callable[[], tuple[Tensor, ...]]:
    """A call that returns the output and, if asked, the three gradients."""
    generator = torch.Generator().manual_seed(cell.keys)
    dtype = getattr(torch, cell.dtype)
    lengths = (cell.queries, cell.keys, cell.keys, cell.queries)
    query, key, value, grad = (
        torch.randn(1, 1, n, DIM, generator=generator, dtype=dtype) for n in lengths
    )
    functions: dict[Method, Callable[..., Tensor]] = {
        "standard": standard_attention,
        "torch": F.scaled_dot_product_attention,
        "synopsis": scaled_dot_product_attention,  # without lse, a tensor
    }
    attend = functions[cell.method]

    def infer() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (attend(query, key, value),)

    def differentiate() -> tuple[Tensor, ...]:
        inputs = [t.detach().requires_grad_() for t in (query, key, value)]
        output = attend(*inputs)
        return (output.detach(), *torch.autograd.grad(output, inputs, grad))

    return differentiate if cell.differentiate else infer


def standard_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The textbook's attention: every score is stored."""
    return torch.softmax(query @ key.mT / math.sqrt(query.shape[-1]), dim=-1) @ value


def _jax_call(cell: Cell) -> Callable[[], tuple[Any, ...]]:
    """JAX's own function, compiled before it is measured."""
    jax: Any = importlib.import_module("jax")
    lengths = (cell.queries, cell.keys, cell.keys, cell.queries)
    inputs = [
        jax.random.normal(jax.random.key(i), (1, n, 1, DIM), dtype=jax.numpy.dtype(cell.dtype))
        for i, n in enumerate(lengths)
    ]

    def infer(query: Any, key: Any, value: Any, _: Any) -> tuple[Any, ...]:
        return (jax.nn.dot_product_attention(query, key, value),)

    def differentiate(query: Any, key: Any, value: Any, grad: Any) -> tuple[Any, ...]:
        output, pull_back = jax.vjp(jax.nn.dot_product_attention, query, key, value)
        return (output, *pull_back(grad))

    function = jax.jit(differentiate if cell.differentiate else infer)
    compiled = function.lower(*inputs).compile()
    return lambda: tuple(jax.block_until_ready(compiled(*inputs)))


def _available() -> float:
    """Bytes of memory that are free to use; no limit where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024.0


def _measure_asked(asked: dict[str, Any]) -> None:
    repeats = asked.pop("repeats")
    say(**asdict(measure_here(Cell(**asked), repeats)))


if __name__ == "__main__":
    if find_spec("jax"):
        importlib.import_module("jax")  # takes seconds; no thread is started before the first use
        warnings.filterwarnings("ignore", message="os.fork", category=RuntimeWarning)
    serve(_measure_asked)
