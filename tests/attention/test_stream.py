"""streaming_attention against textbook attention; how it reads ahead, what it holds, and how it ends."""

import gc
import json
import math
import os
import subprocess
import sys
import threading
import time
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import synopsis
from synopsis.attention import AttentionState, fused, tiles
from synopsis.attention.reading_ahead import ReadAhead
from synopsis.attention.rules import Rules
from synopsis.attention.stream import Stream, streaming_attention
from tests.attention.test_state_growth import alibi, dense, draw, problem, sparse
from tests.tolerances import FLOAT32, FLOAT64

LAWS = settings(max_examples=60, deadline=None)
EXACT = {"rtol": 100 * FLOAT64, "atol": 100 * FLOAT64}
SOON = 10.0  # seconds that a thread gets for what takes milliseconds


def pieces(key, value, cuts):
    return list(zip(key.split(cuts, -2), value.split(cuts, -2), strict=True))


def expected_under(offset, is_causal, slope=0.3):
    """Textbook options of the rules below, at a query offset."""
    return (
        lambda s, i, j: s - slope * (i + offset - j).abs(),
        lambda i, j: ((i + offset + 2 * j) % 3 > 0) & ((j <= i + offset) if is_causal else True),
    )


def readers():
    return [t for t in threading.enumerate() if t.name == "synopsis-read-ahead"]


@LAWS
@given(
    st.integers(0, 99),
    st.lists(st.integers(0, 4), min_size=1, max_size=5),
    st.integers(-3, 12),
    st.booleans(),
    st.booleans(),
    st.sampled_from([list, iter, lambda blocks: (b for b in blocks)]),
)
def test_any_split_of_any_kind_is_dense_attention(seed, cuts, offset, causal, prefetch, kind):
    query, key, value = problem(seed, keys=sum(cuts))
    output, lse = streaming_attention(
        query,
        kind(pieces(key, value, cuts)),
        is_causal=causal,
        mask_mod=sparse,
        score_mod=alibi(0.3),
        query_offset=offset,
        return_lse=True,
        prefetch=prefetch,
    )
    right = dense(query, key, value, *expected_under(offset, causal))
    torch.testing.assert_close(output, right[0], **EXACT)
    torch.testing.assert_close(lse, right[1], **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_types_of_results(dtype):
    query, key, value = (t.to(dtype) for t in problem(0))
    output, lse = streaming_attention(query, [(key, value)], scale=0.5, return_lse=True)
    assert output.dtype == dtype and lse.dtype == torch.float32
    right = dense(query, key, value, scale=0.5)[0]
    torch.testing.assert_close(output.double(), right, rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("blocks", [[], iter(()), (p for p in ())], ids=["list", "iter", "gen"])
def test_no_blocks_at_all(blocks):
    query = draw(2, 3, 4).requires_grad_()
    output, lse = streaming_attention(query, blocks, return_lse=True)
    assert torch.equal(output, torch.zeros(2, 3, 4, dtype=torch.float64))
    assert torch.equal(lse, torch.full((2, 3), -math.inf, dtype=torch.float64))
    output.sum().backward()
    assert not query.grad.any()


def test_blocks_may_say_how_wide_values_are():
    class Nothing(list):
        value_dim = 7

    assert streaming_attention(draw(3, 4), Nothing()).shape == (3, 7)


def test_empty_blocks_change_nothing():
    query, key, value = problem(1)
    blocks = pieces(key, value, [0, 4, 0, 5, 0])
    torch.testing.assert_close(
        streaming_attention(query, blocks), dense(query, key, value)[0], **EXACT
    )


@pytest.mark.parametrize("offset,causal", [(0, False), (4, True)])
def test_gradients_by_a_second_pass_are_those_of_dense_attention(offset, causal):
    query, key, value = problem(2)
    query.requires_grad_()
    slope = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    blocks = pieces(key, value, [2, 0, 3, 4])
    output, lse = streaming_attention(
        query,
        blocks,
        mask_mod=sparse,
        score_mod=alibi(slope),
        is_causal=causal,
        query_offset=offset,
        return_lse=True,
    )
    right = dense(query, key, value, *expected_under(offset, causal, slope))
    upstream = draw(*output.shape, seed=7), draw(*lse.shape, seed=8)
    for used in ((0,), (1,), (0, 1)):
        found, wanted = (
            torch.autograd.grad(
                sum((each[i] * upstream[i]).nan_to_num(neginf=0.0).sum() for i in used),
                (query, slope),
                retain_graph=True,
            )
            for each in ((output, lse), right)
        )
        for mine, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine, theirs, **EXACT)


def test_gradient_of_a_plain_stream_through_the_fused_kernel():
    query, key, value = problem(3, heads=(4, 4))
    query, value = query.float().requires_grad_(), value[..., :3].float()
    blocks = pieces(key.float(), value, [4, 5])
    (found,) = torch.autograd.grad(streaming_attention(query, blocks).square().sum(), query)
    (right,) = torch.autograd.grad(dense(query, key.float(), value)[0].square().sum(), query)
    torch.testing.assert_close(found, right, rtol=10 * FLOAT32, atol=FLOAT32)


@pytest.mark.parametrize("which", ["all", "some"])
def test_blocks_that_want_a_gradient_get_theirs(which):
    query, key, value = (t.requires_grad_() for t in problem(4))
    blocks = pieces(key, value, [3, 3, 3])
    if which == "some":
        blocks[1] = tuple(t.detach() for t in blocks[1])
    once = iter(blocks) if which == "all" else blocks
    loss = streaming_attention(query, once).square().sum()
    found = torch.autograd.grad(loss, (query, key, value))
    right = torch.autograd.grad(dense(query, key, value)[0].square().sum(), (query, key, value))
    if which == "some":
        for mine in found[1:]:
            assert not mine[:, :, 3:6].any()
        found, right = (
            (each[0], *(t[:, :, [0, 1, 2, 6, 7, 8]] for t in each[1:])) for each in (found, right)
        )
    for mine, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)


