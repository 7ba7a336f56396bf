"""Blocks that are constant along their diagonals, and sums along diagonals: each is the other's transpose.

Both are one strided copy. Indexing would move as many numbers one by one, and its gradient several times slower.
"""

# ruff: noqa: ARG004  (torch prescribes the arguments)

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def from_diagonals(
    diagonals: Float[Tensor, "*batch diagonals"], rows: int
) -> Float[Tensor, "*batch rows columns"]:
    """The block whose entry (i, j) is ``diagonals[j − i + rows − 1]``.

    Args:
        diagonals: rows + columns − 1 values, from the lower left corner to the upper right one.
        rows: of the block, at least 1.

    Returns:
        The block; differentiable any number of times, forward and backward.

    Example:
        >>> from_diagonals(torch.tensor([1, 2, 3, 4]), rows=2)
        tensor([[2, 3, 4],
                [1, 2, 3]])
    """
    return _FromDiagonals.apply(diagonals, rows)


def sum_diagonals(
    block: Float[Tensor, "*batch rows columns"],
) -> Float[Tensor, "*batch diagonals"]:
    """Sums along the diagonals of a block, from the lower left corner to the upper right one.

    Example:
        >>> sum_diagonals(torch.tensor([[2, 3, 4], [1, 2, 3]]))
        tensor([1, 4, 6, 4])
    """
    return _SumDiagonals.apply(block)


class _FromDiagonals(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(diagonals: Tensor, rows: int) -> Tensor:
        length = diagonals.shape[-1]
        columns = length - rows + 1
        if rows == 1:
            return diagonals.unsqueeze(-2).clone()
        # in a row after row repetition of the diagonals, one step down and one step right meet the same value
        repeated = diagonals.unsqueeze(-2).expand(*diagonals.shape[:-1], rows, length)
        aligned = repeated.reshape(*diagonals.shape[:-1], -1)[..., rows - 1 : -1]
        return aligned.view(*diagonals.shape[:-1], rows, length - 1)[..., :columns]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.rows = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _SumDiagonals.apply(grad), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, rows: None) -> Tensor:
        return _FromDiagonals.apply(tangent, ctx.rows)


class _SumDiagonals(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(block: Tensor) -> Tensor:
        rows, columns = block.shape[-2:]
        length = rows + columns - 1
        # written with one row length and read with another that is longer by one, diagonals stand upright
        sheared = block.new_zeros(*block.shape[:-2], rows * (length + 1))
        inner = sheared[..., rows - 1 : -1].view(*block.shape[:-1], length)
        inner[..., :columns] = block
        return sheared.view(*block.shape[:-1], length + 1)[..., :length].sum(-2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.rows = inputs[0].shape[-2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _FromDiagonals.apply(grad, ctx.rows)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return _SumDiagonals.apply(tangent)
