"""Weibull attention: its noise against the exponential distribution, its divergence against scipy's integral."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from synopsis.memory.luna_attention import MemoryAttention, Projections
from synopsis.memory.weibull_attention import WeibullAttention, WeibullNoise
from tests import reference
from tests.tolerances import FLOAT32, FLOAT64

DIM, HEADS = 8, 2


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def attention(**settings) -> WeibullAttention:
    made = WeibullAttention(Projections(DIM), HEADS, **settings).double()
    return reference.enliven(made, seed=3)


def noise_of(seed, shape, queries=300, keys=300):
    at = torch.arange(max(queries, keys))
    return WeibullNoise(seed, shape)(
        torch.zeros((), dtype=torch.float64),
        at[:2, None, None, None],
        at[None, :2, None, None],
        at[None, None, :queries, None],
        at[None, None, None, :keys],
    )


def test_noise_is_the_logarithm_of_exponentials_over_the_shape():
    noise = noise_of(seed=(1 << 61) + 12345, shape=4.0)
    drawn = (4.0 * noise).exp()
    assert stats.kstest(drawn.flatten()[::7].numpy(), "expon").pvalue > 1e-3
    # Γ(1 + 1/k) is the mean of E^{1/k}: what makes exp(z) the mean of an unnormalised weight.
    mean = noise.exp().mean()
    assert abs(mean - math.gamma(1.25)) < 5 * noise.exp().std() / noise.numel() ** 0.5


def test_noise_differs_between_pairs_batches_heads_and_seeds():
    one, other = noise_of(1, 1.0).exp(), noise_of(2, 1.0).exp()
    parts = [
        one[0, 0],
        one[0, 1],
        one[1, 0],
        one[1, 1],
        other[0, 0],
        one[0, 0].T,
        one[0, 0].flip(0),
    ]
    correlations = torch.corrcoef(torch.stack([part.flatten() for part in parts]))
    assert (correlations - torch.eye(len(parts), dtype=torch.float64)).abs().max() < 5 / 300
    assert torch.equal(one, noise_of(1, 1.0).exp())


def test_evaluation_is_plain_attention_and_training_is_drawn_anew():
    made = attention()
    plain = MemoryAttention(made.projections, HEADS)
    memory, x = draw(2, 3, DIM), draw(2, 9, DIM, seed=1)
    assert torch.equal(made.eval()(memory, x), plain.eval()(memory, x))
    made.train()
    torch.manual_seed(0)
    one, other = made(memory, x), made(memory, x)
    assert not torch.allclose(one, other)
    torch.manual_seed(0)
    assert torch.equal(made(memory, x), one)


@pytest.mark.parametrize("masked", [False, True])
def test_weights_are_normalised_weibull_variables(masked):
    """The same numbers as S/ΣS with S = λ E^{1/k} and λ = exp(z)/Γ(1 + 1/k), E from the same noise."""
    made, shape = attention(shape=3.0).train(), 3.0
    memory, x = draw(2, 3, DIM), draw(2, 9, DIM, seed=1)
    mask = torch.arange(9) < torch.tensor([[6], [0]]) if masked else None
    torch.manual_seed(5)
    found = made(memory, x, mask)
    torch.manual_seed(5)
    noise = noise_of(int(torch.randint(1 << 62, ())), shape, queries=3, keys=9)
    key, value, _ = made.keys_values(x)
    scale = (made.query(memory) @ key.mT).exp() / math.gamma(1.0 + 1.0 / shape)
    drawn = scale * (shape * noise).exp() ** (1.0 / shape)
    if mask is not None:
        drawn = drawn * mask[:, None, None, :]
    weights = drawn / drawn.sum(-1, keepdim=True).clamp(min=1e-300)
    torch.testing.assert_close(
        found, made.output(weights @ value), rtol=100 * FLOAT64, atol=100 * FLOAT64
    )


def test_gradients_are_right_under_noise():
    made = attention(prior=True).train()
    mask = torch.arange(5) < torch.tensor([[5], [3], [0]])

    def run(memory, x, *weights):
        torch.manual_seed(0)
        answer = made(memory, x, mask)
        return answer, made.take_divergence()

    inputs = (draw(3, 2, DIM).requires_grad_(), draw(3, 5, DIM, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(run, (*inputs, *made.parameters()), fast_mode=True)


def divergence_by_integration(z, alpha, shape, rate):
    """∫ w(s) ln(w(s)/g(s)) ds, over ln s."""
    scale = math.exp(z) / math.gamma(1.0 + 1.0 / shape)
    weibull = stats.weibull_min(shape, scale=scale)

    def integrand(log_s):
        s = math.exp(log_s)
        prior = alpha * math.log(rate) - math.lgamma(alpha) + (alpha - 1.0) * log_s - rate * s
        return weibull.pdf(s) * (weibull.logpdf(s) - prior) * s

    centre = math.log(scale)
    return integrate.quad(integrand, centre - 8.0, centre + 3.0, limit=200)[0]


def test_the_divergence_is_that_of_every_pair():
    shape, rate, made = 4.0, 1e-4, attention(shape=4.0, prior=True)
    memory, x = draw(2, 3, DIM), draw(2, 4, DIM, seed=1)
    mask = torch.tensor([[True, False, True, True], [False] * 4])
    query, (key, _, _) = made.query(memory), made.keys_values(x)
    found = made.divergence(query, key, mask).detach()
    logits = made.prior(key)[0, :, mask[0], 0].detach()
    alpha = (rate * logits.softmax(-1)).numpy()
    scores = (query[0] @ key[0, :, mask[0]].mT).detach().numpy()
    expected = np.mean(
        [
            divergence_by_integration(scores[h, i, j], alpha[h, j], shape, rate)
            for h in range(HEADS)
            for i in range(3)
            for j in range(3)
        ]
    )
    np.testing.assert_allclose(found, expected, rtol=FLOAT32)
    assert found > 0


def test_over_nothing_the_divergence_is_zero():
    made, x = attention(prior=True), draw(2, 4, DIM)
    nobody = torch.zeros(2, 4, dtype=torch.bool)
    key, _, _ = made.keys_values(x)
    assert made.divergence(made.query(x), key, nobody).item() == 0.0


def test_a_broadcast_memory_diverges_as_its_copies_do():
    made, memory, x = attention(prior=True), draw(1, 3, DIM), draw(4, 5, DIM, seed=1)
    key, _, _ = made.keys_values(x)
    one, other = (
        made.divergence(made.query(m), key, None) for m in (memory, memory.expand(4, -1, -1))
    )
    torch.testing.assert_close(one, other, rtol=100 * FLOAT64, atol=100 * FLOAT64)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="positive, not 0"):
        attention(shape=0.0)
    with pytest.raises(ValueError, match="no prior"):
        made = attention()
        made.divergence(made.query(draw(1, 2, DIM)), draw(1, HEADS, 3, DIM // HEADS), None)
