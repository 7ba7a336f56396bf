"""Heads that predict all targets of a task jointly, the loss they are trained with, and what such a process adds.

Source: Nguyen & Grover, "Transformer Neural Processes: Uncertainty-Aware Meta Learning Via Sequence Modeling", ICML
2022 (TNP-ND). Feng et al., "Memory Efficient Neural Processes via Constant Memory Attention Block", ICML 2024, use its
head too. Departures: see :class:`LowRankHead` and :func:`joint_loss`; layers are initialised independently.
"""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from synopsis.memory.layers import blank, perceptron
from synopsis.processes.cholesky_gaussian import CholeskyGaussian
from synopsis.processes.context import ContextProcess
from synopsis.processes.heads import Gaussian, wide
from synopsis.processes.joint_gaussians import JointGaussian, LowRankGaussian
from synopsis.processes.missing import filled
from synopsis.processes.transformer import TransformerLayer
from synopsis.tasks import Batch

_RANK = 20  # columns of the factor per output
_LAYERS = 2  # in which targets attend to each other
_DEPTH = 4  # linear layers that turn features into rows of the factor, or into variances
_FLOOR = 1e-3  # a variance that underflows has no density
_LARGEST_LOG_VARIANCE = 24.0


class JointHead(nn.Module):
    """What both heads share: means of features, and rows of a factor of features that have seen each other.

    Args:
        dim: width of a target's features.
        dim_y: number of outputs.
        heads: attention heads of the layers in which targets see each other.
    """

    def __init__(self, dim: int, dim_y: int, heads: int) -> None:
        super().__init__()
        self.dim_y = dim_y
        self.mean = perceptron(dim, 2 * dim, dim_y, depth=2)
        self.interact = nn.ModuleList(TransformerLayer(dim, heads) for _ in range(_LAYERS))
        self.project = perceptron(dim, 2 * dim, _RANK * dim_y, _DEPTH)

    def factor(
        self,
        features: Float[Tensor, "batch targets dim"],
        real: Bool[Tensor, "batch targets"] | None,
    ) -> Float[Tensor, "batch numbers rank"]:
        """A row for each output of each target."""
        pairs = None if real is None else real[:, None, None, :]
        for layer in self.interact:
            features = layer(features, features.shape[1], pairs)
        # (batch, targets, dim_y·rank) to (batch, targets·dim_y, rank)
        return wide(self.project(features)).unflatten(-1, (self.dim_y, _RANK)).flatten(1, 2)

    def forward(
        self,
        features: Float[Tensor, "batch targets dim"],
        real: Bool[Tensor, "batch targets"] | None = None,
    ) -> JointGaussian:
        """The joint distribution of the targets, among which only the real ones count."""
        raise NotImplementedError


class CholeskyHead(JointHead):
    """L = tril(P Pᵀ), as published; the order of the targets matters, and so does which others are asked for.

    Args:
        dim: width of a target's features.
        dim_y: number of outputs.
        heads: attention heads of the layers in which targets see each other.
        bounded: the diagonal of L is 0.05 + 0.95·tanh(‖p‖²), as published for EMNIST.
    """

    def __init__(self, dim: int, dim_y: int, heads: int, bounded: bool = False) -> None:
        super().__init__(dim, dim_y, heads)
        self.bounded = bounded

    def forward(
        self,
        features: Float[Tensor, "batch targets dim"],
        real: Bool[Tensor, "batch targets"] | None = None,
    ) -> CholeskyGaussian:
        """The joint distribution of the targets, among which only the real ones count."""
        factor = self.factor(features, real)
        return CholeskyGaussian.from_factor(wide(self.mean(features)), factor, real, self.bounded)


