"""The blockwise transformer layer against torch's own plain layer, and what it promises about memory."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from synopsis.attention import engine
from synopsis.attention.blockwise import BlockwiseTransformerLayer
from synopsis.attention.masks import SlidingWindow
from tests.attention.dense import dense_attention
from tests.tolerances import AUTOCAST, FLOAT64, PREDICTION

DIM, HEADS = 24, 4


def plain_layer(feedforward=40, dtype=torch.float64):
    """torch's layer, with weights large enough that scores and gates matter."""
    layer = nn.TransformerEncoderLayer(
        DIM, HEADS, feedforward, 0.0, "gelu", batch_first=True, norm_first=True, dtype=dtype
    )
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    return layer


def ours_like(plain, **options):
    options.setdefault("feedforward", plain.linear1.out_features)
    layer = BlockwiseTransformerLayer(DIM, HEADS, **options).to(plain.linear1.weight.dtype)
    layer.load_state_dict(plain.state_dict())
    return layer


def plain_with_rules(layer, x, is_causal=False, mask_mod=None, score_mod=None):
    """The same layer in the textbook's terms, for rules that torch's layer does not know."""
    w, b = layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias
    projected = nn.functional.linear(layer.norm1(x), w, b)
    query, key, value = (
        t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in projected.chunk(3, -1)
    )
    attended, _ = dense_attention(
        query, key, value, is_causal=is_causal, mask_mod=mask_mod, score_mod=score_mod
    )
    x = x + layer.self_attn.out_proj(attended.transpose(1, 2).flatten(2))
    return x + layer.linear2(nn.functional.gelu(layer.linear1(layer.norm2(x))))


def gradients(function, x, parameters, upstream):
    x = x.detach().requires_grad_()
    output = function(x)
    return [output.detach(), *torch.autograd.grad(output, (x, *parameters), upstream)]


def assert_all_close(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0.0, atol=tolerance * scale)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 40),
    query_block=st.integers(1, 50),
    head_block=st.none() | st.integers(1, 5),
    is_causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_is_torchs_layer_with_all_its_gradients(
    batch, length, query_block, head_block, is_causal, seed
):
    torch.manual_seed(seed)
    plain = plain_layer()
    ours = ours_like(plain, query_block=query_block, head_block=head_block, is_causal=is_causal)
    x, upstream = torch.randn(2, batch, length, DIM, dtype=torch.float64)
    mask = torch.triu(torch.full((length, length), -torch.inf, dtype=torch.float64), 1)
    expected = gradients(
        lambda x: plain(x, src_mask=mask if is_causal else None), x, plain.parameters(), upstream
    )
    names = [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in ours.named_parameters()] == names
    assert_all_close(gradients(ours, x, ours.parameters(), upstream), expected, FLOAT64)


