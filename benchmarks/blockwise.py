"""What the blockwise transformer layer costs beside the plain one: peak memory and CPU time, forward and backward."""

import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from _measure import extra_mib, in_fresh_process, markdown, write_table
from torch import Tensor, nn
from torch.nn import functional as F

from synopsis.attention.blockwise import BlockwiseTransformerLayer

DIM, HEADS = 512, 8
MIB_PER_TOKEN = DIM * 4 / 2**20
ROUNDS = {4096: 3, 16384: 1}  # a pass over 16,384 tokens takes half a minute


class PlainLayer(nn.TransformerEncoderLayer):
    """The same mathematics with torch's fused attention and everything kept for the backward pass."""

    def __init__(self, is_causal: bool) -> None:
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        super().__init__(DIM, HEADS, 4 * DIM, **options)
        self.is_causal = is_causal

    def forward(self, x: Tensor) -> Tensor:
        """The layer, step by step."""
        attention = self.self_attn
        projected = F.linear(self.norm1(x), attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = (
            t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in projected.chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=self.is_causal)
        x = x + attention.out_proj(attended.transpose(1, 2).flatten(2))
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))


def layer(kind: str, is_causal: bool) -> nn.Module:
    torch.manual_seed(0)
    if kind == "plain":
        return PlainLayer(is_causal)
    return BlockwiseTransformerLayer(DIM, HEADS, is_causal=is_causal)


def pass_through(module: nn.Module, length: int, differentiate: bool) -> Callable[[], Tensor]:
    """A call that runs the layer on random tokens; all that it is given is allocated now."""
    x = torch.randn(1, length, DIM, requires_grad=differentiate)
    grad = torch.randn(1, length, DIM) if differentiate else None
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def run() -> Tensor:
        x.grad = None
        with torch.set_grad_enabled(differentiate):
            output = module(x)
        if grad is not None:
            output.backward(grad)
        return output

    return run


def extra_memory(kind: str, length: int, is_causal: bool, differentiate: bool) -> float:
    """MiB above what is there before: weights, their gradients, input, gradient of the output."""
    module = layer(kind, is_causal)
    pass_through(module, 64, differentiate)()  # what torch loads on first use is not memory of ours
    run = pass_through(module, length, differentiate)
    return extra_mib(run)


def seconds(length: int, is_causal: bool, differentiate: bool) -> tuple[float, float]:
    """CPU-seconds of the plain and of the blockwise layer: medians over rounds that alternate."""
    kinds = ("plain", "blockwise")
    runs = [pass_through(layer(kind, is_causal), length, differentiate) for kind in kinds]
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS[length]):
        for run, taken in zip(runs, times, strict=True):
            begin = time.process_time()
            run()
            taken.append(time.process_time() - begin)
    return statistics.median(times[0]), statistics.median(times[1])


def memory_row(length: int, is_causal: bool, differentiate: bool) -> tuple[str, ...]:
    settings = (length, int(is_causal), int(differentiate))
    plain, ours = (in_fresh_process(__file__, kind, *settings) for kind in ("plain", "blockwise"))
    floor = length * MIB_PER_TOKEN * (2 if differentiate else 1)
    ratio, beyond = plain / ours, (plain - floor) / (ours - floor)
    figures = (f"{plain:.0f}", f"{ours:.0f}", f"{floor:.0f}", f"{ratio:.1f}", f"{beyond:.1f}")
    return (case(length, is_causal, differentiate), *figures, "≥ 4" if differentiate else "–")


def time_row(length: int, is_causal: bool, differentiate: bool) -> tuple[str, ...]:
    plain, ours = seconds(length, is_causal, differentiate)
    goal = "≤ 1.15" if differentiate and length == 16384 else "–"
    name = case(length, is_causal, differentiate)
    return name, f"{plain:.2f}", f"{ours:.2f}", f"{ours / plain:.2f}", goal


def case(length: int, is_causal: bool, differentiate: bool) -> str:
    passes = "forward+backward" if differentiate else "forward"
    return f"{length:,} tokens, {'causal' if is_causal else 'plain'}, {passes}"


def main() -> None:
    torch.set_num_threads(1)
    cases = [(n, causal, True) for n in (4096, 16384) for causal in (False, True)]
    memory = [
        memory_row(*c) for c in [(4096, False, True), (16384, False, True), (16384, False, False)]
    ]
    times = [time_row(*c) for c in cases]
    write_table(
        "blockwise",
        "The blockwise transformer layer beside the plain one",
        "Width 512, 8 heads, hidden layer 2,048, batch 1, float32, one thread. Plain: the same mathematics with "
        "torch's fused attention, everything kept for the backward pass. Memory: growth of the peak resident memory in "
        "a fresh process, MiB; the floor is the output and the gradient of the input, which both must return. Time: "
        f"CPU-seconds, median of {ROUNDS[4096]} alternating rounds; of {ROUNDS[16384]} at 16,384 tokens.",
        markdown(
            (
                "peak extra memory",
                "plain",
                "blockwise",
                "floor",
                "ratio",
                "ratio beyond the floor",
                "goal",
            ),
            memory,
        ),
        markdown(("time", "plain", "blockwise", "blockwise ÷ plain", "goal"), times),
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        torch.set_num_threads(1)
        kind, length, *flags = sys.argv[1:]
        print(json.dumps(extra_memory(kind, int(length), *(flag == "1" for flag in flags))))
    else:
        main()
