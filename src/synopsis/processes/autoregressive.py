"""Processes that predict targets block by block, each block told the values of those before it.

Within a block the distribution of the targets is one joint Gaussian; before the next block the process is told the
values of this one, as it is told of any points. So the joint density of many targets takes no more than one block's
worth of attention and covariance at a time, and a memory of constant size stays of constant size.

Source: Feng, Tung, Hajimirsadeghi, Bengio & Ahmed, "Memory Efficient Neural Processes via Constant Memory Attention
Block", ICML 2024. Departure, an argument of the processes: the published one is trained on single blocks only.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor
from torch.utils._pytree import tree_map

from synopsis.memory.layers import blank
from synopsis.processes.base import Process
from synopsis.processes.heads import Gaussian
from synopsis.processes.joint import JointProcess, joint_loss
from synopsis.processes.joint_gaussians import JointGaussian
from synopsis.states import check_streams
from synopsis.tasks import Batch

_SPLIT = 0.5  # share of training batches that are split: 1.5 conditionings per batch on average
_SWEPT = 0.5  # share of the splits that cut through a sweep


class BlockAutoregressive(JointProcess, Process, abstract=True):
    """What a process with a joint head does with more than one block of targets; a mixin, to be named first.

    A subclass implements :meth:`answered` and :meth:`swept`; its constructor sets the attributes below.
    """

    target_block: int | None  # targets predicted jointly in score and sample; None for all
    train_splits: bool  # train the autoregression too, on random splits and sweeps of the targets

    def predict(  # type: ignore[override]  # a joint distribution
        self,
        state: Any,
        xt: Float[Tensor, "batch targets dim_x"],
        real: Bool[Tensor, "batch targets"] | None = None,
    ) -> JointGaussian:
        """The joint distribution of all targets as one block; nothing is learned and nothing changes.

        Args:
            state: what was seen.
            xt: target inputs.
            real: True where a target is real; the others are neither predicted nor seen by those that are.
        """
        self.check_points(xt)
        self.check_belongs(state)
        check_streams(state, len(xt))
        return self.answered(state, blank(xt, real), real)

    def jointly(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None,
        real: Bool[Tensor, "batch targets"] | None,
    ) -> JointGaussian:
        """Predict all targets as one block; in training mode by one fused, differentiable sweep."""
        if not self.training:
            return self.predict(self.update(self.init((len(xc),)), xc, yc, mask), xt, real)
        return self.swept(xc, yc, xt, mask, real)

    def answered(self, state: Any, xt: Tensor, real: Tensor | None) -> JointGaussian:
        """What :meth:`predict` answers, once everything is checked and padding is 0."""
        raise NotImplementedError

    def swept(
        self, xc: Tensor, yc: Tensor, xt: Tensor, mask: Tensor | None, real: Tensor | None
    ) -> JointGaussian:
        """What :meth:`jointly` answers in training mode."""
        raise NotImplementedError

    def score(self, batch: Batch) -> tuple[Float[Tensor, " batch"], Gaussian]:
        """Joint log-density in blocks of ``target_block`` (nats), and each target by itself given the context only."""
        if self.target_block is None:
            return super().score(batch)
        state = self.init((len(batch.xc),))
        state = self.update(state, batch.xc, batch.yc, batch.context_mask)
        log_likelihood = self.teacher_forced(state, batch.xt, batch.yt, batch.target_mask)
        return log_likelihood, self.predict(state, batch.xt, batch.target_mask).marginals

    def teacher_forced(
        self,
        state: Any,
        xt: Float[Tensor, "batch targets dim_x"],
        yt: Float[Tensor, "batch targets dim_y"],
        real: Bool[Tensor, "batch targets"] | None = None,
        target_block: int | None = None,
    ) -> Float[Tensor, " batch"]:
        """Joint log-density of targets block by block, each given the true values of those before it.

        Args:
            state: what was seen.
            xt: target inputs, in the order in which blocks are cut.
            yt: target outputs.
            real: True where a target is real; None when all are.
            target_block: targets per block; None for the configuration's.

        Returns:
            Nats per task. This is the density of one coherent process, whatever the block.
        """
        log_likelihood = torch.zeros(len(xt), device=xt.device)
        for piece in self._pieces(xt.shape[1], target_block):
            x, y, kept = xt[:, piece], yt[:, piece], None if real is None else real[:, piece]
            log_likelihood = log_likelihood + self.predict(state, x, kept).log_prob(y)
            if piece.stop < xt.shape[1]:
                state = self.update(state, x, y, kept)
        return log_likelihood

    def sample(
        self,
        state: Any,
        xt: Float[Tensor, "batch targets dim_x"],
        target_block: int | None = None,
        generator: Generator | None = None,
        samples: int = 1,
    ) -> Float[Tensor, "samples batch targets dim_y"]:
        """Whole functions: block after block is drawn, and told to the process before the next.

        Args:
            state: what was seen; it stays as it is.
            xt: target inputs, in the order in which blocks are cut.
            target_block: targets per block; None for the configuration's.
            generator: of the draws; None for torch's own.
            samples: functions per stream.

        Returns:
            Outputs at the targets. In blocks of one target this draws the functions point by point.
        """
        xt = xt.repeat(samples, 1, 1)
        drawn = [xt.new_zeros(len(xt), 0, self.dim_y)]
        with torch.no_grad():
            state = tree_map(lambda t: t.repeat(samples, *[1] * (t.dim() - 1)), state)
            for piece in self._pieces(xt.shape[1], target_block):
                predicted = self.predict(state, xt[:, piece])
                noise = _normal((len(xt), predicted.noise), generator).to(predicted.mean)
                drawn.append(predicted.from_noise(noise).to(xt))
                if piece.stop < xt.shape[1]:
                    state = self.update(state, xt[:, piece], drawn[-1])
        return torch.cat(drawn, dim=1).unflatten(0, (samples, -1))

    def loss(self, batch: Batch) -> Tensor:
        """Negative joint log-likelihood of one block or, where the batch is split, of two.

        Half of the splits cut through targets that lie in order, so that blocks are trained which end where the next
        begins, as they do when a function is drawn from one end to the other: without them such draws diverge.
        """
        parts = [batch]
        targets = batch.xt.shape[1]
        if self.training and self.train_splits and targets > 1 and float(torch.rand(())) < _SPLIT:
            swept = float(torch.rand(())) < _SWEPT
            whole = sweep(batch, torch.randn(batch.xt.shape[-1])) if swept else batch
            parts = [*split(whole, int(torch.randint(1, targets, ())))]
        blocks = [self.joint(part).log_prob(part.yt) for part in parts]
        return joint_loss(torch.stack(blocks).sum(0), batch, self.per_target)

    def _pieces(self, targets: int, target_block: int | None) -> Iterator[slice]:
        """Blocks of targets, the last of them possibly smaller."""
        block = target_block if target_block is not None else self.target_block or max(targets, 1)
        if block < 1:
            raise ValueError(f"target_block is {block}; it must be at least 1")
        for start in range(0, targets, block):
            yield slice(start, min(start + block, targets))


def split(batch: Batch, at: int) -> tuple[Batch, Batch]:
    """The first targets given the context, and the other targets given the context and the first.

    Args:
        batch: with more than ``at`` targets.
        at: how many targets are first, at least 1.
    """
    real = batch.target_mask
    first = replace(batch, xt=batch.xt[:, :at], yt=batch.yt[:, :at], oracle=None, joint_oracle=None)
    then = replace(first, xt=batch.xt[:, at:], yt=batch.yt[:, at:])
    then = replace(
        then, xc=torch.cat([batch.xc, first.xt], dim=1), yc=torch.cat([batch.yc, first.yt], dim=1)
    )
    masks = (batch.context_mask, None if real is None else real[:, :at])
    if masks != (None, None):
        points = (batch.xc, first.xt)
        whole = [
            torch.ones_like(x[..., 0], dtype=torch.bool) if mask is None else mask
            for mask, x in zip(masks, points, strict=True)
        ]
        then = replace(then, context_mask=torch.cat(whole, dim=1))
    if real is not None:
        first = replace(first, target_mask=real[:, :at])
        then = replace(then, target_mask=real[:, at:])
    return first, then


def sweep(batch: Batch, direction: Float[Tensor, " dim_x"]) -> Batch:
    """The same tasks with their targets in order along a direction, padding last.

    Args:
        batch: what is not given among its inputs counts as 0.
        direction: of the input space; only where it points counts.
    """
    place = batch.xt.nan_to_num(nan=0.0) @ direction.to(batch.xt)
    if batch.target_mask is not None:
        place = place.masked_fill(~batch.target_mask, torch.inf)
    order = place.argsort(dim=1, stable=True)
    rows = order.unsqueeze(-1)
    return replace(
        batch,
        xt=batch.xt.take_along_dim(rows, 1),
        yt=batch.yt.take_along_dim(rows, 1),
        target_mask=None if batch.target_mask is None else batch.target_mask.gather(1, order),
        oracle=None,
        joint_oracle=None,
    )


def _normal(shape: tuple[int, ...], generator: Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device)


__all__ = ["BlockAutoregressive", "split", "sweep"]
