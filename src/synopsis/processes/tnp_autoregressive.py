"""The autoregressive Transformer neural process: a target is predicted knowing the targets before it.

What it scores is not what it predicts. The log-likelihood of given targets, in their order, takes one pass by teacher
forcing: the sequence is [context; targets with outputs; targets without], where a target without its output sees the
context and the outputs before it. A prediction of each target by itself has no closed form: it is the mixture over
sampled functions, each drawn target by target in a random order.

Source: Nguyen & Grover, "Transformer Neural Processes: Uncertainty-Aware Meta Learning Via Sequence Modeling", ICML
2022, and its code. Departure: a draw keeps the keys and values of what it drew, where the code re-runs the sequence.
"""

from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from torch.nn import functional as F

from synopsis.memory.layers import blank
from synopsis.processes.context import ContextProcess, ContextState
from synopsis.processes.heads import GaussianHead, GaussianMixture, build_head
from synopsis.processes.joint import joint_loss
from synopsis.processes.missing import filled
from synopsis.processes.tnp import TNPTrunk, inputs_only
from synopsis.processes.transformer import TransformerLayer
from synopsis.states import check_streams
from synopsis.tasks import Batch

_SAMPLES = 50  # of every prediction, as published
_SEED = (
    0  # of the draws behind a prediction, so that it is a function of weights, state and targets
)
_NOISE = 0.05  # standard deviation of what training adds to the outputs that targets see, bounded heads only


