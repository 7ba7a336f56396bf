"""Transformer neural processes: one Transformer reads context and targets together.

Every token, of the context or a target, attends to the context tokens and to nothing else. So keys and values are made
of the context alone, all tokens ask them at once, and no mask over pairs of tokens is ever built.

Source: Nguyen & Grover, "Transformer Neural Processes: Uncertainty-Aware Meta Learning Via Sequence Modeling", ICML
2022, and its code. Departure from it: layers are initialised independently, where the code starts from copies of one.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from synopsis.memory.layers import perceptron
from synopsis.processes.context import ContextProcess
from synopsis.processes.heads import PredictiveDistribution, build_head
from synopsis.processes.joint import JointContextProcess, build_joint_head
from synopsis.processes.joint_gaussians import JointGaussian
from synopsis.processes.transformer import TransformerLayer

_EMBEDDING_DEPTH = 4


class TNPTrunk(nn.Module):
    """The embedder of points and the Transformer, shared by the processes of this family.

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs.
        dim: width of tokens.
        heads: attention heads.
        layers: of the Transformer.
    """

    def __init__(self, dim_x: int, dim_y: int, dim: int, heads: int, layers: int) -> None:
        super().__init__()
        self.embed = perceptron(dim_x + dim_y, dim, dim, _EMBEDDING_DEPTH)
        self.layers = nn.ModuleList(TransformerLayer(dim, heads) for _ in range(layers))

    def forward(
        self,
        known: Float[Tensor, "batch context dim_x+dim_y"],
        asked: Float[Tensor, "batch targets dim_x+dim_y"],
        mask: Bool[Tensor, "#batch 1 #tokens context"] | None = None,
    ) -> Float[Tensor, "batch targets dim"]:
        """Features of the points asked about, when all points attend to the known ones.

        Args:
            known: points that are attended to, inputs and outputs.
            asked: points that only ask, with 0 for outputs.
            mask: True where a point, known or asked, may attend to a known one.
        """
        keys = known.shape[1]
        tokens = self.embed(torch.cat([known, asked], dim=1))
        for layer in self.layers[:-1]:
            tokens = layer(tokens, keys, mask)
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., keys:, :]
        features: Tensor = self.layers[-1](tokens, keys, mask, first=keys)
        return features


def inputs_only(
    xt: Float[Tensor, "batch targets dim_x"], dim_y: int
) -> Float[Tensor, "batch targets dim_x+dim_y"]:
    """Points whose outputs are asked for: 0 stands in their place."""
    return F.pad(xt, (0, dim_y))


class TNPD(ContextProcess):
    """Transformer neural process with independent targets; the defaults are the published sizes.

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs.
        dim: width of tokens.
        heads: attention heads.
        layers: of the Transformer, at least 1.
        head: ``"gaussian"`` (σ = exp), ``"bounded-gaussian"`` or ``"mixture-N"``.

    Example:
        >>> import torch
        >>> process = TNPD(dim_x=1, dim_y=1, dim=16, layers=2).eval()
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
        head: str = "gaussian",
    ) -> None:
        sizes = {"dim": dim, "heads": heads, "layers": layers}
        super().__init__(dim_x=dim_x, dim_y=dim_y, **sizes, head=head)
        self.trunk = TNPTrunk(dim_x, dim_y, dim, heads, layers)
        self.head = build_head(head, dim, dim_y)

    def condition(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None,
    ) -> PredictiveDistribution:
        """Predict from a context in one differentiable pass; x and y are 0 where the mask is False."""
        pairs = None if mask is None else mask[:, None, None, :]
        features = self.trunk(torch.cat([xc, yc], dim=-1), inputs_only(xt, self.dim_y), pairs)
        predicted: PredictiveDistribution = self.head(features)
        return predicted


class TNPND(JointContextProcess):
    """Transformer neural process with jointly predicted targets; the defaults are the published sizes.

    As published: ``head="cholesky"`` and ``per_target=False``.

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs.
        dim: width of tokens.
        heads: attention heads, of the trunk and of the head.
        layers: of the Transformer, at least 1.
        head: ``"low-rank"``, ``"cholesky"`` or ``"bounded-cholesky"``.
        per_target: divide the loss by the number of targets.

    Example:
        >>> import torch
        >>> process = TNPND(dim_x=1, dim_y=1, dim=16, layers=2).eval()
        >>> state = process.update(process.init(), torch.randn(1, 20, 1), torch.randn(1, 20, 1))
        >>> process.predict(state, torch.zeros(1, 5, 1)).sample((3,)).shape  # three functions
        torch.Size([3, 1, 5, 1])
    """

    def __init__(
        self,
        dim_x: int = 1,
        dim_y: int = 1,
        dim: int = 64,
        heads: int = 4,
        layers: int = 6,
        head: str = "low-rank",
        per_target: bool = True,
    ) -> None:
        sizes = {"dim": dim, "heads": heads, "layers": layers}
        super().__init__(dim_x=dim_x, dim_y=dim_y, **sizes, head=head, per_target=per_target)
        self.per_target = per_target
        self.trunk = TNPTrunk(dim_x, dim_y, dim, heads, layers)
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
        pairs = None if mask is None else mask[:, None, None, :]
        features = self.trunk(torch.cat([xc, yc], dim=-1), inputs_only(xt, self.dim_y), pairs)
        predicted: JointGaussian = self.head(features, real)
        return predicted


__all__ = ["TNPD", "TNPND", "TNPTrunk", "inputs_only"]
