"""Byte sequences of unequal lengths and their file."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synopsis.tasks.token_sets import (
    PairSet,
    Sequences,
    TokenSet,
    load_tokens,
    save_arrays,
    save_tokens,
)

PIECES = st.lists(st.binary(max_size=6), min_size=1, max_size=5)


def token_set(pieces=(b"abc", b"", b"\xff"), length=2):
    labels = np.arange(len(pieces), dtype=np.uint8)
    return TokenSet(Sequences.joined(list(pieces)), labels, length)


@settings(max_examples=50, deadline=None)
@given(PIECES, st.integers(1, 8), st.randoms(use_true_random=False))
def test_padding_is_byte_plus_one_and_zeros(pieces, length, random):
    rows = [random.randrange(len(pieces)) for _ in range(4)]
    tokens, mask = Sequences.joined(pieces).pad(np.array(rows), length)
    for row, found, real in zip(rows, tokens.tolist(), mask.tolist(), strict=True):
        ids = [byte + 1 for byte in pieces[row][:length]]
        assert found == ids + [0] * (length - len(ids))
        assert real == [True] * len(ids) + [False] * (length - len(ids))


@settings(max_examples=50, deadline=None)
@given(PIECES)
def test_checksum_is_of_the_content_however_stored(pieces):
    joined = Sequences.joined(pieces)
    lengths = b"".join(len(piece).to_bytes(4, "little") for piece in pieces)
    assert joined.digest() == hashlib.sha256(lengths + b"".join(pieces)).digest()
    backwards = Sequences.joined(pieces[::-1])
    turned = Sequences(backwards.symbols, backwards.starts[::-1], backwards.lengths[::-1])
    assert turned.digest() == joined.digest()


def test_pairs_keep_their_order():
    first, second = Sequences.joined([b"a", b"b"]), Sequences.joined([b"xy", b"z"])
    pairs = PairSet(first, second, np.array([1, 0], np.uint8), 2)
    batch = pairs.batch(np.array([1]))
    assert batch.first.tolist() == [[99, 0]]
    assert batch.second.tolist() == [[123, 0]]
    assert batch.labels.tolist() == [0]
    assert pairs.checksum != PairSet(second, first, pairs.labels, 2).checksum


def test_the_file_gives_back_the_set(tmp_path):
    tokens = token_set()
    save_tokens(tmp_path / "new" / "it.safetensors", tokens, {"seed": "3"})
    read, facts = load_tokens(tmp_path / "new" / "it.safetensors", 2)
    assert read.checksum == tokens.checksum == facts["checksum"]
    assert facts["seed"] == "3"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["it.safetensors"]


def test_the_first_of_a_set_can_be_kept(tmp_path):
    save_tokens(tmp_path / "it", token_set().first(2), {})
    read, _ = load_tokens(tmp_path / "it", 2)
    assert [read.sequences[row].tobytes() for row in range(len(read))] == [b"abc", b""]


def test_damage_is_named(tmp_path):
    path = tmp_path / "it"
    save_tokens(path, token_set(), {})
    content = bytearray(path.read_bytes())
    content[content.index(b"abc")] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"it: damaged: its content has checksum"):
        load_tokens(path, 2)
    path.write_bytes(content[:20])
    with pytest.raises(ValueError, match=r"it: damaged"):
        load_tokens(path, 2)
    save_arrays(path, {"labels": np.zeros(1, np.uint8)}, {})
    with pytest.raises(ValueError, match="there is no lengths, symbols in it"):
        load_tokens(path, 2)


def test_only_sequences_without_gaps_are_kept(tmp_path):
    tokens = token_set([b"abc", b"d"])
    overlapping = Sequences(
        tokens.sequences.symbols, np.zeros(2, np.int64), tokens.sequences.lengths
    )
    with pytest.raises(ValueError, match="with gaps"):
        save_tokens(tmp_path / "it", TokenSet(overlapping, tokens.labels, 2), {})
