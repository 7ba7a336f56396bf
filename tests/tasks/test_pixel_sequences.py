"""The Image task: CIFAR-10 in grey, or Fashion-MNIST that stands in for it."""

import gzip

import numpy as np
import pytest

from synopsis.tasks.pixel_sequences import PixelSequences
from tests.tasks.sequence_checks import check_task
from tests.tasks.test_cifar_files import binary, write


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(header + array.tobytes())


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    home = tmp_path / "fashion-mnist"
    home.mkdir()
    kept = {}
    for stem, count in (("train", 20), ("t10k", 6)):
        images = rng.integers(1, 256, (count, 28, 28)).astype(np.uint8)
        labels = rng.integers(0, 10, count).astype(np.uint8)
        (home / f"{stem}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (home / f"{stem}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
        kept[stem] = images, labels
    monkeypatch.setenv("SYNOPSIS_DATA", str(tmp_path))
    return kept


@pytest.mark.parametrize("pixels", ["values", "ids"])
def test_fashion_stands_in(fashion, pixels):
    check_task(PixelSequences(pixels=pixels), stand_in="CIFAR-10 in grey")


@pytest.mark.parametrize("pixels", ["values", "ids"])
def test_cifar_is_a_sequence_task(tmp_path, pixels):
    write(tmp_path, binary)
    check_task(PixelSequences(str(tmp_path), pixels), stand_in="")


def test_fashion_has_a_dark_border_and_its_last_tenth_validates(fashion):
    task = PixelSequences(pixels="ids")
    images, labels = fashion["train"]
    for split, part in (("train", slice(18)), ("validation", slice(18, None))):
        batch = next(task.batches(split, 99))
        assert batch.labels.tolist() == labels[part].tolist()
        square = batch.tokens.view(-1, 32, 32).numpy()
        assert (square[:, 2:30, 2:30] == images[part]).all()
        assert square.sum() == images[part].sum(dtype=int)
    assert next(task.batches("test", 99)).labels.tolist() == fashion["t10k"][1].tolist()


def test_what_is_wrong_is_named(tmp_path, fashion, monkeypatch):
    with pytest.raises(ValueError, match="pixels is 'bits'"):
        PixelSequences(pixels="bits")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        PixelSequences(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"data_batch_1"):
        PixelSequences(str(tmp_path)).examples("train")
    monkeypatch.setenv("SYNOPSIS_DATA", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match=r"fetch_fashion_mnist\(\)"):
        PixelSequences().examples("train")
    home = tmp_path / "elsewhere"
    home.mkdir()
    (home / "t10k-images-idx3-ubyte").write_bytes(
        gzip.decompress(idx(np.zeros((2, 28, 28), np.uint8)))
    )
    (home / "t10k-labels-idx1-ubyte").write_bytes(gzip.decompress(idx(np.zeros(3, np.uint8))))
    with pytest.raises(ValueError, match=r"images are \(2, 28, 28\), labels \(3,\)"):
        PixelSequences().examples("test")
