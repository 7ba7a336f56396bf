"""A neural process as a BoTorch model: a surrogate that is never refitted (extra ``botorch``).

A Gaussian process is fitted again after every observation. A neural process was trained beforehand: an observation is
folded into its state, at a cost that for a bounded process does not depend on how many came before, and every
acquisition function that asks a model for ``posterior(X)`` works as it stands.
"""

import copy
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

try:
    from botorch.models.model import Model
    from botorch.posteriors import Posterior
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("botorch", "gpytorch", "linear_operator"):
        raise
    needed = f"{__name__} needs BoTorch: pip install 'synopsis-attention[botorch]'"
    raise ModuleNotFoundError(needed, name=error.name) from error

from synopsis.adapters.botorch_posteriors import MixturePosterior, posterior_of
from synopsis.processes.base import Process, load
from synopsis.processes.context import ContextProcess
from synopsis.processes.joint import JointProcess
from synopsis.processes.standardized import Standardized
from synopsis.processes.tnp_autoregressive import TNPA

_DOMAIN = (-2.0, 2.0)  # of every input of the processes that come with the package


class NeuralProcessModel(Model):  # type: ignore[misc]  # BoTorch is untyped for mypy
    """A process and what it was told, as BoTorch asks for it.

    Gaussian predictions become a ``GPyTorchPosterior``: over q points together for a process with a joint head
    (CMANPAND, TNPND, LBANPND), with a diagonal covariance for one that predicts point by point. Mixtures (NP, ANP, BNP,
    BANP, TNPA, mixture heads) become a :class:`MixturePosterior`. A process predicts observations: noise is part of
    every posterior, ``observation_noise=True`` adds none, and noise levels are not taken.

    BoTorch optimises in float64, and its line searches stall now and then on coarser numbers. So the model works on a
    float64 copy of the process, whose weights were trained in float32, at about twice the cost. Inputs may have any
    precision, and get posteriors of the same.

    Args:
        process: the surrogate, or the name of a shipped one, or the folder of a saved one. It is left as it is; its
            copy stays on its device and is never trained.
        train_X: inputs observed so far; None for none.
        train_Y: their outputs.
        bounds: lowest and highest value of every input, as ``optimize_acqf`` takes them; they are mapped to [−2, 2],
            where the shipped processes were trained. None: inputs are already in the process's units.
        warmup: outputs are standardised by mean and standard deviation of the observations so far, up to this many;
            then the scaling is settled (:class:`synopsis.processes.Standardized`). None: outputs are already in the
            process's units.
        dtype: precision in which the process computes.

    Raises:
        ValueError: when inputs or outputs do not fit the process or each other.

    Example:
        >>> from synopsis.processes import CMANP
        >>> model = NeuralProcessModel(CMANP(dim=16, blocks=2, latents=8), torch.rand(5, 1), torch.rand(5, 1))
        >>> model.posterior(torch.rand(7, 3, 1)).mean.shape  # seven batches of three points
        torch.Size([7, 3, 1])
        >>> wiser = model.condition_on_observations(torch.rand(2, 1), torch.rand(2, 1))
    """

    process: Process

    def __init__(
        self,
        process: Process | str,
        train_X: Float[Tensor, "*batch points dim_x"] | None = None,
        train_Y: Float[Tensor, "*batch points dim_y"] | None = None,
        bounds: Float[Tensor, "2 dim_x"] | None = None,
        warmup: int | None = 32,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        found = copy.deepcopy(process) if isinstance(process, Process) else load(process)
        known = train_X if train_X is not None else bounds
        dim_x = found.dim_x if known is None else known.shape[-1]
        # Whether the prediction of a point depends on which others are asked for.
        self.together = isinstance(_inner(found), JointProcess | TNPA)
        if warmup is not None:  # "phase": inputs that no scaling touches
            found = Standardized(found, warmup, ["phase"] * dim_x)
        # Not as a part of this module, since acquisition functions give every part the precision of X: the state would
        # belong to other weights.
        object.__setattr__(self, "process", found.to(dtype).requires_grad_(False).eval())
        self.dtype, self.bounds, self.outputs = dtype, bounds, tuple(range(found.dim_y))
        self._batch_shape, self.state = torch.Size(), self.process.init()
        if train_X is None or train_Y is None:
            if train_X is not train_Y:
                raise ValueError("train_X and train_Y come together; one of them is None")
            return
        told = self.condition_on_observations(train_X.detach(), train_Y.detach())
        self._batch_shape, self.state = told.batch_shape, told.state

    @property
    def num_outputs(self) -> int:
        """Outputs predicted."""
        return len(self.outputs)

    @property
    def batch_shape(self) -> torch.Size:
        """Of the observations: that many functions are modelled side by side."""
        return self._batch_shape

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Stay in evaluation mode: nothing is trained here."""
        super().train(False)
        return self

    def posterior(
        self,
        X: Float[Tensor, "*batch q dim_x"],
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: Any = None,
    ) -> Posterior:
        """What the process predicts, differentiable with respect to the inputs.

        Args:
            X: batches of q points; the batch broadcasts against the model's.
            output_indices: which outputs; None for all.
            observation_noise: no difference: noise is part of what a process predicts.
            posterior_transform: BoTorch's, applied to the result.

        Raises:
            ValueError: for noise levels, which a process cannot take, or inputs that do not fit.
        """
        if isinstance(observation_noise, Tensor):
            raise ValueError("noise levels were given; the noise of a neural process is its own")
        batch = torch.broadcast_shapes(X.shape[:-2], self.batch_shape)
        # Points that do not see each other may share a stream: the state is read once for all of them.
        own = batch if self.together else batch[len(batch) - len(self.batch_shape) :]
        points = self._scaled(X).expand(*batch, *X.shape[-2:])
        points = points.reshape(-1, own.numel(), *X.shape[-2:])
        predicted = self.process.predict(self._streams(own), points.transpose(0, 1).flatten(1, 2))
        shape, indices = (*batch, X.shape[-2]), self._chosen(output_indices)
        answer = posterior_of(predicted, (own.numel(), len(points)), shape, indices, X)
        return answer if posterior_transform is None else posterior_transform(answer)

    def condition_on_observations(
        self,
        X: Float[Tensor, "*batch points dim_x"],
        Y: Float[Tensor, "*batch points dim_y"],
        **settings: Any,  # noqa: ARG002  (noise levels, which a process has no use for)
    ) -> "NeuralProcessModel":
        """A model that was told these as well; this one stays as it is.

        Args:
            X: inputs; all batches broadcast against each other and the model's.
            Y: their outputs, all of them.

        Raises:
            ValueError: when shapes do not fit; or when X or Y wants a gradient and the process does not keep its
                context: then there is none.
        """
        if X.shape[-2] != Y.shape[-2]:
            raise ValueError(f"X has {X.shape[-2]} points but Y has {Y.shape[-2]}; they must agree")
        batch = torch.broadcast_shapes(X.shape[:-2], Y.shape[:-2], self.batch_shape)
        x, y = (
            values.expand(*batch, *values.shape[-2:]).reshape(-1, *values.shape[-2:])
            for values in (self._scaled(X), self._cast(Y))
        )
        wanted = torch.is_grad_enabled() and (X.requires_grad or Y.requires_grad)
        if wanted and not isinstance(_inner(self.process), ContextProcess):
            name = type(_inner(self.process)).__name__
            raise ValueError(f"no gradient passes through what {name} is told; detach X and Y")
        told = copy.copy(self)
        told._batch_shape, told.state = batch, self.process.update(self._streams(batch), x, y)
        return told

    def fantasize(self, X: Tensor, sampler: Any, **settings: Any) -> "NeuralProcessModel":
        """A model that was told draws of its own at X; the draws lead its batch shape.

        Raises:
            ValueError: see :meth:`condition_on_observations`.
        """
        return self.condition_on_observations(X, sampler(self.posterior(X)), **settings)

    def subset_output(self, idcs: list[int]) -> "NeuralProcessModel":
        """A model that predicts these outputs only; it is told all of them."""
        part = copy.copy(self)
        part.outputs = tuple(self.outputs[index] for index in idcs)
        return part

    def _chosen(self, indices: list[int] | None) -> list[int]:
        return [self.outputs[i] for i in (range(self.num_outputs) if indices is None else indices)]

    def _scaled(self, X: Tensor) -> Tensor:
        if self.bounds is not None:
            low, high = self.bounds.to(X)
            X = _DOMAIN[0] + (X - low) / (high - low) * (_DOMAIN[1] - _DOMAIN[0])
        return self._cast(X)

    def _cast(self, values: Tensor) -> Tensor:
        return values.to(next(self.process.parameters(), values).device, self.dtype)

    def _streams(self, batch: torch.Size) -> Any:
        """The state with a stream for every model of the batch."""
        if batch == self.batch_shape:
            return self.state
        numbers = torch.arange(self.batch_shape.numel()).view(self.batch_shape)
        which = numbers.expand(batch).flatten()
        return tree_map(lambda t: t[which.to(t.device)] if isinstance(t, Tensor) else t, self.state)


def _inner(process: Process) -> Process:
    """What does the predicting."""
    return process.process if isinstance(process, Standardized) else process


__all__ = ["MixturePosterior", "NeuralProcessModel"]
