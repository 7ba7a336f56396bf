"""transformers' own models, tiny and random, with our attention and with theirs."""

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5EncoderModel,
)
from transformers.masking_utils import create_causal_mask, sdpa_mask

from synopsis.adapters.transformers import LazyMask, attention, mask
from tests.tolerances import PREDICTION

LENGTH = 24
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
PADDINGS = {
    "none": None,
    "left": torch.arange(LENGTH) >= torch.tensor([0, 5, 21])[:, None],
    "right": torch.arange(LENGTH) < torch.tensor([24, 9, 1])[:, None],
    "scattered": (torch.arange(LENGTH) + torch.arange(3)[:, None]) % 4 > 0,
}


def both(kind, config, theirs="sdpa"):
    """The same random model twice: with transformers' attention and with ours."""
    models = []
    for name in (theirs, "synopsis"):
        torch.manual_seed(0)
        model = kind(config(name)).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.3)  # so that attention is far from uniform
        models.append(model)
    models[1].load_state_dict(models[0].state_dict())
    assert models[1].config._attn_implementation == "synopsis"
    return models


def llama(name):
    return LlamaConfig(**GROUPED, attn_implementation=name)


def bert(name):
    return BertConfig(**SIZES, attn_implementation=name)


def tokens(seed=1, batch=3, length=LENGTH):
    return torch.randint(64, (batch, length), generator=torch.Generator().manual_seed(seed))


def last(output):
    return output.logits if "logits" in output else output.last_hidden_state


def assert_same(found, expected, real=None):
    """Equal where tokens are real; a padded query means nothing."""
    assert float(expected.detach().abs().max()) > 0.5
    if real is not None:
        found, expected = found[real], expected[real]
    torch.testing.assert_close(found, expected, rtol=PREDICTION, atol=10 * PREDICTION)