class TNPA(ContextProcess):
    """Transformer neural process with autoregressive targets; the defaults are the published sizes.

    Use :meth:`log_likelihood` to score targets together, :meth:`sample` for whole functions. ``predict`` and
    ``forward``, in either mode, speak of every target by itself: the mixture of 50 Gaussians, one per sampled
    function, with fixed draws that all streams share.

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs.
        dim: width of tokens.
        heads: attention heads.
        layers: of the Transformer, at least 1.
        head: ``"gaussian"`` (σ = exp) or ``"bounded-gaussian"``, with which training adds N(0, 0.05²) to the outputs
            that targets see.

    Example:
        >>> import torch
        >>> process = TNPA(dim_x=1, dim_y=1, dim=16, layers=2).eval()
        >>> state = process.update(process.init(), torch.randn(1, 20, 1), torch.randn(1, 20, 1))
        >>> process.sample(state, torch.zeros(1, 5, 1), samples=3).shape
        torch.Size([3, 1, 5, 1])
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
        if not isinstance(self.head, GaussianHead):
            raise ValueError(f"head {head!r}; TNPA takes gaussian or bounded-gaussian")

    def log_likelihood(self, batch: Batch) -> Float[Tensor, " batch"]:
        """Joint log-density of each task's real targets, nats; 0 for a task without any.

        By teacher forcing, in the order in which the targets come; another order gives another density.
        """
        return self.target_log_likelihood(batch).sum(-1)

    def target_log_likelihood(self, batch: Batch) -> Float[Tensor, "batch targets"]:
        """Log-density of each target given the context and the real targets before it, nats; 0 in padding.

        A missing output, NaN, is neither scored nor shown to the targets after it.
        """
        self.check_points(batch.xc, batch.yc)
        self.check_points(batch.xt, batch.yt)
        seen, real = batch.context_mask, batch.target_mask
        context = torch.cat([blank(batch.xc, seen), filled(blank(batch.yc, seen))], dim=-1)
        xt, yt = blank(batch.xt, real), blank(batch.yt, real)
        noisy = self.training and self.head.bounded
        shown = yt + _NOISE * torch.randn_like(yt) if noisy else yt
        known = torch.cat([context, torch.cat([xt, filled(shown)], dim=-1)], dim=1)
        features = self.trunk(known, inputs_only(xt, self.dim_y), _teacher_forcing(batch))
        log_likelihood: Tensor = self.head(features).log_prob(yt)
        return log_likelihood if real is None else log_likelihood.where(real, 0.0)

    def loss(self, batch: Batch) -> Tensor:
        """Negative log-likelihood of the real targets by teacher forcing, nats per target."""
        return joint_loss(self.log_likelihood(batch), batch)

    def sample(
        self,
        state: ContextState,
        xt: Float[Tensor, "batch targets dim_x"],
        samples: int = _SAMPLES,
        generator: Generator | None = None,
    ) -> Float[Tensor, "samples batch targets dim_y"]:
        """Draw whole functions at the targets, each in a random order of its own.

        Args:
            state: what was seen.
            xt: where the functions are drawn, together.
            samples: how many functions.
            generator: of all randomness; None for torch's own.

        Raises:
            ValueError: when shapes do not fit, or the state belongs to other weights.
        """
        self.check_points(xt)
        self.check_belongs(state)
        check_streams(state, len(xt))
        chance = _chance((len(xt), samples, xt.shape[1], self.dim_y), generator)
        with torch.no_grad():
            return self.draw(state.x, state.y, xt, state.mask, *chance).y.transpose(0, 1)

    def condition(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None,
    ) -> GaussianMixture:
        """Predict each target by itself; x and y are 0 where the mask is False."""
        shape = (1, _SAMPLES, xt.shape[1], self.dim_y)
        chance = _chance(shape, Generator().manual_seed(_SEED))
        drawn = self.draw(xc, yc, xt, mask, *chance)
        means, stddevs = (part.movedim(1, -1) for part in (drawn.mean, drawn.stddev))
        return GaussianMixture(torch.zeros_like(means), means, stddevs)

    def draw(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None,
        order: Int[Tensor, "samples targets"],
        normals: Float[Tensor, "#batch samples targets dim_y"],
    ) -> "Draw":
        """The functions that these orders and standard normal numbers lead to, differentiably.

        Args:
            xc: context inputs, 0 where the mask is False.
            yc: context outputs, likewise.
            xt: where the functions are drawn.
            mask: True where a context point is real.
            order: of each function, a permutation of the targets.
            normals: of each function, in its order.
        """
        order, normals = order.to(xt.device), normals.to(xt)
        x = xt[:, order]  # (batch, samples, targets, dim_x)
        memory = _Remembered(self.trunk, torch.cat([xc, yc], dim=-1), mask, x.shape[2])
        nothing = x.new_zeros(*x.shape[:2], 0, self.dim_y)
        means, stddevs, values = [nothing], [nothing], [nothing]
        for j in range(x.shape[2]):
            tokens = inputs_only(x[:, :, j : j + 1], self.dim_y)
            if j:  # the value drawn last becomes known as the next is asked for
                known = torch.cat([x[:, :, j - 1 : j], values[-1]], dim=-1)
                tokens = torch.cat([known, tokens], dim=2)
            predicted = self.head(memory.ask(self.trunk.embed(tokens)))
            means.append(predicted.mean.to(x))
            stddevs.append(predicted.stddev.to(x))
            values.append(means[-1] + stddevs[-1] * normals[:, :, j : j + 1])
        back = order.argsort(-1)[None, :, :, None].expand(len(x), -1, -1, self.dim_y)
        parts = (torch.cat(part, dim=2) for part in (means, stddevs, values))
        return Draw(*(part.gather(2, back) for part in parts))


class Draw(NamedTuple):
    """Functions drawn target by target, and the Gaussian that each value was drawn from."""

    mean: Float[Tensor, "batch samples targets dim_y"]
    stddev: Float[Tensor, "batch samples targets dim_y"]
    y: Float[Tensor, "batch samples targets dim_y"]


class _Rows:
    """Rows that come one by one: in a place kept for all of them, or copied each time where a gradient is wanted."""

    def __init__(self, most: int) -> None:
        self._most, self._used = most, 0
        self._kept: Tensor | None = None

    @property
    def rows(self) -> Float[Tensor, "*batch rows width"]:
        """All that came so far; something did."""
        return cast(Tensor, self._kept)[..., : self._used, :]

    def append(self, rows: Float[Tensor, "*batch rows width"]) -> None:
        """Take these as well; none at all may come."""
        if torch.is_grad_enabled():
            self._kept = rows if self._kept is None else torch.cat([self._kept, rows], dim=-2)
        else:
            if self._kept is None:
                self._kept = rows.new_empty(*rows.shape[:-2], self._most, rows.shape[-1])
            self._kept[..., self._used : self._used + rows.shape[-2], :] = rows
        self._used += rows.shape[-2]


class _Remembered:
    """Keys and values of a context, shared by all functions, and of what each function has drawn so far."""

    def __init__(self, trunk: TNPTrunk, context: Tensor, mask: Tensor | None, targets: int) -> None:
        self.layers = cast("list[TransformerLayer]", list(trunk.layers))
        self.mask = mask
        self.context: list[tuple[Tensor, Tensor]] = []
        self.keys, self.values = ([_Rows(targets) for _ in self.layers] for _ in range(2))
        tokens, pairs = trunk.embed(context), None if mask is None else mask[:, None, None, :]
        for layer in self.layers:
            query, key, value = layer.project(tokens, tokens)
            self.context.append((key, value))
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=pairs)
            tokens = layer.transform(tokens, attended)

    def ask(
        self, tokens: Float[Tensor, "batch samples tokens dim"]
    ) -> Float[Tensor, "batch samples 1 dim"]:
        """Features of the last token of each function; a token before it was drawn, and is remembered."""
        for i, layer in enumerate(self.layers):
            query, key, value = layer.project(tokens, tokens[:, :, :-1])
            self.keys[i].append(key)
            self.values[i].append(value)
            tokens = layer.transform(tokens, self._attend(query, i))
        return tokens[:, :, -1:]

    def _attend(self, query: Tensor, layer: int) -> Tensor:
        """Attention to the context and to the function's own values; to nothing at all it is 0."""
        key, value = self.context[layer]
        own_key, own_value = self.keys[layer].rows, self.values[layer].rows
        query = query * query.shape[-1] ** -0.5
        shared = torch.einsum("bshqw,bhnw->bshqn", query, key)
        lowest = torch.finfo(shared.dtype).min
        hidden = None if self.mask is None else ~self.mask[:, None, None, None, :]
        shared = shared if hidden is None else shared.masked_fill(hidden, lowest)
        scores = torch.cat([shared, query @ own_key.transpose(-1, -2)], dim=-1)
        weights, own_weights = scores.softmax(-1).split([key.shape[-2], own_key.shape[-2]], dim=-1)
        weights = weights if hidden is None else weights.masked_fill(hidden, 0.0)
        return torch.einsum("bshqn,bhnw->bshqw", weights, value) + own_weights @ own_value