@pytest.mark.parametrize("name", ["auto", "tiles"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_float32_is_as_good_as_the_plain_layer(name, is_causal):
    torch.manual_seed(0)
    exact = plain_layer()
    ours = ours_like(plain_layer(dtype=torch.float32), query_block=64, is_causal=is_causal)
    ours.load_state_dict({k: v.float() for k, v in exact.state_dict().items()})
    exact.load_state_dict({k: v.double() for k, v in ours.state_dict().items()})
    x, upstream = torch.randn(2, 2, 300, DIM)
    expected = gradients(
        lambda x: plain_with_rules(exact, x, is_causal),
        x.double(),
        exact.parameters(),
        upstream.double(),
    )
    with engine(name):
        found = gradients(ours, x, ours.parameters(), upstream)
    assert_all_close([t.double() for t in found], expected, PREDICTION)


def head_dependent(b, h, q_idx, kv_idx):
    """Every head and stream of the batch sees something else, and some queries see nothing."""
    return (kv_idx + q_idx + h + 2 * b) % 3 > 0


@pytest.mark.parametrize("mask_mod", [head_dependent, SlidingWindow(5, 2)])
@pytest.mark.parametrize("head_block", [1, 3, 4])
def test_rules_and_the_tensors_in_them(mask_mod, head_block):
    torch.manual_seed(1)
    plain = plain_layer()
    slope = torch.rand(HEADS, dtype=torch.float64, requires_grad=True)

    def score_mod(score, b, h, q_idx, kv_idx):
        return score - slope[h] * (q_idx - kv_idx).abs()

    rules = {"mask_mod": mask_mod, "score_mod": score_mod}
    ours = ours_like(plain, query_block=7, head_block=head_block)
    x, upstream = torch.randn(2, 2, 23, DIM, dtype=torch.float64)
    expected = gradients(
        lambda x: plain_with_rules(plain, x, **rules), x, (*plain.parameters(), slope), upstream
    )
    found = gradients(lambda x: ours(x, **rules), x, (*ours.parameters(), slope), upstream)
    assert float(expected[-1].abs().min()) > 0.1
    assert_all_close(found, expected, FLOAT64)


def test_padding_and_nan_behind_it_reach_nobody():
    torch.manual_seed(2)
    ours = ours_like(plain_layer(), query_block=5)
    lengths = torch.tensor([9, 20])
    real = torch.arange(20) < lengths[:, None]
    x = torch.randn(2, 20, DIM, dtype=torch.float64)
    mask_mod = lambda b, h, q_idx, kv_idx: (kv_idx < lengths[b]) & (q_idx < lengths[b])  # noqa: E731
    spoilt = x.masked_fill(~real[..., None], torch.nan)
    upstream = torch.randn_like(x) * real[..., None]
    found = gradients(lambda x: ours(x, mask_mod=mask_mod), x, (), upstream)
    output = ours(spoilt, mask_mod=mask_mod)
    assert_all_close([output[real]], [found[0][real]], FLOAT64)
    alone = gradients(ours, x[:1, :9], (), upstream[:1, :9])
    assert_all_close([found[0][:1, :9], found[1][:1, :9]], alone, FLOAT64)
    assert not found[1][~real].any()


def test_the_future_changes_nothing():
    torch.manual_seed(3)
    ours = ours_like(plain_layer(), query_block=6, is_causal=True)
    x = torch.randn(1, 30, DIM, dtype=torch.float64)
    changed = x.clone()
    changed[:, 17:] += 10.0
    before, after = ours(x).detach(), ours(changed).detach()
    assert torch.equal(after[:, :12], before[:, :12])  # whole blocks before the change
    assert_all_close([after[:, :17]], [before[:, :17]], FLOAT64)
    assert float((after[:, 17:] - before[:, 17:]).abs().amax(-1).min()) > 1.0


def test_second_derivatives():
    torch.manual_seed(4)
    layer = BlockwiseTransformerLayer(4, 2, 3, query_block=2, is_causal=True).double()
    names, parameters = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters))
    assert torch.autograd.gradgradcheck(function, (x, *parameters), fast_mode=True)


def test_backward_twice_adds_up_and_frozen_weights_get_nothing():
    torch.manual_seed(5)
    ours = ours_like(plain_layer(), query_block=4)
    ours.norm1.weight.requires_grad_(False)
    x = torch.randn(1, 10, DIM, dtype=torch.float64, requires_grad=True)
    output = ours(x).square().sum()
    output.backward(retain_graph=True)
    once = x.grad.clone()
    output.backward()
    assert_all_close([x.grad], [2 * once], FLOAT64)
    assert ours.norm1.weight.grad is None
    assert ours.norm1.bias.grad is not None


def test_batch_dimensions_and_empty_sequences():
    torch.manual_seed(6)
    ours = ours_like(plain_layer(), query_block=4)
    x = torch.randn(2, 3, 7, DIM, dtype=torch.float64)
    assert_all_close([ours(x)[1, 2], ours(x[1, 2])], [ours(x[1, 2]), ours(x[1, 2:])[0]], FLOAT64)
    empty = torch.zeros(2, 0, DIM, dtype=torch.float64, requires_grad=True)
    ours(empty).sum().backward()
    assert empty.grad.shape == empty.shape