def test_keys_made_on_the_way_learn_although_another_thread_makes_them():
    query, key, value = problem(5)
    weight = draw(3, 3, seed=9).requires_grad_()
    made = ((k @ weight, v) for k, v in pieces(key, value, [4, 5]))
    (found,) = torch.autograd.grad(streaming_attention(query, made).square().sum(), weight)
    right = dense(query, key @ weight, value)[0]
    (wanted,) = torch.autograd.grad(right.square().sum(), weight)
    torch.testing.assert_close(found, wanted, **EXACT)
    with torch.no_grad():
        made = [(k @ weight, v) for k, v in pieces(key, value, [4, 5])]
        seen = []
        lazily = (seen.append(k @ weight) or (k, v) for k, v in made)
        assert not streaming_attention(query, lazily).requires_grad
    assert not any(t.requires_grad for t in seen)


def test_what_cannot_be_differentiated_says_so():
    query, key, value = problem(6)
    query.requires_grad_()
    blocks = pieces(key, value, [4, 5])
    output = streaming_attention(query, iter(blocks))
    with pytest.raises(RuntimeError, match="an iterator is used up; give something that can be"):
        output.sum().backward()
    output = streaming_attention(query, blocks)
    blocks.pop()
    with pytest.raises(RuntimeError, match="the second pass gave 4 keys, the first 9"):
        output.sum().backward()


@pytest.mark.parametrize("which", ["query", "captured", "upstream"])
def test_second_derivatives_of_a_stream_are_refused_by_name(which):
    query, key, value = problem(6)
    query.requires_grad_()
    slope = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    upstream = draw(2, 4, 4, 5, seed=3).requires_grad_()
    output = streaming_attention(query, pieces(key, value, [4, 5]), score_mod=alibi(slope))
    first = torch.autograd.grad(output, (query, slope), upstream, create_graph=True)
    wanted = {"query": query, "captured": slope, "upstream": upstream}[which]
    for each in first:
        with pytest.raises(NotImplementedError, match="stream of constant keys has first derivati"):
            torch.autograd.grad(each.sum(), wanted, retain_graph=True)


def test_streams_whose_blocks_all_want_a_gradient_have_second_derivatives():
    inputs = [t[:1, :2, :3].requires_grad_() for t in problem(6, heads=(2, 2))]

    def attend(query, key, value):
        return streaming_attention(query, pieces(key, value, [1, 2]), is_causal=True)

    assert torch.autograd.gradgradcheck(attend, inputs)


