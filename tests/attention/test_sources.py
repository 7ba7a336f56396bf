"""Files of keys and values: every format, in pieces of any size, again and again; and files that are not whole."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from pyarrow import parquet

from synopsis.attention.sources import KeyValueSource, SourceError, open_array, open_source
from synopsis.attention.stream import streaming_attention
from tests.tolerances import FLOAT64

BLOCKS = (1, 7, 64, 100, 500)
ROWS = np.random.default_rng(0).normal(size=(3, 100, 8))


def read(file, block):
    """All rows, after a look at the sizes of the pieces."""
    array = open_array(file)
    found = list(array.pieces(block))
    sizes = [piece.shape[-2] for piece in found]
    length = array.shape[-2]
    assert sizes == [block] * (length // block) + [length % block] * (length % block > 0)
    whole = torch.cat(found, -2)
    assert tuple(whole.shape) == array.shape and whole.dtype == array.dtype
    return whole


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f2", ">f4", ">f8"])
@pytest.mark.parametrize("shape", ["heads", "one head", "batch"])
def test_npy(tmp_path, block, order, dtype, shape):
    rows = {"heads": ROWS, "one head": ROWS[0], "batch": ROWS[None, :2]}[shape].astype(dtype)
    np.save(tmp_path / "k.npy", np.asarray(rows, order=order))
    assert np.array_equal(read(tmp_path / "k.npy", block).numpy(), rows)


def test_npy_of_every_header_version(tmp_path):
    for version in ((1, 0), (2, 0)):
        with (tmp_path / "k.npy").open("wb") as file:
            np.lib.format.write_array(file, ROWS, version)
        assert np.array_equal(read(tmp_path / "k.npy", 30).numpy(), ROWS)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_safetensors(tmp_path, block, dtype):
    rows, path = torch.from_numpy(ROWS).to(dtype), tmp_path / "k.safetensors"
    safetensors.torch.save_file({"odd": torch.ones(3, dtype=torch.uint8), "rows": rows}, path)
    assert torch.equal(read(f"{path}:rows", block), rows)
    safetensors.torch.save_file({"only": rows}, path)
    assert torch.equal(read(path, block), rows)


@pytest.fixture
def table():
    lists = pa.FixedSizeListArray.from_arrays(pa.array(ROWS[0].ravel().astype("f4")), 8)
    columns = {"lists": lists, "whole": np.arange(100), "single": ROWS[1, :, 0].astype("f4")}
    return pa.table({**columns, "half": ROWS[1, :, 1].astype("f2"), "name": ["x"] * 100})


def write(table, path):
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=30)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=33)
    return path


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
def test_columns(tmp_path, table, block, suffix):
    path = write(table, tmp_path / f"k{suffix}")
    assert np.array_equal(read(f"{path}:lists", block).numpy(), ROWS[0].astype("f4"))
    mixed = read(f"{path}:single,lists,half", block)
    expected = [ROWS[1, :, :1], ROWS[0], ROWS[1, :, 1:2].astype("f2")]
    assert mixed.dtype == torch.float32
    assert np.array_equal(mixed.numpy(), np.concatenate(expected, 1).astype("f4"))
    numbers = read(f"{path}:whole", block)
    assert numbers.dtype == torch.float64 and numbers.flatten().tolist() == list(range(100))


def test_all_columns_of_a_table_without_names(tmp_path, table):
    path = write(table.drop_columns(["name", "lists"]), tmp_path / "k.parquet")
    assert open_array(path).shape == (100, 3)


def test_missing_values_are_refused(tmp_path):
    for column in (
        pa.array([1.0, None, 2.0]),
        pa.array([[1.0, 2.0], None, [1.0, 2.0]], pa.list_(pa.float32(), 2)),
        pa.array([[1.0, 2.0], [1.0, None], [1.0, 2.0]], pa.list_(pa.float32(), 2)),
    ):
        path = write(pa.table({"x": column}), tmp_path / "k.parquet")
        with pytest.raises(SourceError, match="column 'x' has missing values"):
            list(open_array(path).pieces(2))


def test_blocks_kept_by_the_caller_stay_as_they_were(tmp_path):
    """Buffers are used again, but not while anything made from them lives: a view, an array, a graph."""
    np.save(tmp_path / "k.npy", ROWS[0])
    pieces = open_array(tmp_path / "k.npy").pieces(10)
    kept = [[p[2:5].T, p.numpy()[5:], p.view(-1)][i % 3] for i, p in enumerate(pieces)]
    for i, part in enumerate(kept):
        block = ROWS[0, 10 * i : 10 * i + 10]
        expected = [block[2:5].T, block[5:], block.ravel()][i % 3]
        assert np.array_equal(np.asarray(part), expected)


def test_buffers_are_used_again(tmp_path):
    np.save(tmp_path / "k.npy", ROWS[0])
    places = [piece.data_ptr() for piece in open_array(tmp_path / "k.npy").pieces(5)]
    assert len(set(places)) <= 2 < len(places)


def test_giving_a_buffer_back_runs_no_python(tmp_path):
    """An interrupt that meets Python code of a destructor is swallowed: Ctrl-C would do nothing."""
    np.save(tmp_path / "k.npy", ROWS[0])
    pieces = open_array(tmp_path / "k.npy").pieces(5)
    held = [next(pieces)]
    called = []
    sys.setprofile(lambda frame, event, _: event == "call" and called.append(frame.f_code))
    held.clear()
    sys.setprofile(None)
    assert not called
    next(pieces)


@pytest.mark.parametrize("fast", [True, False])
def test_a_source_is_read_again_and_again(tmp_path, fast):
    rows = torch.from_numpy(ROWS)
    for i, piece in enumerate(rows.split([60, 40], 1)):
        np.save(tmp_path / f"k{i}.npy", piece.numpy())
        np.save(tmp_path / f"v{i}.npy", piece[..., :5].numpy())
    files = [[tmp_path / f"{name}{i}.npy" for i in range(2)] for name in "kv"]
    source = open_source(*files)
    assert (source.length, source.leading, source.dim, source.value_dim) == (100, (3,), 8, 5)
    blocks = source.blocks(25)
    assert [key.shape[1] for key, _ in blocks] == [25, 25, 10, 25, 15]
    assert len(blocks) == 5
    query = rows[:, :6].clone().requires_grad_()
    memory = KeyValueSource.of_tensors(rows, rows[..., :5]).blocks(33)
    grads = []
    for each in (blocks, memory):
        output = streaming_attention(query, each, prefetch=fast)
        grads.append((output, *torch.autograd.grad(output.square().sum(), query)))
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=100 * FLOAT64, atol=100 * FLOAT64)


def test_an_empty_file_has_no_blocks_but_a_width(tmp_path):
    np.save(tmp_path / "k.npy", np.empty((0, 4), "f4"))
    np.save(tmp_path / "v.npy", np.empty((0, 6), "f4"))
    source = open_source(tmp_path / "k.npy", tmp_path / "v.npy")
    assert list(source.blocks()) == []
    assert streaming_attention(torch.ones(2, 4), source.blocks()).shape == (2, 6)


def cut(path, to):
    path.write_bytes(path.read_bytes()[:to])


def test_npy_files_that_are_not_whole(tmp_path):
    path = tmp_path / "k.npy"
    np.save(path, ROWS)
    size = path.stat().st_size
    array = open_array(path)
    cut(path, size - 1)
    with pytest.raises(SourceError, match=f"k.npy: is cut short: {size:,} bytes are announced"):
        open_array(path)
    with pytest.raises(SourceError, match=r"k\.npy: ended while it was read, 1 bytes early"):
        list(array.pieces(40))
    for length in (0, 3, 9, 60):
        cut(path, length)
        with pytest.raises(SourceError, match=r"k\.npy: not a \.npy file"):
            open_array(path)
    path.write_bytes(b"\x93NUMPY\x09\x00" + b"\x00" * 200)
    with pytest.raises(SourceError, match=r"k\.npy: not a \.npy file"):
        open_array(path)


@pytest.mark.parametrize(
    "rows,message",
    [
        (np.arange(12).reshape(3, 4), "holds int64; float16, float32 or float64 is needed"),
        (np.zeros((3, 4), "c8"), "holds complex64"),
        (np.zeros((3, 4), "V2"), "save bfloat16 as safetensors"),
        (np.zeros((3, 4), [("a", "f4")]), "float16, float32 or float64 is needed"),
        (np.array([{}], object), "holds object"),
        (np.zeros(3, "f4"), r"has shape \(3,\); it needs \(..., length, width\)"),
        (np.zeros((3, 0), "f4"), r"has shape \(3, 0\)"),
    ],
    ids=str,
)
def test_npy_files_of_other_things(tmp_path, rows, message):
    np.save(tmp_path / "k.npy", rows, allow_pickle=True)
    with pytest.raises(SourceError, match=message):
        open_array(tmp_path / "k.npy")


def test_safetensors_files_that_do_not_fit(tmp_path):
    path = tmp_path / "k.safetensors"
    tensors = {"a": torch.ones(3, 4), "b": torch.ones(3, 4, dtype=torch.int32)}
    safetensors.torch.save_file(tensors, path)
    for file, message in {
        f"{path}": "which tensor is meant. it holds a, b: write FILE:NAME",
        f"{path}:c": "there is no tensor 'c'; it holds a, b",
        f"{path}:b": "b holds I32; a floating dtype is needed",
    }.items():
        with pytest.raises(SourceError, match=message):
            open_array(file)
    cut(path, path.stat().st_size - 1)
    with pytest.raises(SourceError, match="not a whole safetensors file"):
        open_array(f"{path}:a")


def test_tables_that_do_not_fit(tmp_path, table):
    path = write(table, tmp_path / "k.parquet")
    with pytest.raises(SourceError, match="has no column 'z'; there are lists, whole"):
        open_array(f"{path}:z")
    with pytest.raises(SourceError, match="column 'name' holds string; numbers or fixed-size"):
        open_array(path)
    for suffix in (".parquet", ".arrow"):
        path = write(table, tmp_path / f"cut{suffix}")
        cut(path, 200)
        with pytest.raises(SourceError, match=f"cut{suffix}: cannot be read"):
            open_array(path)
    path = write(table, tmp_path / "late.parquet")
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56  # the footer is whole, the first page is not
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"late\.parquet: cannot be read"):
        list(open_array(f"{path}:lists").pieces(50))


def test_files_that_are_not_there_or_of_no_known_kind(tmp_path):
    for name in ("k.npy", "k.safetensors", "k.parquet", "k.arrow"):
        with pytest.raises(SourceError, match=f"{name}: No such file or directory"):
            open_array(tmp_path / name)
    with pytest.raises(SourceError, match=r"is neither \.npy, \.safetensors, \.parquet"):
        open_array(tmp_path / "k.csv")
    (tmp_path / "d.npy").mkdir()
    with pytest.raises(SourceError, match=r"d\.npy: Is a directory"):
        open_array(tmp_path / "d.npy")


def test_a_colon_may_be_part_of_a_name(tmp_path):
    np.save(tmp_path / "k:1.npy", ROWS)
    assert open_array(tmp_path / "k:1.npy").shape == ROWS.shape


def test_keys_and_values_that_disagree(tmp_path):
    shapes = {"k": (9, 4), "short": (8, 4), "wide": (9, 5), "heads": (2, 9, 4)}
    for name, shape in shapes.items():
        np.save(tmp_path / f"{name}.npy", np.zeros(shape, "f4"))
    k, short, wide, heads = (tmp_path / f"{name}.npy" for name in shapes)
    for keys, values, message in (
        (k, short, r"short.npy: its shape \(8, 4\) and that of .*k.npy, \(9, 4\), must agree"),
        (k, heads, "must agree in all but the width"),
        ([k, wide], [k, k], r"wide.npy: its shape \(9, 5\) does not continue that of the first"),
        ([k, k], [k, wide], r"wide.npy: its shape \(9, 5\) does not continue"),
        ([k, heads], [k, heads], r"heads.npy: its shape \(2, 9, 4\) does not continue"),
        ([k, k], [k], "2 files of keys came with 1 of values"),
        ([], [], "there are no keys and values"),
    ):
        with pytest.raises(SourceError, match=message):
            open_source(keys, values)
    with pytest.raises(ValueError, match="at least 1 key, not 0"):
        open_source(k, k).blocks(0)


MEMORY = """
import json, sys, torch
from pathlib import Path
from synopsis.attention.sources import open_source
from synopsis.attention.stream import streaming_attention

def peak():
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l)
    return int(line.split()[1]) / 1024

torch.set_num_threads(1)
peaks = []
for size in ("short", "long"):
    source = open_source(f"{sys.argv[1]}/{size}", f"{sys.argv[1]}/{size}")
    streaming_attention(torch.ones(4, 64), source.blocks(4096))
    peaks.append(peak())
print(json.dumps(peaks))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("suffix", ["npy", "safetensors", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    """A file of 2 MiB and one of 32 MiB, in blocks of 1 MiB; a mapped file would stay resident."""
    script = MEMORY
    for size, rows in (("short", 1 << 13), ("long", 1 << 17)):
        values, path = torch.ones(rows, 64), tmp_path / f"{size}.{suffix}"
        if suffix == "npy":
            np.save(path, values.numpy())
        elif suffix == "safetensors":
            safetensors.torch.save_file({"x": values}, path)
        else:
            lists = pa.FixedSizeListArray.from_arrays(pa.array(values.flatten().numpy()), 64)
            parquet.write_table(pa.table({"x": lists}), path, row_group_size=rows)
        script = script.replace(f'"{size}"', f'"{path.name}"')
    plain_malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **plain_malloc},
    )
    short, long = json.loads(done.stdout)
    assert long - short < 8.0
