"""Exact attention beside torch's: time, memory and error, each with its goal.

``--quick`` takes short sequences, for development; ``--long`` eight heads at 16,384 too (the better part of an hour).
"""

import argparse
from dataclasses import dataclass, replace

import torch
from _attention_cases import (
    WINDOW,
    Case,
    alibi,
    causal,
    documents,
    dropout,
    errors,
    extra_mib,
    learned_bias,
    ours,
    relative_table,
    side_by_side,
    temperature,
    torchs,
    window,
)
from _measure import markdown, write_table
from torch.nn import functional as F

from synopsis import scaled_dot_product_attention
from synopsis.attention.measurement import Cell, FreshProcesses

Row = tuple[str, ...]
_DIRECTIONS = {False: "forward", True: "forward + backward"}


@dataclass(frozen=True)
class Sizes:
    """Lengths of one run.

    Args:
        plain: (length, heads, rounds) of the rows that torch can do as well.
        options: length of the timed rows that it cannot.
        memory: (length, heads) of the rows about memory.
        window: length of the row with a sliding window.
        documents: length of the row with 16 documents.
        paper: length of the row about the paper's overhead, one head.
    """

    plain: tuple[tuple[int, int, int], ...] = ((4096, 8, 5), (16384, 1, 3))
    options: int = 4096
    memory: tuple[int, int] = (16384, 1)
    window: int = 65536
    documents: int = 16384
    paper: int = 16384


_QUICK = Sizes(((1024, 8, 7), (2048, 8, 5)), 1024, (2048, 8), 8192, 4096, 4096)
_LONG = Sizes(((4096, 8, 5), (16384, 8, 3)), 4096, (16384, 8), 65536, 16384, 16384)


def memory_rows(sizes: Sizes) -> list[Row]:
    """MiB beyond inputs and outputs, gradients among these; all before this process computes anything."""
    length, heads = sizes.memory
    setting = {"length": length, "heads": heads, "differentiate": True}
    biased = {"length": sizes.options, "options": learned_bias, "differentiate": True}
    cases: list[tuple[str, Case, float | None, Case | None]] = [
        ("plain", ours(**setting), None, torchs(**setting)),
        ("d_v = 32", ours(**setting, value_dim=32), 64, None),
        ("dropout 0.1", ours(**setting, options=dropout), 64, None),
        ("score_mod, learned factor per head", ours(**setting, options=temperature), 64, None),
        ("learned slopes (ALiBi)", ours(**setting, options=alibi), 16, None),
        ("learned table of distances", ours(**setting, options=relative_table), 16, None),
        ("learned dense bias", ours(**biased), 32, torchs(**biased)),
    ]
    rows = []
    for name, case, goal, peer in cases:
        theirs = "–" if peer is None else f"{extra_mib(peer):,.1f}"
        shape = f"{case.length:,}, {case.heads}"
        reached = f"{extra_mib(case):,.1f}"
        rows.append((name, shape, theirs, reached, "torch's" if goal is None else f"≤ {goal:g}"))
    return rows


def paper_rows(sizes: Sizes) -> list[Row]:
    """How many times less overhead than standard attention, counted as in the paper."""
    rows, n = [], sizes.paper
    with FreshProcesses() as fresh:
        for differentiate, published in ((False, "59×"), (True, "32×")):
            standard, mine = (
                fresh.measure(Cell(method, n, n, differentiate=differentiate), repeats=1)
                for method in ("standard", "synopsis")
            )
            assert standard is not None and mine is not None
            ratio = standard.overhead / max(mine.overhead, 1)
            rows.append(
                (
                    f"{_DIRECTIONS[differentiate]}, n = {n:,}",
                    published,
                    f"{ratio:,.0f}×",
                    "≥ 1,000×",
                )
            )
    return rows


def speed_rows(sizes: Sizes) -> list[Row]:
    """Where torch's fused kernel applies: ours over its time."""
    rows = []
    for length, heads, rounds in sizes.plain:
        for dtype in (torch.float32, torch.bfloat16):
            for name, options in (("plain", None), ("causal", causal)):
                for differentiate, what in _DIRECTIONS.items():
                    settings = {"heads": heads, "dtype": dtype, "differentiate": differentiate}
                    if options is not None:
                        settings["options"] = options
                    cases = [torchs(length, **settings), ours(length, **settings)]
                    goals = ["≤ 1.05" if differentiate else "≤ 1.03"]
                    if dtype == torch.float32 and options is None and length == sizes.plain[0][0]:
                        cases.append(replace(cases[1], engine="tiles"))
                        goals.append("≤ 1.25")
                    rows += _ratios(f"{name} {_name(dtype)}, {what}", cases, rounds, goals)
    return rows


def _ratios(name: str, cases: list[Case], rounds: int, goals: list[str]) -> list[Row]:
    first, *others = side_by_side(cases, rounds)
    rows = []
    for case, seconds, goal in zip(cases[1:], others, goals, strict=True):
        label = f"{name}, tile engine" if case.engine == "tiles" else name
        times = (f"{first * 1e3:,.1f}", f"{seconds * 1e3:,.1f}")
        rows.append(
            (label, f"{case.length:,}, {case.heads}", *times, f"{seconds / first:.2f}", goal)
        )
    return rows


