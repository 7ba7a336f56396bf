"""What is under test, asked in one way whether it is a memory or a process; and how checks complain."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from synopsis.processes import Process

TOLERANCE = 1e-5  # of answers, relative to one plus their size: float32 through a dozen layers
LENGTH, STREAMS, QUESTIONS = 24, 3, 5

Points = tuple[Tensor, ...]


@dataclass(frozen=True)
class Subject:
    """A memory or a process under test.

    Args:
        module: a copy of it, in evaluation mode.
        widths: of the tensors that make up a point: ``(dim,)`` or ``(dim_x, dim_y)``.
        question: targets or latents that every stream is asked.
    """

    module: Any
    widths: tuple[int, ...]
    question: Tensor

    @classmethod
    def memory(cls, memory: nn.Module, dim: int) -> "Subject":
        """A memory of items of width ``dim``."""
        return cls(copy.deepcopy(memory).eval(), (dim,), _draw(memory, (1, QUESTIONS, dim), 0))

    @classmethod
    def process(cls, process: Process) -> "Subject":
        """A neural process."""
        question = _draw(process, (1, QUESTIONS, process.dim_x), 0)
        return cls(copy.deepcopy(process).eval(), (process.dim_x, process.dim_y), question)

    def points(self, seed: int, length: int = LENGTH, streams: int = STREAMS) -> Points:
        """The same random points at every call with this seed."""
        return tuple(
            _draw(self.module, (streams, length, width), 100 * seed + part)
            for part, width in enumerate(self.widths, start=1)
        )

    def after(self, *pieces: Points, state: Any = None, mask: Tensor | None = None) -> Any:
        """The state after these pieces, from nothing unless a state is given."""
        state = self.module.init((len(pieces[0][0]),)) if state is None else state
        with torch.no_grad():
            for piece in pieces:
                state = self.module.update(state, *piece, mask)
        return state

    def answer(self, state: Any) -> Tensor:
        """Everything the module answers to the question, ``(streams, numbers)``."""
        question = self.question.expand(len(state.count), -1, -1)
        with torch.no_grad():
            if isinstance(self.module, Process):
                predicted = self.module.predict(state, question)
                answers = [predicted.mean, predicted.stddev]
            else:
                answers = tree_leaves(self.module.read(state, question))
        return torch.cat([answer.flatten(1) for answer in answers], dim=1)

    @property
    def bounded(self) -> bool:
        """Whether the state is of constant size: a module whose state grows says ``bounded = False``."""
        return bool(getattr(self.module, "bounded", True))

    def ragged_mask(self) -> Tensor:
        """One stream whole, one with holes, and the last with nothing real."""
        mask = _draw(self.module, (STREAMS, LENGTH, 1), 7)[..., 0] > 0
        mask[0], mask[-1] = True, False
        return mask


def require(holds: bool, complaint: str) -> None:
    """Raise AssertionError with this sentence unless it holds."""
    if not holds:
        raise AssertionError(complaint)


def same(found: Tensor, expected: Tensor, complaint: str) -> None:
    """Raise AssertionError unless answers agree within TOLERANCE; NaN never agrees."""
    require(
        found.shape == expected.shape,
        f"{complaint}: {tuple(found.shape)} numbers, not {tuple(expected.shape)}",
    )
    excess = (found - expected).abs() / (1.0 + expected.abs())
    worst = float(excess.max()) if excess.numel() else 0.0
    require(worst <= TOLERANCE, f"{complaint}: they differ by {worst:.3g}, allowed {TOLERANCE:.3g}")


def refuses(what: str, action: Callable[[], object], error: type[Exception] = ValueError) -> None:
    """Raise AssertionError unless the action raises this error."""
    try:
        action()
    except error:
        return
    except Exception as other:
        raise AssertionError(
            f"{what}: {type(other).__name__} instead of {error.__name__}: {other}"
        ) from other
    raise AssertionError(f"{what} was accepted; expected a {error.__name__}")


def _draw(module: nn.Module, shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal numbers where the module lives, in its dtype."""
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return numbers.to(like)
