"""Constant memory attentive neural processes with predictions that are not diagonal, block by block.

The memory of a constant memory process, a head that predicts a block of targets jointly, and the autoregression over
blocks of ``autoregressive.py``.

Source: Feng, Tung, Hajimirsadeghi, Bengio & Ahmed, "Memory Efficient Neural Processes via Constant Memory Attention
Block", ICML 2024, and its code. Departures, each an argument: the published process is trained on single blocks only,
by a loss that grows with the number of targets, and with a covariance that depends on their order.
"""

import torch
from torch import Tensor

from synopsis.memory.layers import Residual
from synopsis.processes.autoregressive import BlockAutoregressive
from synopsis.processes.cmanp import CMANP, CMANPState
from synopsis.processes.joint import build_joint_head
from synopsis.processes.joint_gaussians import JointGaussian


class CMANPAND(BlockAutoregressive, CMANP):  # type: ignore[misc]  # predicts a joint distribution
    """CMANP with a joint head, autoregressive over blocks of targets; the defaults are the paper's sizes.

    With ``residual="normed", head="cholesky", train_splits=False, per_target=False`` it is the published process, which
    has 1,460,951 parameters for Gaussian-process regression: these and 8,578 of a diagonal head that is never trained.

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs.
        dim: width of embeddings.
        heads: attention heads, everywhere.
        blocks: constant memory attention blocks, and decoder layers.
        latents: learned queries per block.
        residual: ``"raw"`` (pre-norm; trains faster) or ``"normed"`` (the published code).
        head: ``"low-rank"`` (no order of targets), ``"cholesky"`` (published) or ``"bounded-cholesky"``.
        target_block: targets predicted jointly in :meth:`score` and :meth:`sample`; None for all.
        train_splits: train the autoregression too, on splits of the targets in two blocks, half of them in a sweep.
        per_target: divide the loss by the number of targets; see :func:`synopsis.processes.joint.joint_loss`.

    Example:
        >>> import torch
        >>> process = CMANPAND(dim_x=1, dim_y=1, dim=16, blocks=2, latents=8).eval()
        >>> state = process.update(process.init(), torch.randn(1, 20, 1), torch.randn(1, 20, 1))
        >>> process.sample(state, torch.linspace(-1, 1, 50).reshape(1, 50, 1), target_block=10).shape
        torch.Size([1, 1, 50, 1])
    """

    def __init__(  # noqa: PLR0913  (every argument is a key of the configuration)
        self,
        dim_x: int = 1,
        dim_y: int = 1,
        dim: int = 64,
        heads: int = 4,
        blocks: int = 6,
        latents: int = 128,
        residual: Residual = "raw",
        head: str = "low-rank",
        target_block: int | None = None,
        train_splits: bool = True,
        per_target: bool = True,
    ) -> None:
        super().__init__(dim_x, dim_y, dim, heads, blocks, latents, residual)
        self.config |= {"head": head, "target_block": target_block}
        self.config |= {"train_splits": train_splits, "per_target": per_target}
        self.head = build_joint_head(head, dim, dim_y, heads)  # in place of the diagonal one
        self.target_block, self.train_splits = target_block, train_splits
        self.per_target = per_target

    def answered(self, state: CMANPState, xt: Tensor, real: Tensor | None) -> JointGaussian:
        """The head on what the blocks answer."""
        return self._predict(self.trunk.read(state.blocks), xt, real)

    def swept(
        self, xc: Tensor, yc: Tensor, xt: Tensor, mask: Tensor | None, real: Tensor | None
    ) -> JointGaussian:
        """The head after one sweep over the context."""
        self.check_points(xc, yc)
        context = self.embed_context(torch.cat([xc, yc], dim=-1))
        return self._predict(self.trunk.encode(context, mask), xt, real)

    def _predict(  # type: ignore[override]  # a joint distribution
        self, answers: list[Tensor], xt: Tensor, real: Tensor | None = None
    ) -> JointGaussian:
        predicted: JointGaussian = self.head(
            self.trunk.decode(self.embed_target(xt), answers), real
        )
        return predicted


__all__ = ["CMANPAND"]
