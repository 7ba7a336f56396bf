"""Classifiers of sequences: of ids, of real values, and of pairs.

Source: the code of Yorsh et al., 2024 (arXiv 2404.00798): ``ClassificationTransformer``, ``LunaClassifier``,
``SimplifiedConvLunaClassifier``, and their counterparts for images and pairs. Departures: pads are masked, mean pooling
counts real items only, and positions are looked up, so that inputs may be shorter.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from synopsis.memory.feedforward import NORM_EPSILON
from synopsis.memory.perceiver import LatentLayer
from synopsis.models.base import Model
from synopsis.models.embeddings import Embedding, Positions, TokenEmbedding, ValueEmbedding
from synopsis.models.encoder import Architecture, Encoder
from synopsis.models.layers import WITHOUT_MEMORY
from synopsis.tasks.sequences import PairBatch, SequenceBatch

Pooling = Literal["class", "mean", "memory"]
Features = Literal["both", "interactions"]


class Summary(nn.Module):
    """One vector of a sequence: of its class vector after the last layer, or a mean of its real items or memory.

    Args:
        embedding: with a class vector where ``pooling`` is ``"class"``.
        architecture: of the encoder.
        pooling: what is taken.
    """

    def __init__(self, embedding: Embedding, architecture: Architecture, pooling: Pooling) -> None:
        super().__init__()
        if pooling == "memory" and architecture.layer in WITHOUT_MEMORY:
            raise ValueError(f"{architecture.layer} has no memory to classify from")
        if pooling != "memory" and architecture.layer == LatentLayer.__name__:
            raise ValueError(
                f"LatentLayer leaves items as they are: pool its memory, not {pooling!r}"
            )
        self.encoder, self.pooling = Encoder(embedding, architecture), pooling

    def forward(
        self, inputs: Tensor, mask: Bool[Tensor, "batch length"] | None
    ) -> Float[Tensor, "batch dim"]:
        """The vector of each sequence."""
        x, memory, mask = self.encoder(inputs, mask)
        if self.pooling == "memory":
            assert memory is not None  # there was one, and layers hand it on
            return memory.mean(1)
        if self.pooling == "class":
            return x[:, 0]
        if mask is None:
            return x.mean(1)
        real = mask.unsqueeze(-1)
        return x.masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp(min=1)


class SequenceClassifier(Model):
    """Classifies sequences of ids; the defaults are the published settings of ListOps.

    Args:
        vocabulary: number of ids, the pad's (0) included.
        classes: number of labels.
        length: most ids of a sequence.
        layer: name of the layers, a key of :data:`synopsis.models.layers.LAYERS`.
        layers: how many.
        dim: width of items and memory.
        heads: attention heads; must divide ``dim``.
        feedforward: hidden width of the feed-forward layers and of the classifier.
        memory: vectors of the learned memory; 0 for layers that have none.
        pooling: what is classified: ``"class"`` vector, ``"mean"`` of real items, or mean of the ``"memory"``.
        positions: ``"learned"``, ``"sinusoidal"`` or ``"none"``.
        dropout: of features, 0 ≤ p < 1.
        attention_dropout: of attention weights, 0 ≤ p < 1.
        recompute: keep less for the gradient and compute it again.
        options: what this kind of layer takes besides, such as ``{"kernel": 16, "stride": 8}``.

    Example:
        >>> import torch
        >>> model = SequenceClassifier(17, 10, 50, "VanillaLayer", 2, dim=16, feedforward=32, memory=0)
        >>> model(SequenceBatch(torch.zeros(3).long(), tokens=torch.ones(3, 50).long())).shape
        torch.Size([3, 10])
    """

    takes: ClassVar[type] = SequenceBatch

    def __init__(  # noqa: PLR0913  (every argument is a key of the configuration)
        self,
        vocabulary: int = 17,
        classes: int = 10,
        length: int = 2000,
        layer: str = "SimplifiedConvLunaLayer",
        layers: int = 6,
        dim: int = 128,
        heads: int = 4,
        feedforward: int = 512,
        memory: int = 256,
        pooling: Pooling = "class",
        positions: Positions = "learned",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        recompute: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(**_arguments(locals()))
        embedding = TokenEmbedding(vocabulary, dim, length, positions, pooling == "class", dropout)
        self.summary = Summary(embedding, _architecture(self.config), pooling)
        self.classifier = _classifier(dim, feedforward, classes, dropout, hidden=1)

    def logits(self, batch: SequenceBatch) -> Float[Tensor, "batch classes"]:
        """Unnormalised log-probabilities of the classes."""
        if batch.tokens is None:
            raise ValueError("a classifier of ids was given real values; there is PixelClassifier")
        logits: Tensor = self.classifier(self.summary(batch.tokens, batch.mask))
        return logits


class PixelClassifier(Model):
    """Classifies sequences of real values, such as the pixels of an image row by row.

    Its classifier has one hidden layer more than that of ids, as published; arguments are those of
    :class:`SequenceClassifier`.

    Example:
        >>> import torch
        >>> model = PixelClassifier(10, 64, "VanillaLayer", 2, dim=16, feedforward=32, memory=0)
        >>> model(SequenceBatch(torch.zeros(3).long(), values=torch.rand(3, 64))).shape
        torch.Size([3, 10])
    """

    takes: ClassVar[type] = SequenceBatch

    def __init__(  # noqa: PLR0913  (every argument is a key of the configuration)
        self,
        classes: int = 10,
        length: int = 1024,
        layer: str = "SimplifiedConvLunaLayer",
        layers: int = 8,
        dim: int = 128,
        heads: int = 4,
        feedforward: int = 512,
        memory: int = 256,
        pooling: Pooling = "class",
        positions: Positions = "learned",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        recompute: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(**_arguments(locals()))
        embedding = ValueEmbedding(dim, length, positions, pooling == "class", dropout)
        self.summary = Summary(embedding, _architecture(self.config), pooling)
        self.classifier = _classifier(dim, feedforward, classes, dropout, hidden=2)

    def logits(self, batch: SequenceBatch) -> Float[Tensor, "batch classes"]:
        """Unnormalised log-probabilities of the classes."""
        if batch.values is None:
            raise ValueError(
                "a classifier of real values was given ids; there is SequenceClassifier"
            )
        logits: Tensor = self.classifier(self.summary(batch.values, batch.mask))
        return logits


class PairMatcher(Model):
    """Classifies pairs of sequences, which one encoder reads separately.

    Args:
        features: what the classifier sees of the two summaries a and b: ``"both"``, as published, or their
            ``"interactions"`` (a, b, a·b, a − b) as in Luna's code; the other arguments are those of
            :class:`SequenceClassifier`.

    Example:
        >>> import torch
        >>> model = PairMatcher(257, 2, 50, "VanillaLayer", 2, dim=16, feedforward=32, memory=0)
        >>> document = torch.ones(3, 50).long()
        >>> model(PairBatch(torch.zeros(3).long(), document, document)).shape
        torch.Size([3, 2])
    """

    takes: ClassVar[type] = PairBatch

    def __init__(  # noqa: PLR0913  (every argument is a key of the configuration)
        self,
        vocabulary: int = 257,
        classes: int = 2,
        length: int = 4000,
        layer: str = "SimplifiedConvLunaLayer",
        layers: int = 6,
        dim: int = 128,
        heads: int = 4,
        feedforward: int = 512,
        memory: int = 256,
        pooling: Pooling = "class",
        positions: Positions = "learned",
        features: Features = "both",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        recompute: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(**_arguments(locals()))
        embedding = TokenEmbedding(vocabulary, dim, length, positions, pooling == "class", dropout)
        self.summary, self.features = (
            Summary(embedding, _architecture(self.config), pooling),
            features,
        )
        width = dim * (2 if features == "both" else 4)
        self.classifier = nn.Sequential(
            nn.Linear(width, feedforward),
            nn.GELU(),
            nn.Linear(feedforward, feedforward // 2),
            nn.GELU(),
            nn.Linear(feedforward // 2, classes),
        )

    def logits(self, batch: PairBatch) -> Float[Tensor, "batch classes"]:
        """Unnormalised log-probabilities of the classes."""
        a = self.summary(batch.first, batch.first_mask)
        b = self.summary(batch.second, batch.second_mask)
        seen = [a, b] if self.features == "both" else [a, b, a * b, a - b]
        logits: Tensor = self.classifier(torch.cat(seen, dim=-1))
        return logits


def _arguments(scope: Mapping[str, Any]) -> dict[str, Any]:
    """A constructor's own arguments, as JSON can say them."""
    arguments = {k: v for k, v in scope.items() if k != "self" and not k.startswith("_")}
    return arguments | {"options": dict(arguments["options"] or {})}


def _architecture(config: Mapping[str, Any]) -> Architecture:
    return Architecture(**{k: v for k, v in config.items() if k in Architecture.__annotations__})


def _classifier(dim: int, width: int, classes: int, dropout: float, hidden: int) -> nn.Sequential:
    """Normalisation, ``hidden`` layers, and the logits."""
    layers: list[nn.Module] = [nn.LayerNorm(dim, eps=NORM_EPSILON), nn.Dropout(dropout)]
    for inputs in [dim, *[width] * (hidden - 1)]:
        layers += [nn.Linear(inputs, width), nn.GELU()]
    layers += [nn.Dropout(dropout)] if hidden > 1 else []
    return nn.Sequential(*layers, nn.Linear(width, classes))


__all__ = ["Features", "PairMatcher", "PixelClassifier", "Pooling", "SequenceClassifier", "Summary"]