def option_rows(sizes: Sizes) -> list[Row]:
    """What torch's fused kernel does not take: time over that of plain attention in the same run."""
    length, rounds = sizes.options, 3
    setting = {"length": length, "differentiate": True}
    cases = {
        "d_v = 32": (ours(**setting, value_dim=32), "≤ 1.6"),
        "dropout 0.1": (ours(**setting, options=dropout), "≤ 1.6"),
        "score_mod, learned factor per head": (ours(**setting, options=temperature), "≤ 1.6"),
        "learned slopes (ALiBi)": (ours(**setting, options=alibi), ""),
        "learned table of distances": (ours(**setting, options=relative_table), ""),
    }
    plain, *seconds = side_by_side(
        [torchs(**setting), *(case for case, _ in cases.values())], rounds
    )
    rows = [
        (name, f"{length:,}, 8", f"{plain * 1e3:,.1f}", f"{s * 1e3:,.1f}", f"{s / plain:.2f}", goal)
        for (name, (_, goal)), s in zip(cases.items(), seconds, strict=True)
    ]
    return [*rows, *_bias_row(length), *_skipping_rows(sizes, plain / length**2)]


def _bias_row(length: int) -> list[Row]:
    """Here the peer is torch's own path for a mask with a gradient."""
    setting = {"length": length, "differentiate": True, "options": learned_bias}
    theirs, mine = side_by_side([torchs(**setting), ours(**setting)], 3)
    times = (f"{theirs * 1e3:,.1f}", f"{mine * 1e3:,.1f}", f"{mine / theirs:.2f}")
    return [
        ("learned dense bias (reference: torch with the bias)", f"{length:,}, 8", *times, "≤ 0.40")
    ]


def _skipping_rows(sizes: Sizes, per_pair: float) -> list[Row]:
    """Time over that of the pairs that may attend; ``per_pair`` is plain attention's, forward + backward."""
    length = sizes.options
    forward_full, tiles_full, tiles_causal = side_by_side(
        [
            torchs(length),
            ours(length, engine="tiles"),
            ours(length, engine="tiles", options=causal),
        ],
        3,
    )
    half = f"{length:,}, 8", f"{tiles_full / 2 * 1e3:,.1f}", f"{tiles_causal * 1e3:,.1f}"
    rows: list[Row] = [
        (
            "causal, tile engine, forward (reference: half of plain)",
            *half,
            f"{2 * tiles_causal / tiles_full:.2f}",
            "",
        )
    ]
    window_pairs, document_pairs = sizes.window * WINDOW, sizes.documents**2 // 16
    for name, n, options, pairs in (
        (f"window of {WINDOW:,}", sizes.window, window, window_pairs),
        ("16 documents", sizes.documents, documents, document_pairs),
    ):
        for differentiate, what in _DIRECTIONS.items():
            share = pairs * (per_pair if differentiate else forward_full / length**2)
            case = ours(n, options=options, differentiate=differentiate)
            (seconds,) = side_by_side([case], 1 if n > 20_000 else 3)
            label = f"{name}, {what} (reference: the share of the full time)"
            times = (f"{share * 1e3:,.1f}", f"{seconds * 1e3:,.1f}", f"{seconds / share:.2f}")
            rows.append((label, f"{n:,}, 8", *times, "≤ 1.5"))
    return rows


def error_rows() -> list[Row]:
    """Largest errors against float64, n = 1,024, two heads."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for is_causal in (False, True):
            theirs = errors(F.scaled_dot_product_attention, dtype, is_causal)
            mine = errors(scaled_dot_product_attention, dtype, is_causal)
            for what, a, b in zip(("output", "gradients"), theirs, mine, strict=True):
                name = f"{'causal' if is_causal else 'plain'} {_name(dtype)}, {what}"
                rows.append((name, f"{a:.1e}", f"{b:.1e}", f"{b / a:.2f}", "≤ 2"))
    return rows


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_TEXT = """Batch 1, width 64, N(0, 1) inputs. Times are medians of CPU-milliseconds over rounds that alternate
between the columns of a row. Memory is what a call in a process of its own needs at its peak beyond inputs and outputs;
gradients are outputs. The full time of which the window and the documents have a share is not measured at their length:
it is torch's plain attention at the length of the other rows, times the ratio of the numbers of pairs."""
_SHAPE = "length, heads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short sequences; writes no page")
    parser.add_argument("--long", action="store_true", help="eight heads at 16,384 everywhere")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    sizes = _QUICK if asked.quick else _LONG if asked.long else Sizes()
    torch.set_num_threads(asked.threads)
    memory, paper = memory_rows(sizes), paper_rows(sizes)
    speed, options, error = speed_rows(sizes), option_rows(sizes), error_rows()
    times = ("reference, ms", "Synopsis, ms", "ratio", "goal")
    tables = [
        "## Where torch's fused kernel applies",
        markdown(("case", _SHAPE, "torch, ms", *times[1:]), speed),
        "## Where it does not (reference: torch's plain attention, unless the row says otherwise)",
        markdown(("case, forward + backward", _SHAPE, *times), options),
        "## Memory, forward + backward",
        markdown(("case", _SHAPE, "torch, MiB", "Synopsis, MiB", "goal"), memory),
        "## Overhead of standard attention over ours, one head, as the paper counts it",
        markdown(("direction", "paper", "reached", "goal"), paper),
        "## Largest error against float64",
        markdown(("case", "torch", "Synopsis", "ratio", "goal"), error),
    ]
    title = "Exact attention beside torch's"
    if asked.quick:
        print("\n\n".join([title, *tables]))
    else:
        write_table("attention", title, _TEXT, *tables)


if __name__ == "__main__":
    main()