class LowRankHead(JointHead):
    """Σ = P Pᵀ + diag(exp(g) + floor²); in whatever order targets come, they get the same distribution.

    Args:
        dim: width of a target's features.
        dim_y: number of outputs.
        heads: attention heads of the layers in which targets see each other.
        floor: standard deviation below which no output falls by itself, in units of y; the published code has none.
    """

    def __init__(self, dim: int, dim_y: int, heads: int, floor: float = _FLOOR) -> None:
        super().__init__(dim, dim_y, heads)
        self.floor = floor
        self.log_variance = perceptron(dim, 2 * dim, dim_y, _DEPTH)

    def forward(
        self,
        features: Float[Tensor, "batch targets dim"],
        real: Bool[Tensor, "batch targets"] | None = None,
    ) -> LowRankGaussian:
        """The joint distribution of the targets, among which only the real ones count."""
        raw = wide(self.log_variance(features)).clamp(max=_LARGEST_LOG_VARIANCE)
        stddev = (raw.exp() + self.floor**2).sqrt()
        factor = self.factor(features, real)
        return LowRankGaussian(wide(self.mean(features)), factor, stddev, real)


def build_joint_head(name: str, dim: int, dim_y: int, heads: int) -> JointHead:
    """A joint head by name: ``low-rank``, ``cholesky`` or ``bounded-cholesky``.

    Raises:
        ValueError: for any other name.
    """
    if name == "low-rank":
        return LowRankHead(dim, dim_y, heads)
    if name in ("cholesky", "bounded-cholesky"):
        return CholeskyHead(dim, dim_y, heads, bounded=name.startswith("bounded"))
    raise ValueError(
        f"unknown joint head {name!r}; there are low-rank, cholesky and bounded-cholesky"
    )


def joint_loss(
    log_likelihood: Float[Tensor, " batch"], batch: Batch, per_target: bool = True
) -> Tensor:
    """Negative joint log-likelihood of a batch.

    Args:
        log_likelihood: joint log-density of each task's real targets, nats.
        batch: whose targets they are.
        per_target: divide by the number of real targets in the batch, so that gradients do not grow with it; False is
            the published loss, the mean over tasks.
    """
    if not per_target:
        return -log_likelihood.mean()
    real = batch.target_mask
    targets: Tensor | int = batch.yt[..., 0].numel() if real is None else real.sum()
    return -log_likelihood.sum() / targets


class JointProcess:
    """What processes with a joint head add to :class:`synopsis.processes.Process`; a mixin, to be named first.

    A subclass implements :meth:`jointly`. One that predicts targets block by block, each block told the values of those
    before it, defines :meth:`score` as well: that is what evaluation reports.
    """

    per_target: bool = True  # what the loss is divided by; see joint_loss

    def jointly(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None,
        real: Bool[Tensor, "batch targets"] | None,
    ) -> JointGaussian:
        """Predict the real targets jointly; differentiable, and values are 0 where a mask is False."""
        raise NotImplementedError

    def joint(self, batch: Batch) -> JointGaussian:
        """The joint distribution of all targets of a batch that are real and not without outputs, given its context."""
        seen, asked = batch.context_mask, batch.target_mask
        points = (blank(batch.xc, seen), filled(blank(batch.yc, seen)), blank(batch.xt, asked))
        return self.jointly(*points, seen, asked)

    def score(self, batch: Batch) -> tuple[Float[Tensor, " batch"], Gaussian]:
        """Joint log-density of each task's real targets (nats), and what is predicted of each target by itself."""
        joint = self.joint(batch)
        return joint.log_prob(batch.yt), joint.marginals

    def log_likelihood(self, batch: Batch) -> Float[Tensor, " batch"]:
        """Joint log-density of each task's real targets, nats; 0 for a task without any."""
        return self.score(batch)[0]

    def loss(self, batch: Batch) -> Tensor:
        """Negative joint log-likelihood of the real targets, nats per target or, as published, per task."""
        return joint_loss(self.joint(batch).log_prob(batch.yt), batch, self.per_target)


class JointContextProcess(JointProcess, ContextProcess, abstract=True):
    """Base of the processes that keep their context and have a joint head; subclasses implement :meth:`jointly`."""

    def condition(  # type: ignore[override]  # a joint distribution
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None,
    ) -> JointGaussian:
        """Predict from a context in one differentiable pass; x and y are 0 where the mask is False."""
        return self.jointly(xc, yc, xt, mask, None)


__all__ = [
    "CholeskyGaussian",
    "CholeskyHead",
    "JointContextProcess",
    "JointGaussian",
    "JointHead",
    "JointProcess",
    "LowRankGaussian",
    "LowRankHead",
    "build_joint_head",
    "joint_loss",
]
