"""Attention to keys and values on disk against torch's on resident ones: memory, CPU-seconds, and parts that merge."""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _measure import extra_mib, in_fresh_process, markdown, write_table

from synopsis import AttentionState
from synopsis.attention.sources import open_source
from synopsis.attention.stream import streaming_attention

QUERIES, DIM, SHARDS, REPEATS = 256, 64, 8, 5
BLOCKS = (16384, 32768)


def generate(folder: Path, keys: int) -> None:
    """Standard normal keys and values, written a piece at a time."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(1)
    np.save(folder / "q.npy", torch.randn(QUERIES, DIM).numpy())
    for name in ("k", "v"):
        shape = (keys, DIM)
        out = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, shape)
        for start in range(0, keys, 65536):
            rows = min(65536, keys - start)
            out[start : start + rows] = torch.randn(rows, DIM, generator=generator).numpy()
        out.flush()


def read_query(folder: Path) -> torch.Tensor:
    return torch.from_numpy(np.load(folder / "q.npy"))


def streamed(folder: Path, block: int) -> torch.Tensor:
    source = open_source(folder / "k.npy", folder / "v.npy")
    return streaming_attention(read_query(folder), source.blocks(block))


def extra_memory(folder: Path, block: int) -> None:
    """Printed by a fresh process: MiB above what it takes to have torch and its kernels loaded."""
    torch.set_num_threads(1)
    small = torch.randn(2, 1, 2048, DIM)
    streaming_attention(small[0], [(small[0], small[1])])
    print(json.dumps(extra_mib(lambda: streamed(folder, block))))


def seconds(folder: Path) -> dict[str, float]:
    """Least CPU-seconds of each; rounds alternate, so that all meet the same machine."""
    query = read_query(folder)[None, None]
    key, value = (torch.from_numpy(np.load(folder / f"{n}.npy"))[None, None] for n in "kv")
    works = {
        "resident": lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value)
    }
    for block in BLOCKS:
        works[str(block)] = lambda block=block: streamed(folder, block)
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(REPEATS):
        for name, work in works.items():
            begin = time.process_time()
            work()
            found[name].append(time.process_time() - begin)
    return {name: min(times) for name, times in found.items()}


def shard_error(folder: Path, keys: int, dtype: torch.dtype) -> float:
    """Largest difference between eight parts merged in a random tree and float64 all at once."""
    query = read_query(folder).to(dtype)
    key, value = (
        torch.from_numpy(np.load(folder / f"{n}.npy", mmap_mode="c"))[:keys] for n in "kv"
    )
    scores = query.double() @ key.double().T / DIM**0.5
    exact = scores.softmax(-1) @ value.double()
    empty = AttentionState.empty(query, DIM)
    cuts = sorted(random.Random(0).sample(range(1, keys), SHARDS - 1))
    bounds = zip([0, *cuts], [*cuts, keys], strict=True)
    parts = [empty.update(key[a:b].to(dtype), value[a:b].to(dtype)) for a, b in bounds]
    chance = random.Random(1)
    while len(parts) > 1:
        chosen = [parts.pop(chance.randrange(len(parts))) for _ in range(2)]
        parts.append(chosen[0].merge(chosen[1]))
    return float((parts[0].output.double() - exact).abs().max())


def command_error(folder: Path) -> float:
    """The same through `synopsis attend` and the result of `streaming_attention`."""
    out = folder / "o.npy"
    files = [folder / f"{name}.npy" for name in "qkv"]
    command = [sys.executable, "-m", "synopsis", "attend", files[0], "--keys", files[1]]
    command += ["--values", files[2], "--out", out, "--quiet"]
    subprocess.run(list(map(str, command)), check=True)
    return float((torch.from_numpy(np.load(out)) - streamed(folder, BLOCKS[-1])).abs().max())


def main(keys: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder, keys)
        memory = {b: in_fresh_process(__file__, "--measure", folder, b) for b in BLOCKS}
        taken = seconds(folder)
        resident = taken["resident"]
        some = min(keys, 1 << 18)
        errors = [shard_error(folder, some, dtype) for dtype in (torch.float64, torch.float32)]
        command = command_error(folder)
    size = 2 * keys * DIM * 4 / 2**20
    rows = [("torch, resident", f"{size:,.0f}", f"{resident:.2f}", "1.00")]
    rows += [
        (
            f"streamed, blocks of {b:,}",
            f"{memory[b]:.1f}",
            f"{taken[str(b)]:.2f}",
            f"{taken[str(b)] / resident:.2f}",
        )
        for b in BLOCKS
    ]
    write_table(
        "streaming-attention",
        "Attention to keys on disk",
        f"{keys:,} keys and values of width {DIM} in two .npy files ({size:,.0f} MiB, in the page cache), {QUERIES} "
        f"queries, float32. Extra memory is the peak of a call in a fresh process above what is resident before it; CPU-seconds are the "
        f"least of {REPEATS} alternating rounds, reading included. Goal: ≤ 64 MiB, ≤ 1.25.",
        markdown(("attention", "extra memory, MiB", "CPU-s", "÷ resident"), rows),
        f"{SHARDS} parts of {some:,} keys, cut anywhere and merged in a random tree, against float64 all at once: "
        f"largest error {errors[0]:.1e} in float64 (goal ≤ 1e-12), {errors[1]:.1e} in float32 (goal ≤ 1e-6). "
        f"`synopsis attend` on the same files differs from the library by {command:.1e}.",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, default=1 << 22, help="fewer for a quick look")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        extra_memory(Path(options.measure[0]), int(options.measure[1]))
    else:
        main(options.keys)
