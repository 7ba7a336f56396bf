"""A training step of CMANP: as the published code takes it, and ours with each lever, side by side in one run."""

import argparse
import statistics
import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from _measure import markdown, write_table
from _published_cmanp import PublishedCMANP

from synopsis.memory.layers_training import is_trustworthy
from synopsis.processes import CMANP
from synopsis.tasks import Batch
from synopsis.tasks.gaussian_process import GaussianProcessTask
from synopsis.training.experiment import Training
from synopsis.training.optimizers import build_optimizers

SIZES = (  # latents, their parameters as published, targets of every task, in words
    (128, 1_341_634, None, "128 latents, as many points as published (the paper's size)"),
    (32, 1_298_626, 64, "32 latents, 64 targets in every task (as we train)"),
)
TASKS, RATE, IDLE = 16, 5e-4, 3  # steps that are not counted
LOSS_PARITY, GRADIENT_PARITY = 1e-5, 1e-4  # relative, float32


@dataclass
class Contender:
    """One way to take a step: what learns, and under which of torch's switches."""

    name: str
    model: torch.nn.Module
    bf16: bool = False
    onednn: bool = True
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        published = isinstance(
            self.model, PublishedCMANP
        )  # torch's default, a loop over the parameters
        parameters = self.model.parameters()
        self.optimiser = torch.optim.Adam(parameters, lr=RATE, fused=None if published else True)

    def step(self, batch: Batch) -> None:
        begin = time.process_time()
        with ExitStack() as switches:
            if self.bf16:
                switches.enter_context(torch.autocast("cpu", torch.bfloat16))
            if not self.onednn:
                switches.enter_context(torch.backends.mkldnn.flags(enabled=False))
            self.optimiser.zero_grad()
            loss = self.model.loss(batch)
        loss.backward()
        self.optimiser.step()
        self.seconds.append(time.process_time() - begin)


def contenders(latents: int, compiling: bool) -> list[Contender]:
    found = [
        Contender("published, from its description", PublishedCMANP(latents)),
        Contender("ours, float32, products by MKL", CMANP(latents=latents), onednn=False),
        Contender("ours, float32", CMANP(latents=latents)),
        Contender("ours, bf16", CMANP(latents=latents), bf16=True),
    ]
    if compiling:
        found += [
            Contender("ours, float32, compiled", compiled(CMANP(latents=latents))),
            Contender("ours, bf16, compiled", compiled(CMANP(latents=latents)), bf16=True),
        ]
    return found


def compiled(process: CMANP) -> CMANP:
    """What a block does after it has met the stream has fixed shapes: it is compiled once for all blocks."""
    for block in process.trunk.stack.blocks:
        block.answer = torch.compile(block.answer, dynamic=False)
    return process


def check(latents: int, parameters: int, batch: Batch) -> None:
    """Raise unless both are the same function of the same weights, of which there are as many as published."""
    published, ours = PublishedCMANP(latents), CMANP(latents=latents, residual="normed")
    losses, gradients = [], []
    for a, b in zip(published.parameters(), ours.parameters(), strict=True):
        b.data.copy_(a.data)
    for model in (published, ours):
        found = list(model.parameters())
        if sum(p.numel() for p in found) != parameters:
            raise AssertionError(f"{type(model).__name__} has not {parameters:,} parameters")
        losses.append(model.loss(batch))
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(losses[-1], found)]))
    apart = (abs((losses[0] - losses[1]) / losses[0]), (gradients[0] - gradients[1]).norm())
    if apart[0] > LOSS_PARITY or apart[1] > GRADIENT_PARITY * gradients[0].norm():
        raise AssertionError(f"losses and gradients are {apart} apart")


def measure(
    latents: int, parameters: int, targets: int | None, steps: int, compiling: bool
) -> list[Contender]:
    """Every contender on every batch, in turns."""
    task = GaussianProcessTask(oracle=False, targets=targets)
    generator = torch.Generator().manual_seed(0)
    batches = [task.sample(TASKS, generator) for _ in range(IDLE + steps)]
    torch.manual_seed(0)
    check(latents, parameters, batches[0])
    found = contenders(latents, compiling)
    for batch in batches:
        for contender in found:
            contender.step(batch)
    return found


