"""The protocol of a neural process: condition = fold, observe = update, many shards = merge.

A process maps a context of (x, y) pairs and target inputs to a predictive distribution of the targets' outputs. The
module holds weights only; what was seen is a state, and every method is pure.
"""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from synopsis.memory.base import Merges
from synopsis.processes.heads import PredictiveDistribution
from synopsis.processes.missing import filled, guard
from synopsis.tasks import Batch
from synopsis.tasks.base import observed_points
from synopsis.weight_files import read_folder, write_folder
from synopsis.weights import Weights, fingerprint

PROCESSES: dict[str, type["Process"]] = {}


class Process(nn.Module):
    """Base of every process.

    Subclasses implement :meth:`init`, :meth:`update`, :meth:`predict`, and :meth:`merge` where it is exact; they
    declare ``merges``, call ``super().__init__`` with their constructor's arguments, and are found under their name
    in ``PROCESSES``, unless the class statement says ``abstract=True``.

    A y of NaN is an output that was not observed. Subclasses never meet a point that lacks every output: ``update``,
    ``forward``, ``loss`` and whatever else takes a batch get it masked out. :meth:`observed` says what they get of a
    point that lacks some.
    """

    merges: ClassVar[Merges] = None
    bounded: ClassVar[bool] = True  # False for a process whose state grows with what it has seen
    keeps_gaps: ClassVar[bool] = False  # True for one that takes NaN among the outputs of a point
    dim_x: int
    dim_y: int

    def __init_subclass__(cls, abstract: bool = False) -> None:
        guard(cls, Process)
        if not abstract:
            PROCESSES[cls.__name__] = cls

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config: dict[str, Any] = config
        self.dim_x, self.dim_y = config["dim_x"], config["dim_y"]
        self._weights: Weights | None = None
        self._fingerprint_of: tuple[object, str] | None = None

    def init(self, batch_shape: tuple[int, ...] = (1,)) -> Any:
        """A state that has seen nothing; ``batch_shape`` is ``(streams,)``."""
        raise NotImplementedError

    def update(
        self,
        state: Any,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> Any:
        """The state after these points as well; mask is True where a point is real.

        A point whose outputs are all NaN is not seen, and not counted.

        In evaluation mode no graph is kept, so an endless stream needs no ``torch.no_grad``.
        """
        raise NotImplementedError

    def predict(
        self, state: Any, xt: Float[Tensor, "batch targets dim_x"]
    ) -> PredictiveDistribution:
        """The predictive distribution at target inputs; nothing is learned and nothing changes."""
        raise NotImplementedError

    def merge(self, a: Any, b: Any) -> Any:
        """The state after both parts of the data; raises where that is not exact."""
        raise NotImplementedError(f"states of {type(self).__name__} cannot be merged")

    def forward(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> PredictiveDistribution:
        """Condition on a context and predict: init, update, predict."""
        return self.predict(self.update(self.init((len(xc),)), xc, yc, mask), xt)

    def observed(
        self,
        yc: Float[Tensor, "batch context dim_y"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> tuple[Float[Tensor, "batch context dim_y"], Bool[Tensor, "batch context"] | None]:
        """Outputs and mask as this process is given them; unchanged where no output of a real point is NaN.

        A point that lacks every output is masked out. One that lacks some has 0 for them, the mean of standardised
        data, unless ``keeps_gaps``. To a process without weights, which cannot have learned that 0 may mean nothing,
        it is not shown.
        """
        mask = observed_points(yc, mask)
        if mask is None:
            return yc, None
        if next(self.parameters(), None) is None:
            return yc, mask & ~yc.isnan().any(-1)
        return yc if self.keeps_gaps else filled(yc), mask

    def loss(self, batch: Batch) -> Tensor:
        """Negative mean log-likelihood of the real targets, nats per target with any output; missing ones add 0."""
        real, xt, yt = batch.target_mask, batch.xt, batch.yt
        if real is not None:  # what stands in padding may be NaN, and must not reach a gradient
            xt, yt = (t.masked_fill(~real.unsqueeze(-1), 0.0) for t in (xt, yt))
        log_likelihood = self(batch.xc, batch.yc, xt, batch.context_mask).log_prob(yt)
        return -(log_likelihood if real is None else log_likelihood[real]).mean()

    def train(self, mode: bool = True) -> Self:
        """Change mode, and forget what was derived from the weights: fused optimisers change them unseen."""
        self._fingerprint_of = None
        return super().train(mode)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of configuration and weights; states carry it, and other weights refuse them."""
        self._weights = self._weights or Weights(self)
        key = self._weights.version()
        if self._fingerprint_of is None or self._fingerprint_of[0] != key:
            config = {"process": type(self).__name__, **self.config}
            self._fingerprint_of = (key, fingerprint(self, config))
        return self._fingerprint_of[1]

    def save_pretrained(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors``.

        Args:
            folder: made if it does not exist.
            dtype: of the weights on disk; None keeps theirs.
        """
        config = {"process": type(self).__name__, "arguments": self.config}
        write_folder(Path(folder), self, config, dtype)

    def check_belongs(self, state: Any) -> None:
        """Raise ValueError unless this process made the state."""
        if state.fingerprint != self.fingerprint:
            raise ValueError(
                f"the state was made by process {state.fingerprint}, not by this one ({self.fingerprint})"
            )

    def check_points(self, x: Tensor, y: Tensor | None = None) -> None:
        """Raise ValueError, with what came and what was expected, unless points fit this process."""
        if x.dim() != 3 or x.shape[-1] != self.dim_x:
            raise ValueError(f"x must be (batch, points, {self.dim_x}), not {tuple(x.shape)}")
        if y is not None and (*x.shape[:2], self.dim_y) != tuple(y.shape):
            raise ValueError(
                f"y must be {(*x.shape[:2], self.dim_y)} to go with x {tuple(x.shape)}, not {tuple(y.shape)}"
            )


guard(Process, Process)


def build(config: Mapping[str, Any]) -> Process:
    """A process with fresh weights from ``{"process": name, "arguments": {…}}``.

    Raises:
        ValueError: when the name is unknown or the arguments do not fit.
    """
    name, arguments = config.get("process"), config.get("arguments", {})
    if not isinstance(name, str) or name not in PROCESSES:
        raise ValueError(f"unknown process {name!r}; there are {', '.join(sorted(PROCESSES))}")
    sizes = [v for v in arguments.values() if isinstance(v, int)]
    if any(size < 1 for size in sizes if not isinstance(size, bool)):
        raise ValueError(f"{name}: sizes must be at least 1, not {arguments}")
    try:
        return PROCESSES[name](**arguments)
    except (TypeError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(f"{name} does not take these arguments: {error}") from error


def load(source: Path | str) -> Process:
    """Load a process in evaluation mode.

    Args:
        source: a folder written by :meth:`Process.save_pretrained`, or the name of a shipped process
            (``"regression-8d"``).

    Raises:
        ValueError: when there is no such folder or name, or its files do not fit together.
    """
    folder = _folder(source)
    try:
        config, weights = read_folder(folder)
        process = build(config)
        process.load_state_dict(weights)
    except (KeyError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{folder} does not hold a whole process: {error}") from error
    return process.eval()


def shipped() -> list[str]:
    """Names of the processes that come with the package."""
    folder = Path(str(resources.files("synopsis") / "pretrained"))
    return sorted(config.parent.name for config in folder.glob("*/config.json"))


def _folder(source: Path | str) -> Path:
    if Path(source).is_dir():
        return Path(source)
    if str(source) in shipped():
        return Path(str(resources.files("synopsis") / "pretrained" / str(source)))
    names = ", ".join(shipped()) or "none"
    raise ValueError(f"{str(source)!r} is neither a folder nor a shipped process ({names})")


__all__ = ["PROCESSES", "Process", "build", "load", "shipped"]
