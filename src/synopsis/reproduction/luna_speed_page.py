"""The page about training steps and streams."""

from collections.abc import Sequence

from synopsis.reproduction.costs import GIB
from synopsis.reproduction.luna_speed import BATCH, LENGTH, MICRO, Row, Settings
from synopsis.reproduction.pages import UNKNOWN, joined, made_by, mebibytes, number, table, wrapped
from synopsis.reproduction.step_costs import StepCost
from synopsis.reproduction.stream_check import Stream, StreamFacts

_STOPPED = {"time": "too long", "memory": "too much"}


def markdown(
    rows: Sequence[Row],
    folded: Sequence[tuple[Stream, StreamFacts]],
    settings: Settings,
    command: str,
) -> str:
    """The page."""
    head = _HEAD.format(
        length=settings.length,
        batch=settings.batch,
        threads=settings.threads,
        patience=settings.patience,
        most=settings.most_gib,
    )
    parts = [wrapped(head), _other(settings), _steps(rows, settings), wrapped(_STEPS)]
    parts += ["## An endless stream", wrapped(_STREAM), _streams(folded)]
    return joined([*parts, made_by(command)])


def _other(settings: Settings) -> str:
    if (settings.length, settings.batch) == (LENGTH, BATCH):
        return ""
    return f"**Not the published size**, which is {LENGTH:,} tokens in batches of {BATCH}."


def _steps(rows: Sequence[Row], settings: Settings) -> str:
    head = ["model", "CPU-s", "wall, s", "peak, GiB"]
    head += [f"{MICRO} at a time: CPU-s", "wall, s", "peak, GiB"]
    head += ["recomputed: CPU-s", "wall, s", "peak, GiB"]
    head += [
        "published way: batch",
        "peak, GiB",
        f"CPU-s for {settings.batch}",
        "ours is faster by",
    ]
    head += [f"published code, CPU-s for {BATCH}"]
    return table(head, [_row(row, settings.batch) for row in rows])


def _row(row: Row, batch: int) -> list[str]:
    line = [row.kind.title]
    for cost in (row.whole, row.cut, row.recomputed):
        line += [_seconds(cost), number(cost.seconds, 1), _gibibytes(cost)]
    published = _scaled(row.published, batch)
    line += [str(row.published.batch), _gibibytes(row.published)]
    line += [_STOPPED.get(row.published.stopped or "", number(published, 1))]
    ours = (row.whole, row.cut, row.recomputed)
    fastest = min((c.cpu_seconds for c in ours if c.cpu_seconds is not None), default=None)
    known = published is not None and fastest is not None
    line.append(f"{published / fastest:.1f} ×" if known else UNKNOWN)  # type: ignore[operator]
    return [*line, number(row.kind.found, 1)]


def _scaled(cost: StepCost, batch: int) -> float | None:
    """CPU-seconds of a step of so many sequences, from one of fewer."""
    return None if cost.cpu_seconds is None else cost.cpu_seconds * batch / cost.batch


def _seconds(cost: StepCost) -> str:
    return _STOPPED.get(cost.stopped or "", number(cost.cpu_seconds, 1))


def _gibibytes(cost: StepCost) -> str:
    return number(None if cost.peak is None else cost.peak / GIB, 2)


def _streams(folded: Sequence[tuple[Stream, StreamFacts]]) -> str:
    head = ["filter", "items", "bytes kept after a tenth", "and in the end", "peak of a tenth, MiB"]
    head += ["CPU-s", "all at once: peak, MiB", "CPU-s", "largest difference", "largest entry"]
    lines = []
    for stream, facts in folded:
        line = [f"{stream.kernel} taps, stride {stream.stride}", f"{stream.items:,}"]
        line += [f"{facts.state_bytes[0]:,}", f"{facts.state_bytes[-1]:,}"]
        low, high = mebibytes(min(facts.peaks)), mebibytes(max(facts.peaks))
        line += [low if low == high else f"{low} – {high}", number(facts.cpu_seconds, 1)]
        line += [mebibytes(facts.batch_peak), number(facts.batch_cpu_seconds, 1)]
        lines.append([*line, f"{facts.difference:.1e}".replace("-", "−"), number(facts.scale, 2)])
    return table(head, lines)


_HEAD = """# Training steps through a shared memory

One step of training (forward, backward, AdamW) on {batch} sequences of {length:,} tokens without a pad, {threads}
thread(s): a sequence classifier of 6 layers of width 128, 4 heads, feed-forward 512, dropout 0.1 of features and of
attention weights, the published settings of ListOps. Every step is measured in a process of its own: memory first, then
time, the median of three steps more, or of as many as a minute allows. *CPU-s* is processor time, the figure to
compare: wall time on a busy machine is longer. *peak* is resident memory beyond what was there before the step. *too
long*: more than {patience:g} CPU-seconds; *too much*: asked for more than {most:g} GiB."""

_STEPS = f"""*{MICRO} at a time*: the gradient of the batch is summed over pieces of {MICRO} sequences
(`micro_batch_size = {MICRO}`).
*recomputed*: only the inputs of each layer are kept, and the layer is computed again for the gradient
(`recompute = true`). *published way*: the same weights and the same function, computed as the published code does, with
every matrix of scores stored, on the batch that its memory allows, its CPU-seconds scaled to the batch of the other
columns; *ours is faster by* compares these with the fastest of ours. *published code*: CPU-seconds of that code itself,
measured before this table on a machine that others used too, for the same step, scaled in the same way; it needed 4.7
GB for 2 sequences (Transformer) and 5.5 GB for 8 (Luna and ConvLuna with 256 cells).

CPU-seconds of steps that ask for gigabytes contain what the system takes to hand them out, and that differs from
reading to reading; the steps of {MICRO} sequences at a time hardly know it."""

_STREAM = """A simplified ConvLuna layer of width 64 with 4 heads and 16 cells packs random items that arrive in pieces
of 10,000 (`synopsis.memory.ConvLuna`), and then the same items all at once. Peaks are measured anew for every tenth of
the stream."""