def rows(found: list[Contender]) -> list[tuple[str, str, str, str]]:
    """Median CPU-seconds, and the median over batches of how often faster than published."""
    published = found[0].seconds[IDLE:]
    lines = []
    for contender in found:
        counted = contender.seconds[IDLE:]
        ratios = [theirs / ours for theirs, ours in zip(published, counted, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        times = f"{statistics.median(ratios):.2f} ({low:.2f}–{high:.2f})"
        first = f"{contender.seconds[0]:.0f}" if "compiled" in contender.name else "–"
        lines.append((contender.name, f"{statistics.median(counted):.3f}", times, first))
    return lines


def optimisers(steps: int) -> list[tuple[str, str, str]]:
    """CPU-milliseconds of moving the weights of CMANP, whose number of latents does not matter here."""
    process = CMANP(latents=32)
    for parameter in process.parameters():
        parameter.grad = torch.randn_like(parameter)
    parameters = list(process.parameters())
    recipe = Training(optimizer="muon")
    batched, rest = build_optimizers(process, recipe)
    matrices = [p for group in batched.param_groups for p in group["params"]]
    torchs = torch.optim.Muon(matrices, lr=recipe.muon_learning_rate, weight_decay=0.0)
    ways = {
        "Adam, a loop over parameters (torch's default, published)": [torch.optim.Adam(parameters)],
        "Adam, fused": [torch.optim.AdamW(parameters, weight_decay=0.0, fused=True)],
        "Muon for matrices, torch's, one by one; AdamW for the rest": [torchs, rest],
        "Muon for matrices, ours, all of one shape at a time; AdamW for the rest": [batched, rest],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(steps):
        for name, parts in ways.items():
            begin = time.process_time()
            for part in parts:
                part.step()
            seconds[name].append(time.process_time() - begin)
    medians = {name: 1e3 * statistics.median(kept[1:]) for name, kept in seconds.items()}
    first = next(iter(medians.values()))
    return [(name, f"{value:.1f}", f"{first / value:.2f}") for name, value in medians.items()]


TEXT = """Loss, gradients and Adam for 16 tasks of the Gaussian-process protocol, float32 unless it says bf16; CPU-seconds of
one thread, median over {steps} batches, which all contenders take in turns; how many times faster than the first row,
median and quartiles over batches. The first row is written anew from the description of the released code (naive
attention with its scores in memory, six blocks one by one, heads moved into the batch, torch's default Adam); with equal
weights its loss and gradients are ours. Peer figure for that code itself, on another machine: 0.46 CPU-s.

*MKL*: torch's own product of float32 matrices, which does not use the full width of processors other than Intel's. The
other rows take oneDNN's where it was found sound and worth it ({onednn}). *bf16*: products under autocast; the residual
stream, normalisation and the optimiser stay float32. *compiled*: `torch.compile` of what a block does after it has met
the context (it needs a C++ compiler); products there are MKL's in float32."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30, help="counted steps of each contender")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings(
        "ignore", "TF32 acceleration on top of oneDNN"
    )  # switching it off, not on
    onednn = "here it was" if is_trustworthy() else "here it was not"
    tables = []
    for latents, parameters, targets, words in SIZES:
        found = measure(latents, parameters, targets, arguments.steps, not arguments.no_compile)
        header = ("step", "CPU-s", "times faster than published", "first step, CPU-s")
        tables += [f"## {words[0].upper()}{words[1:]}", markdown(header, rows(found))]
    header = ("optimiser's part of a step", "CPU-ms", "times faster than the first")
    tables += ["## The optimiser", markdown(header, optimisers(arguments.steps))]
    text = TEXT.format(steps=arguments.steps, onednn=onednn)
    write_table("training-step", "A training step of CMANP", text, *tables)


if __name__ == "__main__":
    main()
