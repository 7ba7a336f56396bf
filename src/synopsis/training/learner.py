"""What changes while training: weights, moments, their moving average; and one step of all of it."""

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from synopsis.training.experiment import Training
from synopsis.training.optimizers import build_optimizers
from synopsis.training.pieces import pieces
from synopsis.training.trainees import Trainee

MOST_SKIPPED_IN_A_ROW = 20
_MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")


class TrainingDiverged(RuntimeError):
    """Too many gradients in a row were not finite: the weights cannot recover by themselves."""


class _Objective(nn.Module):
    """A trainee whose ``forward`` is its loss: autocast and data parallel hook into ``forward``."""

    def __init__(self, trainee: Trainee) -> None:
        super().__init__()
        self.trainee = trainee

    def forward(self, batch: Any) -> Tensor:
        return self.trainee.loss(batch)


@dataclass
class Tally:
    """Sums since the last line of metrics, and how many steps were skipped.

    Args:
        loss: sum over the steps taken.
        norm: sum of the gradients' norms before clipping.
        taken: steps taken since the last line.
        skipped: steps skipped since the run began.
        in_a_row: steps skipped since the last one taken.
    """

    loss: float = 0.0
    norm: float = 0.0
    taken: int = 0
    skipped: int = 0
    in_a_row: int = 0

    def take(self, loss: float, norm: float) -> None:
        """Count one step taken."""
        self.loss, self.norm, self.taken = self.loss + loss, self.norm + norm, self.taken + 1
        self.in_a_row = 0

    def skip(self) -> None:
        """Count one step skipped."""
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1

    def means(self) -> dict[str, float | None]:
        """Mean loss and norm since the last call; None where no step was taken."""
        taken = self.taken
        means = {"loss": self.loss, "gradient_norm": self.norm}
        self.loss, self.norm, self.taken = 0.0, 0.0, 0
        return {name: total / taken if taken else None for name, total in means.items()}


class MovingAverage:
    """Exponential moving average of a trainee's weights; buffers are copied.

    Not torch's ``AveragedModel``, whose loop over the parameters costs ten times its arithmetic.

    Args:
        trainee: followed; its present weights begin the average.
        decay: share of the old average that each update keeps, in (0, 1).

    Source: Polyak and Juditsky 1992; the exponential form, as in Kingma and Ba 2015, section 7.2.
    """

    def __init__(self, trainee: Trainee, decay: float) -> None:
        self.trainee = deepcopy(trainee).requires_grad_(False)
        self._averages = list(self.trainee.parameters())
        self._weights = list(trainee.parameters())
        self._buffers = list(zip(self.trainee.buffers(), trainee.buffers(), strict=True))
        self._blend = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Let the average take one step towards the present weights."""
        self._blend(self._averages, self._weights, 0)
        for average, buffer in self._buffers:
            average.copy_(buffer)


class Learner:
    """Weights under their optimisers, with clipping and a moving average.

    Args:
        trainee: moved to the accelerator's device, trained in place.
        training: the optimiser's settings.
        accelerator: device, precision and data parallel.
    """

    def __init__(self, trainee: Trainee, training: Training, accelerator: Accelerator) -> None:
        self.trainee = trainee
        self.tally = Tally()
        self._clip, self._piece = training.clip, training.micro_batch_size
        self._accelerator = accelerator
        self._objective = accelerator.prepare(_Objective(trainee))
        self._parameters = {
            name: parameter
            for name, parameter in trainee.named_parameters()
            if parameter.requires_grad
        }
        self._optimizers = build_optimizers(trainee, training)
        self._optimizer_of = {
            parameter: optimizer
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        self._average = MovingAverage(trainee, training.ema) if training.ema > 0 else None

    @property
    def result(self) -> Trainee:
        """What to evaluate and export: the moving average where there is one."""
        return self.trainee if self._average is None else self._average.trainee

    def learn(self, batch: Any, learning_rate: float) -> float:
        """Take one step, or skip it when the gradient is not finite.

        Args:
            batch: on the accelerator's device.
            learning_rate: of this step.

        Returns:
            The loss before the step, averaged over all devices.

        Raises:
            TrainingDiverged: after ``MOST_SKIPPED_IN_A_ROW`` skipped steps.
        """
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["share"]
            optimizer.zero_grad(set_to_none=True)
        loss = self._backward(batch)
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        norm = get_total_norm(gradients)
        value, size = self._mean(loss), norm.item()
        if math.isfinite(size):
            self._step(norm)
            self.tally.take(value, size)
        else:
            self._skip(size)
        return value

    def _backward(self, batch: Any) -> Tensor:
        """Leave the gradient of the batch with the weights; return its loss."""
        losses = []
        for piece, share in pieces(batch, self._piece):
            loss = self._objective(piece) * share
            self._accelerator.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _step(self, norm: Tensor) -> None:
        if self._clip > 0:
            clip_grads_with_norm_(self._parameters.values(), self._clip, norm)
        for optimizer in self._optimizers:
            optimizer.step()
        # The fused kernels change weights behind autograd's back; a process's caches watch versions.
        increment_version(self._parameters.values())
        if self._average is not None:
            self._average.update()

    def _skip(self, norm: float) -> None:
        self.tally.skip()
        if self.tally.in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise TrainingDiverged(
                f"the gradient's norm was not finite in {self.tally.in_a_row} steps in a row "
                f"(now {norm}); try a smaller learning rate, clipping or warm-up"
            )

    def _mean(self, loss: Tensor) -> float:
        if self._accelerator.num_processes > 1:
            loss = self._accelerator.reduce(loss, "mean")
        return loss.item()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that :meth:`load` needs, by name, without copying."""
        tensors = {f"weights.{k}": v for k, v in self.trainee.state_dict().items()}
        for name, parameter in self._parameters.items():
            for moment, value in self._optimizer_of[parameter].state.get(parameter, {}).items():
                tensors[f"{moment}.{name}"] = value
        if self._average is not None:
            tensors |= {f"average.{k}": v for k, v in self.result.state_dict().items()}
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what :meth:`tensors` gave.

        Raises:
            ValueError: if the tensors are of another process or model, or another setting of ``ema``.
        """
        _load(self.trainee, tensors, "weights.")
        for name, parameter in self._parameters.items():
            moments = {m: tensors[f"{m}.{name}"] for m in _MOMENTS if f"{m}.{name}" in tensors}
            if moments:
                self._optimizer_of[parameter].state[parameter] = {
                    moment: value.to(parameter.device, copy=True)
                    for moment, value in moments.items()
                }
        if self._average is not None:
            _load(self.result, tensors, "average.")


def _load(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{prefix[:-1]} of another process or model: {reason}") from error
