"""A training step as the published code takes it: every matrix of scores is there at once, and so are its weights.

Source: ``lra/layers.py`` of the code of Yorsh et al., 2024 (arXiv 2404.00798), read and written anew, not copied. The
weights, the feed-forwards and the norms are those of our model; only the attention differs, and not in what it
computes.
"""

from functools import partial

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from synopsis.memory.layers import split_heads
from synopsis.memory.luna_attention import MemoryAttention
from synopsis.memory.sequence_filters import Convolution, SequenceFilter
from synopsis.models import Model

_RULED_OUT = -1e5  # added to scores, as published


def materialise(model: Model) -> Model:
    """The same model, whose attentions store their scores from now on.

    Args:
        model: changed in place; filters must be convolutions.

    Raises:
        ValueError: for another filter.

    Example:
        >>> from synopsis.models import SequenceClassifier
        >>> model = SequenceClassifier(9, 2, 20, layers=1, dim=8, heads=2, feedforward=8, memory=4)
        >>> materialise(model) is model
        True
    """
    for part in model.modules():
        if isinstance(part, MemoryAttention):
            if part.filtering is not None and not isinstance(part.filtering, Convolution):
                raise ValueError(f"a {type(part.filtering).__name__} is not rewritten here")
            part.forward = partial(_attend, part)  # type: ignore[method-assign]
    return model


def _attend(
    attention: MemoryAttention,
    query_input: Float[Tensor, "batch queries dim"],
    context: Float[Tensor, "batch length dim"],
    mask: Bool[Tensor, "batch length"] | None = None,
) -> Float[Tensor, "batch queries dim"]:
    query = attention.query(query_input)
    key, value = (split_heads(x, attention.heads) for x in attention.key_value(context))
    if attention.filtering is not None:
        key, value = (_filtered(x, attention.filtering) for x in (key, value))
    scores = query @ key.mT
    if mask is not None and mask.shape[-1] == scores.shape[-1]:  # else lost, as published
        scores = scores + (~mask[:, None, None, :]) * _RULED_OUT
    weights = F.dropout(scores.softmax(-1), attention.dropout, attention.training)
    return attention.output(weights @ value)


def _filtered(
    x: Float[Tensor, "batch heads length width"], filtering: SequenceFilter
) -> Float[Tensor, "batch heads windows width"]:
    """A two-dimensional convolution with one column, a group for each head."""
    assert isinstance(filtering, Convolution)  # or it was refused
    taps = filtering.weight[:, None, :, None]
    x = F.pad(x, (0, 0, filtering.lead, filtering.trail(x.shape[2])))
    return F.conv2d(x, taps, stride=(filtering.stride, 1), groups=x.shape[1])
