"""Latent bottlenecked attentive neural processes: the context is read into a few latents, layer by layer.

Every layer lets the latents look at the context again, so queries cost as much as there are latents, however long the
context was. But a layer's questions are the previous layer's answers: a new point changes all of them, and what is
kept for updates is the context itself.

Source: Feng, Hajimirsadeghi, Bengio & Ahmed, "Latent Bottlenecked Attentive Neural Processes", ICLR 2023, and its code.
Departures from it: layers are initialised independently, where the code starts from copies of one, and
``residual="raw"`` is the default.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from synopsis.memory.layers import CrossAttention, FeedForward, Residual, SelfAttention, perceptron
from synopsis.processes.context import ContextProcess
from synopsis.processes.eqtnp import TargetDecoder
from synopsis.processes.heads import PredictiveDistribution, build_head
from synopsis.processes.joint import JointContextProcess, build_joint_head
from synopsis.processes.joint_gaussians import JointGaussian

_EMBEDDING_DEPTH = 4
_FEEDFORWARD = 2  # hidden width of feed-forward layers, in units of dim


class LatentLayer(nn.Module):
    """Latents look at the context, then at each other; feed-forward after both."""

    def __init__(self, dim: int, heads: int, residual: Residual) -> None:
        super().__init__()
        hidden = _FEEDFORWARD * dim
        self.read = CrossAttention(dim, heads, residual)
        self.digest = FeedForward(dim, hidden, residual)
        self.attend = SelfAttention(dim, heads, residual)
        self.transform = FeedForward(dim, hidden, residual)

    def forward(
        self,
        latents: Float[Tensor, "batch latents dim"],
        context: Float[Tensor, "batch context dim"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> Float[Tensor, "batch latents dim"]:
        """The latents after another look; mask is True where a point is real."""
        latents = self.digest(self.read(latents, context, mask))
        transformed: Tensor = self.transform(self.attend(latents))
        return transformed


class LBANPTrunk(nn.Module):
    """From points to features of targets, shared by the processes of this family.

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs.
        dim: width of embeddings.
        heads: attention heads.
        layers: of the encoder and of the decoder.
        latents: that read the context.
        residual: ``"raw"`` or ``"normed"``.
    """

    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        dim: int,
        heads: int,
        layers: int,
        latents: int,
        residual: Residual,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, dim))
        self.embed = perceptron(dim_x + dim_y, dim, dim, _EMBEDDING_DEPTH)
        self.layers = nn.ModuleList(LatentLayer(dim, heads, residual) for _ in range(layers))
        self.decoder = TargetDecoder(dim_x, dim, heads, layers, residual)

    def forward(
        self,
        points: Float[Tensor, "batch context dim_x+dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> Float[Tensor, "batch targets dim"]:
        """Features of the targets; mask is True where a point is real."""
        context = self.embed(points)
        sets = [self.latents.expand(len(points), -1, -1)]
        for layer in self.layers:
            sets.append(layer(sets[-1], context, mask))
        features: Tensor = self.decoder(xt, sets[1:])
        return features


class LBANP(ContextProcess):
    """Latent bottlenecked attentive neural process with independent targets; the defaults are the published sizes.

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs.
        dim: width of embeddings.
        heads: attention heads.
        layers: of the encoder and of the decoder.
        latents: that read the context.
        residual: ``"raw"`` (pre-norm) or ``"normed"`` (the published code).
        head: ``"gaussian"`` (σ = exp), ``"bounded-gaussian"`` or ``"mixture-N"``.

    Example:
        >>> import torch
        >>> process = LBANP(dim_x=1, dim_y=1, dim=16, layers=2, latents=8).eval()
        >>> state = process.update(process.init(), torch.randn(1, 20, 1), torch.randn(1, 20, 1))
        >>> process.predict(state, torch.zeros(1, 5, 1)).mean.shape
        torch.Size([1, 5, 1])
    """

    def __init__(
        self,
        dim_x: int = 1,
        dim_y: int = 1,
        dim: int = 64,
        heads: int = 4,
        layers: int = 6,
        latents: int = 128,
        residual: Residual = "raw",
        head: str = "gaussian",
    ) -> None:
        sizes = {"dim": dim, "heads": heads, "layers": layers, "latents": latents}
        super().__init__(dim_x=dim_x, dim_y=dim_y, **sizes, residual=residual, head=head)
        self.trunk = LBANPTrunk(dim_x, dim_y, **sizes, residual=residual)
        self.head = build_head(head, dim, dim_y)

    def condition(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None,
    ) -> PredictiveDistribution:
        """Predict from a context in one differentiable pass; x and y are 0 where the mask is False."""
        features = self.trunk(torch.cat([xc, yc], dim=-1), xt, mask)
        predicted: PredictiveDistribution = self.head(features)
        return predicted


class LBANPND(JointContextProcess):
    """Latent bottlenecked process with jointly predicted targets; the defaults are the published sizes.

    As published: ``residual="normed"``, ``head="cholesky"`` and ``per_target=False``. It then has 8,578 parameters
    fewer than the 911,831 published: those belong to a diagonal head that is never trained.

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs.
        dim: width of embeddings.
        heads: attention heads, of the trunk and of the head.
        layers: of the encoder and of the decoder.
        latents: that read the context.
        residual: ``"raw"`` (pre-norm) or ``"normed"`` (the published code).
        head: ``"low-rank"``, ``"cholesky"`` or ``"bounded-cholesky"``.
        per_target: divide the loss by the number of targets.

    Example:
        >>> import torch
        >>> process = LBANPND(dim_x=1, dim_y=1, dim=16, layers=2, latents=8).eval()
        >>> state = process.update(process.init(), torch.randn(1, 20, 1), torch.randn(1, 20, 1))
        >>> process.predict(state, torch.zeros(1, 5, 1)).sample((3,)).shape  # three functions
        torch.Size([3, 1, 5, 1])
    """

    def __init__(  # noqa: PLR0913  (every argument is a key of the configuration)
        self,
        dim_x: int = 1,
        dim_y: int = 1,
        dim: int = 64,
        heads: int = 4,
        layers: int = 6,
        latents: int = 128,
        residual: Residual = "raw",
        head: str = "low-rank",
        per_target: bool = True,
    ) -> None:
        sizes = {"dim": dim, "heads": heads, "layers": layers, "latents": latents}
        options = {"residual": residual, "head": head, "per_target": per_target}
        super().__init__(dim_x=dim_x, dim_y=dim_y, **sizes, **options)
        self.per_target = per_target
        self.trunk = LBANPTrunk(dim_x, dim_y, **sizes, residual=residual)
        self.head = build_joint_head(head, dim, dim_y, heads)

    def jointly(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None,
        real: Bool[Tensor, "batch targets"] | None,
    ) -> JointGaussian:
        """Predict the real targets jointly in one differentiable pass; values are 0 where a mask is False."""
        features = self.trunk(torch.cat([xc, yc], dim=-1), xt, mask)
        predicted: JointGaussian = self.head(features, real)
        return predicted


__all__ = ["LBANP", "LBANPND", "LBANPTrunk", "LatentLayer"]
