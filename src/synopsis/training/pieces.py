"""A batch's gradient, some tasks at a time: what one step holds is then that of a few tasks, whatever the batch."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor


def pieces(batch: Any, size: int) -> Iterator[tuple[Any, float]]:
    """Parts of a batch, each with its share of the tasks: a mean over tasks is the sum of shares times means.

    Args:
        batch: a dataclass of tensors, each with the tasks along its first axis; other things go to every part.
        size: most tasks of a part; 0 for the batch as it is.

    Raises:
        TypeError: a batch of another kind is to be cut.

    Example:
        >>> import torch
        >>> from synopsis.tasks.sequences import SequenceBatch
        >>> batch = SequenceBatch(labels=torch.arange(5), tokens=torch.ones(5, 9, dtype=torch.int64))
        >>> [(part.labels.tolist(), share) for part, share in pieces(batch, 2)]
        [([0, 1], 0.4), ([2, 3], 0.4), ([4], 0.2)]
    """
    if size == 0:
        yield batch, 1.0
        return
    if not is_dataclass(batch) or isinstance(batch, type):
        raise TypeError(
            f"micro_batch_size cuts dataclasses of tensors, not a {type(batch).__name__}"
        )
    given = {field.name: getattr(batch, field.name) for field in fields(batch)}
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    tasks = len(next(iter(tensors.values())))
    for start in range(0, tasks, size):
        part = {name: tensor[start : start + size] for name, tensor in tensors.items()}
        yield replace(batch, **part), min(size, tasks - start) / tasks


__all__ = ["pieces"]