def _chance(shape: tuple[int, int, int, int], generator: Generator | None) -> tuple[Tensor, Tensor]:
    """Orders and standard normal numbers for (batch, samples, targets, dim_y)."""
    device = "cpu" if generator is None else generator.device
    order = torch.rand(shape[1:3], generator=generator, device=device).argsort(-1)
    return order, torch.randn(shape, generator=generator, device=device)


def _teacher_forcing(batch: Batch) -> Bool[Tensor, "#batch 1 tokens keys"]:
    """Who of [context; targets with outputs; targets without] may attend to whom of the first two."""
    context, targets = batch.xc.shape[1], batch.xt.shape[1]
    every = torch.ones(targets, targets, dtype=torch.bool, device=batch.xt.device)
    own = torch.cat([every.new_zeros(context, targets), every.tril(), every.tril(-1)])
    pairs = torch.cat([every.new_ones(len(own), context), own], dim=1)[None, None]
    if batch.context_mask is None and batch.target_mask is None:
        return pairs
    masks = (batch.context_mask, batch.target_mask)
    ones = (torch.ones_like(x[..., 0], dtype=torch.bool) for x in (batch.xc, batch.xt))
    real = [one if mask is None else mask for one, mask in zip(ones, masks, strict=True)]
    return pairs & torch.cat(real, dim=1)[:, None, None, :]


__all__ = ["TNPA", "Draw"]