def pull(output, real):
    """A loss that pulls each real token its own way; a mean square would be constant behind a norm."""
    directions = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    kept = slice(None) if real is None else real
    return (output * directions)[kept].mean()


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("kind", "config"), [(LlamaForCausalLM, llama), (BertModel, bert)])
def test_logits_and_gradients_in_training(kind, config, padding):
    theirs, ours = both(kind, config)
    real = PADDINGS[padding]
    found = []
    for model in (theirs.train(), ours.train()):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
        output = last(model(tokens(), attention_mask=real))
        pull(output, real).backward()
        found.append(
            (output, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        )
    assert_same(found[1][0], found[0][0], real)
    assert found[0][1].keys() == found[1][1].keys()
    for name, grad in found[0][1].items():
        scale = max(1.0, float(grad.abs().max()))
        torch.testing.assert_close(
            found[1][1][name],
            grad,
            rtol=0,
            atol=10 * PREDICTION * scale,
            msg=lambda m, n=name: f"{n}: {m}",
        )


BEFORE_THEM = [(LlamaForCausalLM, llama, "left"), (LlamaForCausalLM, llama, "scattered")]
ANYWHERE = [(BertModel, bert, padding) for padding in ("left", "right", "scattered")]


@pytest.mark.parametrize(("kind", "config", "padding"), BEFORE_THEM + ANYWHERE)
def test_padding_is_not_dropped(kind, config, padding):
    _, ours = both(kind, config)
    real = PADDINGS[padding]
    other = torch.where(real, tokens(1), tokens(2))
    with torch.no_grad():
        before = last(ours(tokens(1), attention_mask=real))
        after = last(ours(other, attention_mask=real))
        blind = last(ours(other))
    assert_same(after, before, real)
    assert float((blind[real] - before[real]).abs().max()) > 0.1


def test_the_future_changes_nothing():
    _, ours = both(LlamaForCausalLM, llama)
    changed = tokens().clone()
    changed[:, 15:] = (changed[:, 15:] + 7) % 64
    with torch.no_grad():
        before, after = ours(tokens()).logits, ours(changed).logits
    assert_same(after[:, :15], before[:, :15])
    assert float((after[:, 15:] - before[:, 15:]).abs().amax(-1).min()) > 0.01


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("chunk", [1, 5])
def test_decoding_with_a_cache_is_the_whole_sequence(padding, chunk):
    theirs, ours = both(LlamaForCausalLM, llama)
    real, ids = PADDINGS[padding], tokens()
    places = None if real is None else (real.cumsum(-1) - 1).clamp(min=0)
    pieces, cache = [], None
    with torch.no_grad():
        whole = theirs(ids, attention_mask=real, position_ids=places).logits
        for stop in range(chunk, LENGTH + chunk, chunk):
            some = slice(stop - chunk, min(stop, LENGTH))
            seen = None if real is None else real[:, : some.stop]
            where = None if places is None else places[:, some]
            step = ours(
                ids[:, some], attention_mask=seen, position_ids=where, past_key_values=cache
            )
            pieces.append(step.logits)
            cache = step.past_key_values
    assert_same(torch.cat(pieces, 1), whole, real)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generate_says_the_same(cache):
    theirs, ours = both(LlamaForCausalLM, llama)
    settings = {
        "max_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 0,
        "attention_mask": PADDINGS["left"].long(),
    }
    expected = theirs.generate(tokens(), **settings, cache_implementation="dynamic")
    found = ours.generate(tokens(), **settings, cache_implementation=cache)
    assert torch.equal(found, expected)


def mistral(name):
    return MistralConfig(**GROUPED, sliding_window=5, attn_implementation=name)


@pytest.mark.parametrize("padding", ["none", "left"])
def test_sliding_window(padding):
    theirs, ours = both(MistralForCausalLM, mistral)
    real = PADDINGS[padding]
    with torch.no_grad():
        expected = theirs(tokens(), attention_mask=real).logits
        assert_same(ours(tokens(), attention_mask=real).logits, expected, real)
        far = tokens().clone()
        far[:, 0] = (far[:, 0] + 1) % 64
        assert_same(ours(far).logits[:, 12:], ours(tokens()).logits[:, 12:])  # beyond two windows
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(ours.generate(tokens(), **settings), theirs.generate(tokens(), **settings))


def test_packed_sequences():
    theirs, ours = both(LlamaForCausalLM, llama)
    places = torch.cat([torch.arange(9), torch.arange(LENGTH - 9)])[None]
    ids = tokens(batch=1)
    with torch.no_grad():
        found = ours(ids, position_ids=places, use_cache=False).logits
        assert_same(found, theirs(ids, position_ids=places, use_cache=False).logits)
        assert_same(found[:, 9:], ours(ids[:, 9:]).logits)


def gemma(name):
    sizes = GROUPED | {"num_hidden_layers": 2, "sliding_window": 7, "query_pre_attn_scalar": 8}
    return Gemma2Config(**sizes, attn_logit_softcapping=0.7, attn_implementation=name)


def gpt_oss(name):
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 7}
    return GptOssConfig(**GROUPED | experts, attn_implementation=name)


@pytest.mark.parametrize(
    ("kind", "config"), [(Gemma2ForCausalLM, gemma), (GptOssForCausalLM, gpt_oss)]
)
def test_what_sdpa_cannot_do_soft_caps_and_sinks(kind, config):
    eager, ours = both(kind, config, theirs="eager")
    with torch.no_grad():
        for model in (eager, ours):
            for name, parameter in model.named_parameters():
                if name.endswith("sinks"):
                    parameter.copy_(torch.linspace(-1, 2, 4))
        expected = eager(tokens(), attention_mask=PADDINGS["right"]).logits
        found = ours(tokens(), attention_mask=PADDINGS["right"]).logits
    assert_same(found, expected, PADDINGS["right"])


