"""What attention is measured on: calls with every option, timed side by side or weighed in a process of their own."""

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import synopsis.attention
from synopsis import scaled_dot_product_attention
from synopsis.attention.biases import ALiBi, RelativePositionBias, alibi_slopes
from synopsis.attention.captured import captured_tensors
from synopsis.attention.masks import Documents, SlidingWindow
from synopsis.attention.resident_memory import measured_call

DIM, WINDOW, DOCUMENTS, FURTHEST = 64, 1024, 16, 128


@dataclass(frozen=True)
class Case:
    """One call of attention, batch 1, width 64.

    Args:
        attend: the function.
        length: queries and keys.
        heads: of all.
        dtype: of the inputs.
        differentiate: forward and backward, else forward alone.
        options: makes the function's further arguments from (heads, length).
        value_dim: width of the values.
        engine: forced for ours.
    """

    attend: Callable[..., Tensor]
    length: int
    heads: int = 8
    dtype: torch.dtype = torch.float32
    differentiate: bool = False
    options: Callable[[int, int], dict[str, Any]] = lambda *_: {}
    value_dim: int = DIM
    engine: str = "auto"

    def call(self) -> Callable[[], tuple[Tensor, ...]]:
        """A call that returns the output and all gradients; what it is given exists now."""
        generator = torch.Generator().manual_seed(0)
        widths = (DIM, DIM, self.value_dim, self.value_dim)
        shapes = [(1, self.heads, self.length, width) for width in widths]
        *inputs, grad = (torch.randn(s, generator=generator, dtype=self.dtype) for s in shapes)
        options = self.options(self.heads, self.length)
        leaves = [t.requires_grad_(self.differentiate) for t in inputs] + _leaves(options)
        force = synopsis.attention.engine if self.engine != "auto" else nullcontext

        def run() -> tuple[Tensor, ...]:
            with torch.set_grad_enabled(self.differentiate), force(self.engine):
                output = self.attend(*inputs, **options)
                if not self.differentiate:
                    return (output,)
                return (output.detach(), *torch.autograd.grad(output, leaves, grad))

        return run


def _leaves(options: dict[str, Any]) -> list[Tensor]:
    mask = options.get("attn_mask")
    of_mask = [mask] if mask is not None and mask.requires_grad else []
    return of_mask + list(captured_tensors(options.get("score_mod", len)))


def ours(length: int, **settings: Any) -> Case:
    return Case(scaled_dot_product_attention, length, **settings)


def torchs(length: int, **settings: Any) -> Case:
    return Case(F.scaled_dot_product_attention, length, **settings)


def causal(heads: int, length: int) -> dict[str, Any]:
    return {"is_causal": True}


def learned_bias(heads: int, length: int) -> dict[str, Any]:
    return {"attn_mask": torch.zeros(1, heads, length, length, requires_grad=True)}


def dropout(heads: int, length: int) -> dict[str, Any]:
    return {"dropout_p": 0.1}


def temperature(heads: int, length: int) -> dict[str, Any]:
    factor = torch.ones(heads, requires_grad=True)
    return {"score_mod": lambda score, b, h, q_idx, kv_idx: score * factor[h]}


def alibi(heads: int, length: int) -> dict[str, Any]:
    return {"score_mod": ALiBi(alibi_slopes(heads).requires_grad_())}


def relative_table(heads: int, length: int) -> dict[str, Any]:
    table = torch.zeros(heads, 2 * FURTHEST + 1, requires_grad=True)
    return {"score_mod": RelativePositionBias(table)}


def window(heads: int, length: int) -> dict[str, Any]:
    return {"mask_mod": SlidingWindow(WINDOW - 1)}


def documents(heads: int, length: int) -> dict[str, Any]:
    return {"mask_mod": Documents.from_lengths([length // DOCUMENTS] * DOCUMENTS)}


def side_by_side(cases: Sequence[Case], rounds: int) -> list[float]:
    """Median CPU-seconds of each case; rounds alternate, so that all meet the same disturbances."""
    calls = [case.call() for case in cases]
    for call in calls:
        if rounds > 1:
            call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, taken in zip(calls, times, strict=True):
            begin = time.process_time()
            call()
            taken.append(time.process_time() - begin)
    return [statistics.median(taken) for taken in times]


def extra_mib(case: Case) -> float:
    """MiB at the peak beyond inputs and outputs, of one call in a forked process.

    To be called before this process has computed anything: what it freed would hide what the other one needs.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, json.dumps(_weigh(case)).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise RuntimeError(f"the process of {case} died with status {status}")
    return float(json.loads(text))


def _weigh(case: Case) -> float:
    replace(
        case, length=DOCUMENTS * 4
    ).call()()  # what is loaded on first use is not memory of the case
    call = case.call()
    extra, results = measured_call(call)
    return max(0, extra - sum(t.nbytes for t in results)) / 2**20


def errors(
    attend: Callable[..., Tensor], dtype: torch.dtype, is_causal: bool
) -> tuple[float, float]:
    """Largest errors of output and gradients against the textbook in float64, from the same rounded inputs."""
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(1, 2, 1024, DIM, generator=generator).to(dtype) for _ in range(4)]
    found = _with_gradients(lambda *t: attend(*t, is_causal=is_causal), tensors)
    exact = _with_gradients(lambda *t: _textbook(*t, is_causal), [t.double() for t in tensors])
    gaps = [(a.double() - b).abs().max().item() for a, b in zip(found, exact, strict=True)]
    return gaps[0], max(gaps[1:])


def _with_gradients(attend: Callable[..., Tensor], tensors: list[Tensor]) -> tuple[Tensor, ...]:
    leaves = [t.clone().requires_grad_() for t in tensors[:3]]
    output = attend(*leaves)
    return (output.detach(), *torch.autograd.grad(output, leaves, tensors[3]))


def _textbook(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
    scores = query @ key.mT / DIM**0.5
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores.softmax(-1) @ value
