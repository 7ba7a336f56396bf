"""Who believes what about functions on a grid: processes, the exact answer, and a Gaussian process that is refitted."""

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from synopsis.processes.base import Process
from synopsis.reproduction.np_bo_grid import NOISE, Functions, of_observations
from synopsis.tasks.gaussian_process import LENGTHS, SCALES

_KNOWN = 1e-10  # variance below which a value is known
_SMALLEST_STDDEV = 1e-9


class ProcessBelief:
    """A neural process that is told one point after another.

    Args:
        process: of one input and one output, in evaluation mode.
        functions: to be optimised.
    """

    def __init__(self, process: Process, functions: Functions) -> None:
        self.process, self.functions = process, functions
        self.state = process.init((len(functions),))
        self.x = functions.x.float().expand(len(functions), -1).unsqueeze(-1)

    @property
    def nbytes(self) -> int:
        """Kept of each function."""
        size: int = self.state.nbytes
        return size // len(self.functions)

    def tell(self, places: Int[Tensor, " functions"]) -> None:
        """Learn the values at these places, one of each function."""
        x = self.functions.x[places].float().view(-1, 1, 1)
        y = self.functions.at(places).float().view(-1, 1, 1)
        with torch.no_grad():
            self.state = self.process.update(self.state, x, y)

    def predict(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of an observation; of a joint process, those of each point by itself."""
        with torch.no_grad():
            predicted = self.process.predict(self.state, self.x)
        return predicted.mean[..., 0].double(), predicted.stddev[..., 0].double()


class ExactBelief:
    """Whoever knows the kernel and its hyper-parameters: nobody can know more.

    The posterior after one more observation, of variance c and with covariances v to all points, is one rank away:
    mean + v (y − mean) / c and variance − v² / c.

    Args:
        functions: to be optimised.
    """

    def __init__(self, functions: Functions) -> None:
        self.functions = functions
        self.prior = of_observations(functions.kernel, functions.x, functions.hyper)
        self.mean = torch.zeros_like(functions.y)
        self.variance = self.prior.diagonal(dim1=-2, dim2=-1).clone()
        self.rows = self.mean.new_zeros(len(functions), 0, len(functions.x))

    def tell(self, places: Int[Tensor, " functions"]) -> None:
        """Learn the values at these places, one of each function; one that is known teaches nothing."""
        where = places[:, None]
        at = where.unsqueeze(-1)
        of_prior = self.prior.gather(1, at.expand(-1, 1, self.prior.shape[-1]))
        seen = self.rows.gather(2, at.expand(-1, self.rows.shape[1], 1))
        across = (of_prior - seen.mT @ self.rows)[:, 0]
        own = across.gather(1, where)
        row = torch.where(own > _KNOWN, across / own.clamp(min=_KNOWN).sqrt(), 0.0)
        miss = self.functions.at(places)[:, None] - self.mean.gather(1, where)
        self.mean = self.mean + row * miss / own.clamp(min=_KNOWN).sqrt()
        self.variance = self.variance - row.square()
        self.rows = torch.cat([self.rows, row[:, None]], dim=1)

    def predict(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of an observation."""
        return self.mean, self.variance.clamp(min=_SMALLEST_STDDEV**2).sqrt()


class RefittedBelief:
    """Gaussian-process regression with a squared-exponential kernel, refitted to every function after every step.

    Length-scale and variance are those of the largest likelihood, searched for by scikit-learn from the middle of the
    ranges that functions are drawn from; the noise is known.

    Args:
        functions: to be optimised.

    Raises:
        ValueError: scikit-learn is not there.
    """

    def __init__(self, functions: Functions) -> None:
        try:
            from sklearn.gaussian_process import GaussianProcessRegressor
            from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
        except ModuleNotFoundError as error:
            raise ValueError("the refitted Gaussian process needs the extra 'sklearn'") from error
        self.functions = functions
        self.places = functions.start.new_zeros(len(functions), 0)
        low, high = SCALES
        scale = ConstantKernel(low * high, (low**2, high**2))
        kernel = scale * RBF(sum(LENGTHS["code"]) / 2, LENGTHS["code"])
        kernel = kernel + WhiteKernel(NOISE**2, "fixed")
        self._make: Callable[[], GaussianProcessRegressor] = lambda: GaussianProcessRegressor(
            kernel
        )

    def tell(self, places: Int[Tensor, " functions"]) -> None:
        """Learn the values at these places, one of each function."""
        self.places = torch.cat([self.places, places[:, None]], dim=1)

    def predict(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of an observation."""
        x = self.functions.x[:, None].numpy()
        answers = []
        for places, y in zip(self.places, self.functions.y, strict=True):
            with warnings.catch_warnings():  # that the best value is the end of a range
                warnings.simplefilter("ignore")
                fitted = self._make().fit(x[places.numpy()], y[places].numpy())
            answers.append(fitted.predict(x, return_std=True))
        mean, stddev = (torch.stack([torch.as_tensor(a[i]) for a in answers]) for i in (0, 1))
        return mean, stddev.clamp(min=_SMALLEST_STDDEV)


__all__ = ["ExactBelief", "ProcessBelief", "RefittedBelief"]