def test_mixed_precision_backward_uses_what_forward_used():
    torch.manual_seed(7)
    plain = plain_layer(dtype=torch.float32)
    ours = ours_like(plain, query_block=16)
    x, upstream = torch.randn(2, 2, 50, DIM)

    def mixed(layer):
        def run(x):
            with torch.autocast("cpu", torch.bfloat16):
                return plain_mixed(layer, x) if layer is plain else layer(x)

        return run

    def plain_mixed(layer, x):
        projected = nn.functional.linear(
            layer.norm1(x), layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias
        )
        query, key, value = (
            t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in projected.chunk(3, -1)
        )
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + layer.self_attn.out_proj(attended.transpose(1, 2).flatten(2))
        return x + layer.linear2(nn.functional.gelu(layer.linear1(layer.norm2(x))))

    expected = gradients(mixed(plain), x, plain.parameters(), upstream)
    found = gradients(mixed(ours), x, ours.parameters(), upstream)
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    assert_all_close(found, expected, AUTOCAST)


def test_half_precision_sums_gradients_in_float32():
    torch.manual_seed(8)
    exact = plain_layer()
    ours = ours_like(exact, query_block=1).bfloat16()
    exact.load_state_dict({k: v.double() for k, v in ours.state_dict().items()})
    x, upstream = torch.randn(2, 1, 200, DIM).bfloat16()
    found = gradients(ours, x, ours.parameters(), upstream)
    expected = gradients(exact, x.double(), exact.parameters(), upstream.double())
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert float((a.double() - b).norm() / b.norm()) < AUTOCAST


# dynamo looks at .grad of what it resumes with after a graph break
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_checkpoint_and_compile_leave_it_as_it_is():
    torch.manual_seed(9)
    ours = ours_like(plain_layer(), query_block=4)
    x, upstream = torch.randn(2, 1, 9, DIM, dtype=torch.float64)
    expected = gradients(ours, x, ours.parameters(), upstream)
    again = lambda x: torch.utils.checkpoint.checkpoint(ours, x, use_reentrant=False)  # noqa: E731
    assert_all_close(gradients(again, x, ours.parameters(), upstream), expected, FLOAT64)
    compiled = torch.compile(ours, backend="eager")
    assert_all_close(gradients(compiled, x, ours.parameters(), upstream), expected, FLOAT64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "dim 24 does not divide into 5 heads"),
        ({"heads": 4, "query_block": 0}, "query_block must be at least 1, not 0"),
        ({"heads": 4, "head_block": 0}, "head_block must be at least 1, not 0"),
    ],
)
def test_errors_say_what_came(options, message):
    with pytest.raises(ValueError, match=message):
        BlockwiseTransformerLayer(DIM, **options)


def test_a_wrong_width_is_refused():
    with pytest.raises(ValueError, match=r"x must be \(\.\.\., length, 24\), not \(2, 3, 25\)"):
        BlockwiseTransformerLayer(DIM, HEADS)(torch.zeros(2, 3, 25))


MEMORY = """
import torch
from synopsis.attention.blockwise import BlockwiseTransformerLayer
from synopsis.attention.resident_memory import measured_call
torch.set_num_threads(1)
layer = BlockwiseTransformerLayer(128, 4, 4096, query_block=128)
def run(length):
    x = torch.randn(1, length, 128, requires_grad=True)
    layer(x).sum().backward()
run(256)
print(measured_call(lambda: run(2048))[0] >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted otherwise elsewhere")
def test_the_hidden_layer_never_exists_for_all_tokens():
    """One hidden activation of all tokens would be 32 MiB, and a plain layer keeps two; the rest is 1 MiB each."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 24
