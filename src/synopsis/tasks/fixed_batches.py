"""Batches that are the same wherever and whenever they are drawn."""

from collections.abc import Iterable, Iterator

import numpy as np
from torch import Generator

from synopsis.tasks.base import Batch, Task

WEYL_STEP = 0x9E3779B1  # odd: a bijection modulo 2³²; near 2³² / golden ratio: well spread


def batch_generator(seed: int, index: int) -> Generator:
    """The generator of batch ``index`` of the set ``seed``, 0 or more.

    torch's CPU generator keeps 32 bits of a seed; within a set no two of 2³² batches share theirs.
    """
    origin = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return Generator().manual_seed((origin + WEYL_STEP * index) % 2**32)


def evaluation_batches(
    task: Task, batches: int | Iterable[int], batch_size: int, seed: int
) -> Iterator[Batch]:
    """Fixed batches, each from a generator of its own: any of them can be made alone, anywhere.

    Args:
        task: what to draw from.
        batches: how many, or the indices of those wanted, in any order.
        batch_size: tasks per batch; part of what identifies a set.
        seed: names the set, 0 or more.

    Example:
        >>> from synopsis.tasks.gaussian_process import GaussianProcessTask
        >>> task = GaussianProcessTask()
        >>> last = [*evaluation_batches(task, 100, 16, seed=0)][99]
        >>> alone = next(evaluation_batches(task, [99], 16, seed=0))
        >>> bool((last.yt == alone.yt).all())
        True
    """
    for index in range(batches) if isinstance(batches, int) else batches:
        yield task.sample(batch_size, batch_generator(seed, index))


__all__ = ["batch_generator", "evaluation_batches"]
