"""CMANP as its released code trains it, written anew from its description: attention with its scores in memory.

What the description says that a training step does, no more and no less: every block takes the whole context by itself,
queries that are parameters are repeated for every task and projected again, heads are moved into the batch and back,
scores and their softmax are tensors, the skip carries the normalised input, and all blocks start as copies of one.
Parameters come in the order of those of :class:`synopsis.processes.CMANP`, so that weights can be copied across.

Source: Feng, Tung, Hajimirsadeghi, Bengio & Ahmed, "Memory Efficient Neural Processes via Constant Memory Attention
Block", ICML 2024.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DIM, HEADS, BLOCKS, HIDDEN = 64, 4, 6, 128


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_query = nn.Linear(DIM, DIM, bias=False)
        self.to_key_value = nn.Linear(DIM, 2 * DIM, bias=False)
        self.to_output = nn.Linear(DIM, DIM)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        query = self.to_query(x)
        key, value = self.to_key_value(context).chunk(2, dim=-1)
        query, key, value = (_heads_to_batch(t) for t in (query, key, value))
        scores = torch.einsum("bid,bjd->bij", query, key) * (DIM // HEADS) ** -0.5
        attended = torch.einsum("bij,bjd->bid", self.dropout(scores.softmax(dim=-1)), value)
        return self.to_output(_heads_from_batch(attended))


def _heads_to_batch(x: Tensor) -> Tensor:
    batch, length, _ = x.shape
    return x.reshape(batch, length, HEADS, -1).transpose(1, 2).reshape(batch * HEADS, length, -1)


def _heads_from_batch(x: Tensor) -> Tensor:
    rows, length, _ = x.shape
    return x.reshape(rows // HEADS, HEADS, length, -1).transpose(1, 2).reshape(-1, length, DIM)


class GEGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm_context = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attention = Attention()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.norm(x)
        return x + self.attention(x, self.norm_context(context))


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.attention = Attention()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return x + self.attention(x, x)


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.transform = nn.Sequential(
            nn.Linear(DIM, 2 * HIDDEN), GEGLU(), nn.Linear(HIDDEN, DIM), nn.Dropout(0.0)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return x + self.transform(x)


class Block(nn.Module):
    def __init__(self, latents: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, DIM))
        self.absorb = CrossAttention()
        self.digest = nn.Sequential(FeedForward(), SelfAttention(), FeedForward())
        self.retrieve = CrossAttention()
        self.compose = nn.Sequential(FeedForward(), SelfAttention(), FeedForward())

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        data = self.digest(self.absorb(self.latents.repeat(len(context), 1, 1), context))
        return self.compose(self.retrieve(latents, data))


class Encoder(nn.Module):
    def __init__(self, latents: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, DIM))
        block = Block(latents)
        self.blocks = nn.ModuleList(copy.deepcopy(block) for _ in range(BLOCKS))

    def forward(self, context: Tensor) -> list[Tensor]:
        latents, answers = self.latents.repeat(len(context), 1, 1), []
        for block in self.blocks:
            latents = block(latents, context)
            answers.append(latents)
        return answers


class DecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend, self.transform = CrossAttention(), FeedForward()

    def forward(self, targets: Tensor, latents: Tensor) -> Tensor:
        return self.transform(self.attend(targets, latents))


def _perceptron(inputs: int) -> nn.Sequential:
    layers = [nn.Linear(inputs, DIM)]
    for _ in range(3):
        layers += [nn.ReLU(), nn.Linear(DIM, DIM)]
    return nn.Sequential(*layers)


class PublishedCMANP(nn.Module):
    """One input, one output; ``loss`` is the published one."""

    def __init__(self, latents: int = 128) -> None:
        super().__init__()
        self.embed_context, self.embed_target = _perceptron(2), _perceptron(1)
        self.encode, layer = Encoder(latents), DecoderLayer()
        self.decoder = nn.ModuleList(copy.deepcopy(layer) for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(DIM)
        self.predictor = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.ReLU(), nn.Linear(2 * DIM, 2))

    def forward(self, xc: Tensor, yc: Tensor, xt: Tensor) -> torch.distributions.Normal:
        answers = self.encode(self.embed_context(torch.cat([xc, yc], dim=-1)))
        targets = self.embed_target(xt)
        for layer, answer in zip(self.decoder, answers, strict=True):
            targets = layer(targets, answer)
        mean, raw = self.predictor(self.norm(targets)).chunk(2, dim=-1)
        return torch.distributions.Normal(mean, raw.exp())

    def loss(self, batch) -> Tensor:
        predicted = self(batch.xc, batch.yc, batch.xt)
        return -predicted.log_prob(batch.yt).sum(-1).mean()
