"""What CMANP costs at the paper's sizes: one update, a long context, a training step, and memory."""

import json
import sys
from collections.abc import Iterator

import torch
from _measure import cpu_seconds, extra_mib, in_fresh_process, markdown, write_table

from synopsis.processes import CMANP
from synopsis.tasks.gaussian_process import GaussianProcessTask

PIECE = 1000


def pieces(length: int) -> Iterator[torch.Tensor]:
    """A stream of random points that is nowhere held as a whole."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(length // PIECE):
        yield torch.randn(1, PIECE, 1, generator=generator)


def condition(process: CMANP, length: int):
    state = process.init()
    for points in pieces(length):
        state = process.update(state, points, points.sin())
    return state


def update_milliseconds(process: CMANP, lengths: tuple[int, ...]) -> list[float]:
    """Median cost of a one-point update after each number of points; rounds alternate."""
    states = [condition(process, max(n, PIECE)) if n > 100 else process.init() for n in lengths]
    states[0] = process.update(process.init(), *[torch.randn(1, 100, 1)] * 2)
    point = torch.randn(1, 1, 1)
    rounds = [
        [cpu_seconds(lambda s=state: process.update(s, point, point), 100, 20) for state in states]
        for _ in range(7)
    ]
    return [sorted(column)[3] * 1e3 for column in zip(*rounds, strict=True)]


def training_step_seconds() -> float:
    torch.manual_seed(0)
    process, task = CMANP().train(), GaussianProcessTask(oracle=False)
    optimiser = torch.optim.Adam(process.parameters(), lr=5e-4, fused=True)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        optimiser.zero_grad()
        process.loss(task.sample(16, generator)).backward()
        optimiser.step()

    return cpu_seconds(step, 30, 4)


def extra_memory(length: int) -> None:
    """Printed by a fresh process: MiB above the loaded model while conditioning on an iterator."""
    process = CMANP().eval()
    point = torch.zeros(1, 1, 1)
    process.update(
        process.init(), point, point
    )  # what torch loads on first use is not memory of ours
    print(json.dumps(extra_mib(lambda: condition(process, length))))


def main() -> None:
    torch.set_num_threads(1)
    process = CMANP().eval()
    early, late = update_milliseconds(process, (100, 1_000_000))
    x = torch.randn(1, 100_000, 1)
    conditioning = cpu_seconds(lambda: process.update(process.init(), x, x), 5)
    short, long = (in_fresh_process(__file__, n) for n in (10_000, 1_000_000))
    rows = [
        ("one-point update at n = 100, CPU-ms", "12–14", f"{early:.2f}", "≤ 1.2"),
        ("one-point update at n = 1,000,000, CPU-ms", "12–14", f"{late:.2f}", "≤ 1.2"),
        ("their ratio", "1.0", f"{late / early:.2f}", "≤ 1.1"),
        ("conditioning on 100,000 points, CPU-s", "1.4–4.2", f"{conditioning:.2f}", "≤ 0.7"),
        (
            "extra peak memory, 10,000 points from an iterator, MiB",
            "41–200",
            f"{short:.1f}",
            "≤ 20",
        ),
        ("the same, 1,000,000 points, MiB", "512–6,853", f"{long:.1f}", "≤ 20"),
        ("training step, batch 16, CPU-s", "0.46", f"{training_step_seconds():.2f}", "≤ 0.30"),
    ]
    write_table(
        "cmanp-cost",
        "What CMANP costs",
        "128 latents × 6 blocks, batch 1 (training: 16), float32, one thread. The figures of the published code are "
        "those measured on another two-core machine, quoted for orientation, not from this run.",
        markdown(("what", "published code", "Synopsis", "goal"), rows),
    )


if __name__ == "__main__":
    extra_memory(int(sys.argv[1])) if len(sys.argv) > 1 else main()