def test_transforms_of_torch_func_over_a_stream():
    query, key, value = problem(8)
    blocks = pieces(key, value, [4, 5])
    weights = draw(2, 4, 4, 5, seed=9)

    def streamed(query):
        return (streaming_attention(query, blocks, mask_mod=sparse) * weights).sum()

    def textbook(query):
        right = dense(query, key, value, allowed=lambda i, j: (i + 2 * j) % 3 > 0)[0]
        return (right * weights).sum()

    for engine in ("auto", "tiles"):
        with synopsis.attention.engine(engine):
            found = torch.func.grad(streamed)(query)
            _, tangent = torch.func.jvp(streamed, (query,), (draw(*query.shape, seed=4),))
        torch.testing.assert_close(found, torch.func.grad(textbook)(query), **EXACT)
        expected = (found * draw(*query.shape, seed=4)).sum()
        torch.testing.assert_close(tangent, expected, **EXACT)


def calls_of(monkeypatch):
    """Names of the engines' functions as they are called."""
    seen = []

    def spied(whole, label):
        def spy(*arguments):
            seen.append(label)
            return whole(*arguments)

        return spy

    for label, engine in (("fused", fused), ("tiles", tiles)):
        for name in ("forward", "backward"):
            monkeypatch.setattr(engine, name, spied(getattr(engine, name), (label, name)))
    return seen


@pytest.mark.parametrize("name", ["tiles", "fused"])
def test_a_forced_engine_holds_forward_and_backward(name, monkeypatch):
    """In the backward pass too, which is begun after the ``with`` block has ended."""
    query, key, value = problem(3, heads=(4, 4))
    value = value[..., :3]
    blocks, seen = pieces(key, value, [4, 5]), calls_of(monkeypatch)
    query.requires_grad_()
    with synopsis.attention.engine(name):
        output = streaming_attention(query, blocks)
        state = AttentionState.empty(query, 3).update(key, value)
    assert seen == [(name, "forward")] * 3
    seen.clear()
    (found,) = torch.autograd.grad(output.square().sum(), query)
    assert seen == [(name, "backward")] * 2
    right = dense(query, key, value)[0]
    torch.testing.assert_close(state.output, right, **EXACT)
    (wanted,) = torch.autograd.grad(right.square().sum(), query)
    torch.testing.assert_close(found, wanted, **EXACT)


def test_a_forced_engine_that_cannot_says_so():
    query, key, value = problem(3)  # values are wider than keys
    blocks = pieces(key, value, [4, 5])
    spoilt = key.clone()
    spoilt[..., 0, :] = math.nan
    bias = torch.zeros(9, dtype=torch.float64)
    with synopsis.attention.engine("fused"):
        with pytest.raises(ValueError, match="fused engine cannot take this"):
            streaming_attention(query, blocks)
        with pytest.raises(ValueError, match="fused engine cannot take this"):
            AttentionState.empty(query, 3).update(spoilt, value[..., :3], attn_mask=bias)
        streaming_attention(query, [(key[:, :, :0], value[:, :, :0])])
    assert streaming_attention(query, blocks).isfinite().all()


def test_states_after_each_block_go_on_from_a_state():
    query, key, value = problem(7)
    start = AttentionState.empty(query, 5).update(key[:, :, :2], value[:, :, :2])
    rules = Rules(start.scale, is_causal=True, query_offset=4, key_offset=2)
    blocks = pieces(key[:, :, 2:], value[:, :, 2:], [3, 4])
    *_, last = states = list(Stream(blocks, rules).states(start))
    assert [int(s.count) for s in states] == [5, 9]
    right = dense(query, key, value, allowed=lambda i, j: (j <= i + 4) | (j < 2))
    torch.testing.assert_close(last.output, right[0], **EXACT)


# --- reading ahead -----------------------------------------------------------------------------------------------


class Counted:
    """Blocks that know how many of them are alive."""

    def __init__(self, count, rows=64):
        self.count, self.rows, self.most, self.alive = count, rows, 0, weakref.WeakSet()

    def __iter__(self):
        for i in range(self.count):
            block = draw(self.rows, 4, seed=i, dtype=torch.float32), torch.ones(self.rows, 4)
            self.alive.add(block[0])
            self.most = max(self.most, len(self.alive))
            yield block
            del block


@pytest.mark.parametrize("prefetch,most", [(True, 2), (False, 1)])
@pytest.mark.parametrize("wants", [False, True])
def test_never_more_than_one_block_is_read_ahead(prefetch, most, wants):
    query, source = draw(8, 4, dtype=torch.float32), Counted(30)
    query.requires_grad_(wants)
    output = streaming_attention(query, source, prefetch=prefetch)
    assert source.most == most
    if wants:
        output.sum().backward()
        assert source.most == most
    gc.collect()
    assert not source.alive


