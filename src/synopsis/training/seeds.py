"""Every random number of a run from (seed, purpose, step): what is drawn at a step depends on
nothing that happened before it, so that continuing a run needs no generator's state."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived_seed(seed: int, purpose: str, *indices: int) -> int:
    """A seed of 64 bits, unrelated to that of any other purpose or index.

    Args:
        seed: of the whole run, at least 0.
        purpose: what is drawn, such as ``"task"``.
        indices: step, rank and the like, each at least 0.

    Returns:
        A whole number in [0, 2**64), the same on every machine.

    Example:
        >>> derived_seed(0, "task", 1) == derived_seed(0, "task", 2)
        False
    """
    # Not numpy's SeedSequence, to which [seed] and [seed, 0] are the same.
    name = "/".join(map(str, (seed, purpose, *indices))).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def seed_torch(seed: int) -> None:
    """Seed torch's global generators.

    ``torch.manual_seed`` formats a stack trace for devices that are not there on every call,
    which is too slow for every step.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seed torch's global generators inside, and leave them afterwards as they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        seed_torch(seed)
        yield