def test_position_bias_gets_its_gradient():
    def t5(name):
        sizes = {
            "vocab_size": 64,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
        }
        return T5Config(**sizes, dropout_rate=0.0, attn_implementation=name)

    found = []
    for model in both(T5EncoderModel, t5):
        output = model(tokens(), attention_mask=PADDINGS["right"].long()).last_hidden_state
        pull(output, PADDINGS["right"]).backward()
        table = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        found.append((output, table.grad))
    assert_same(found[1][0], found[0][0], PADDINGS["right"])
    assert float(found[0][1].abs().max()) > 1e-3
    torch.testing.assert_close(found[1][1], found[0][1], rtol=0, atol=10 * PREDICTION)


def rows(lazy):
    return lazy if isinstance(lazy, torch.Tensor) else lazy.dense()


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    ("queries", "start", "first"), [(24, 0, 0), (3, 21, 0), (1, 23, 0), (4, 20, 6)]
)
def test_the_rule_is_the_mask_that_sdpa_would_get(padding, queries, start, first):
    call = {
        "batch_size": 3,
        "q_length": queries,
        "kv_length": LENGTH - first,
        "q_offset": torch.tensor(start),
        "kv_offset": first,
        "attention_mask": PADDINGS[padding],
        "device": "cpu",
    }
    expected = sdpa_mask(**call, allow_is_causal_skip=False)
    found = mask(**call, allow_is_causal_skip=True)
    assert isinstance(found, LazyMask)
    assert found.shape == expected.shape
    assert torch.equal(found.dense(), expected)
    assert torch.equal(found[:, :, :1], expected[:, :, :1])


def test_a_rule_that_is_not_index_based_is_formed():
    def same_parity(batch, head, query, key):
        return torch.where(query % 2 == 0, key % 2 == 0, key % 2 == 1)

    config = llama("synopsis")
    embeddings = torch.zeros(2, 6, 32)
    made = create_causal_mask(config, embeddings, None, None, and_mask_function=same_parity)
    assert isinstance(made, torch.Tensor)
    q, k = torch.arange(6)[:, None], torch.arange(6)
    assert torch.equal(made, ((k <= q) & (k % 2 == q % 2)).expand(2, 1, 6, 6))


def test_masks_of_users_are_taken():
    theirs, ours = both(LlamaForCausalLM, llama)
    allowed = (torch.arange(LENGTH) % 3 > 0) | torch.eye(LENGTH, dtype=torch.bool)
    with torch.no_grad():
        for given in (allowed, torch.where(allowed, 0.0, torch.finfo(torch.float32).min)):
            four = given.expand(3, 1, LENGTH, LENGTH)
            expected = theirs(tokens(), attention_mask=four).logits
            assert_same(ours(tokens(), attention_mask=four).logits, expected)


class Module(nn.Module):
    is_causal = True


def test_dropout_reaches_attention():
    torch.manual_seed(0)
    query = torch.randn(1, 2, 16, 8)
    ones = torch.ones(1, 2, 16, 8)
    out, weights = attention(Module(), query, query, ones, None, dropout=0.5)
    assert weights is None
    assert out.shape == (1, 16, 2, 8)
    assert float(out.std()) > 0.1  # with values of one only dropped weights vary
    plain, _ = attention(Module(), query, query, ones, None)
    torch.testing.assert_close(plain, torch.ones_like(plain))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"output_attentions": True},
            "output_attentions was given to attn_implementation='synopsis'",
        ),
        ({"cache": object()}, "a paged cache is not supported"),
        ({"indices": torch.zeros(1)}, "attention to chosen keys only is not supported"),
    ],
)
def test_what_cannot_be_done_is_refused(given, message):
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match=message):
        attention(Module(), x, x, x, None, **given)


def test_a_long_padded_sequence_forms_no_mask(monkeypatch):
    def forbidden(self):
        raise AssertionError("the whole mask was formed")

    monkeypatch.setattr(LazyMask, "dense", forbidden)
    _, ours = both(LlamaForCausalLM, llama)
    real = torch.arange(60) >= torch.tensor([0, 30])[:, None]
    with torch.no_grad():
        assert ours(tokens(batch=2, length=60), attention_mask=real).logits.isfinite().all()