def test_the_next_item_is_fetched_while_this_one_is_worked_on():
    begun = [threading.Event() for _ in range(4)]

    def source():
        for i, event in enumerate(begun):
            event.set()
            yield i

    with ReadAhead(source()) as ahead:
        assert begun[0].wait(SOON) and not begun[1].is_set()
        assert ahead.take() == 0
        assert begun[1].wait(SOON)  # nobody has asked for it yet
        time.sleep(0.05)
        assert not begun[2].is_set()
        assert [ahead.take() for _ in range(5)] == [1, 2, 3, None, None]
    assert not readers()


@pytest.mark.parametrize("prefetch", [True, False])
@pytest.mark.parametrize("error", [OSError("disk on fire"), KeyboardInterrupt("source")], ids=repr)
def test_exceptions_of_the_source_arrive_in_the_caller(prefetch, error):
    def source():
        yield draw(5, 4), draw(5, 4)
        raise error

    with pytest.raises(type(error)) as caught:
        streaming_attention(draw(3, 4), source(), prefetch=prefetch)
    assert caught.value is error
    assert not readers()


@pytest.mark.parametrize("prefetch", [True, False])
def test_an_interrupted_caller_leaves_nothing_behind(prefetch):
    class Source:
        closed = False

        def __iter__(self):
            try:
                while True:
                    yield draw(5, 4), draw(5, 4)
            finally:
                Source.closed = True

    def interrupt(b, h, i, j):
        if int(j.max()) > 20:
            raise KeyboardInterrupt
        return i >= j - 10**6

    with pytest.raises(KeyboardInterrupt):
        streaming_attention(draw(3, 4), Source(), mask_mod=interrupt, prefetch=prefetch)
    assert Source.closed and not readers()


def test_a_source_that_hangs_does_not_keep_an_interrupted_caller(monkeypatch):
    monkeypatch.setattr("synopsis.attention.reading_ahead._PATIENCE", 0.05)
    forever = threading.Event()

    def source():
        yield 1
        forever.wait()
        yield 2

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt), ReadAhead(source()) as ahead:
        assert ahead.take() == 1
        raise KeyboardInterrupt
    assert time.monotonic() - begin < SOON
    assert all(thread.daemon for thread in readers())
    forever.set()


@pytest.mark.parametrize(
    "block,message",
    [
        (torch.ones(2, 4), r"not \(2, 4\)"),
        ((torch.ones(2, 4),), r"not \(\(2, 4\)\)"),
        ((torch.ones(2, 4), None), r"not \(\(2, 4\), NoneType\)"),
        ((torch.ones(4), torch.ones(4)), r"not \(\(4,\), \(4,\)\)"),
        ((torch.ones(2, 3), torch.ones(2, 4)), "key has 3 features but query has 4"),
        ((torch.ones(2, 4), torch.ones(3, 4)), "2 keys came with 3 values"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(block, message):
    with pytest.raises(ValueError, match=message):
        streaming_attention(torch.ones(3, 4), [block])
    assert not readers()


def test_later_blocks_of_another_width_are_refused():
    blocks = [(torch.ones(2, 4), torch.ones(2, 5)), (torch.ones(2, 4), torch.ones(2, 6))]
    with pytest.raises(ValueError, match="the block from key 2 on: value has 6 features"):
        streaming_attention(torch.ones(3, 4), blocks)


MEMORY = """
import json, torch
from pathlib import Path
from synopsis.attention.stream import streaming_attention

def peak():
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l)
    return int(line.split()[1]) / 1024

class Blocks:
    def __init__(self, count): self.count = count
    def __iter__(self):
        for _ in range(self.count):
            yield torch.randn(8192, 64), torch.randn(8192, 64)

torch.set_num_threads(1)
query = torch.randn(16, 64, requires_grad=True)
peaks = []
for count in (4, 4, 64):
    streaming_attention(query, Blocks(count)).sum().backward()
    peaks.append(peak())
print(json.dumps(peaks))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_two_blocks_whatever_the_length():
    """Sixteen times as many keys (256 MiB of them), forward and backward: not one block (4 MiB) more."""
    # large allocations go straight to the system and back, so that the allocator's habits are not measured
    plain_malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **plain_malloc},
    )
    _, short, long = json.loads(done.stdout)
    assert long - short < 4.0
