"""Attention sinks: a logit for each head that takes part in the softmax but brings no value."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def with_sink(
    output: Float[Tensor, "*batch heads queries value_dim"],
    lse: Float[Tensor, "*batch heads queries"],
    sink: Float[Tensor, "#heads"] | Float[Tensor, ""] | float,
) -> tuple[Float[Tensor, "*batch heads queries value_dim"], Float[Tensor, "*batch heads queries"]]:
    """Attention as if there had been one more key with this score and value zero.

    Exact, because the softmax over both is the softmax over the real keys times σ(lse − sink).

    Args:
        output: of attention without the sink.
        lse: its log-sum-exp, natural log; ``return_lse=True`` gives both.
        sink: the extra key's score, one for each head or one for all; 0 is "softmax plus one", −∞ is no sink.

    Returns:
        Output and log-sum-exp with the sink; differentiable in all three. A query that attends to no key has output 0
        and the sink as its log-sum-exp.

    Example:
        >>> output, lse = with_sink(torch.ones(1, 2, 3), torch.zeros(1, 2), sink=0.0)
        >>> output[0, 0], lse.exp()
        (tensor([0.5000, 0.5000, 0.5000]), tensor([[2., 2.]]))

    Source: Xiao et al., "Efficient streaming language models with attention sinks", 2024, equation 2; learned for each
    head in OpenAI, "gpt-oss", 2025.
    """
    logit = torch.as_tensor(sink, dtype=lse.dtype, device=lse.device)
    logit = (logit.unsqueeze(-1) if logit.ndim else logit).expand_as(lse)
    nothing = (lse == -math.inf) & (logit == -math.inf)  # −∞ − (−∞) would be NaN
    lse, logit = lse.masked_fill(nothing, 0.0), logit.masked_fill(nothing, 0.0)
    keep = torch.sigmoid(lse - logit).unsqueeze(-1)
    both = torch.logaddexp(lse, logit).masked_fill(nothing, -math.inf)
    return (output * keep).to(output.dtype), both
