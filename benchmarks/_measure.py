"""Measuring: CPU-seconds as medians, peak memory in a fresh process, and tables."""

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from synopsis.attention.resident_memory import measured_call

TABLES = Path(__file__).parent.parent / "docs" / "tables"


def cpu_seconds(work: Callable[[], Any], repeats: int, warmup: int = 1) -> float:
    """Median CPU-seconds of one call, all threads together."""
    for _ in range(warmup):
        work()
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        seconds.append(time.process_time() - begin)
    return statistics.median(seconds)


def in_fresh_process(script: str, *arguments: object) -> Any:
    """Run a benchmark script again with arguments; it prints one line of JSON last."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def extra_mib(call: Callable[[], Any]) -> float:
    """Peak memory of one call above what is resident before it, MiB; right only in a fresh process."""
    return measured_call(call)[0] / 2**20


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_table(name: str, title: str, text: str, *tables: str) -> None:
    """Write docs/tables/NAME.md, with the command and the versions that made it, and print it."""
    TABLES.mkdir(parents=True, exist_ok=True)
    made = (
        f"Made by `python benchmarks/{Path(sys.argv[0]).name}` with torch {torch.__version__}, "
        f"Python {platform.python_version()}, {torch.get_num_threads()} thread(s)."
    )
    page = "\n\n".join([f"# {title}", text, *tables, made]) + "\n"
    (TABLES / f"{name}.md").write_text(page)
    print(page)
