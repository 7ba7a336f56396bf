"""Readers of image sets on tiny samples written here in the original formats."""

import gzip
import struct

import numpy as np
import pytest

from synopsis.tasks import image_files
from synopsis.tasks.image_files import default_folders, load_images, read_idx

RANDOM = np.random.default_rng(0)


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_pair(folder, stem, labels, packed=False):
    """Random images with the labels; returns the images."""
    folder.mkdir(parents=True, exist_ok=True)
    images = RANDOM.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
    pair = (("images-idx3", images), ("labels-idx1", np.array(labels, np.uint8)))
    for kind, array in pair:
        path = folder / f"{stem}-{kind}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return images


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No image set of this machine can be found."""
    monkeypatch.delenv("SYNOPSIS_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(image_files, "SYSTEM_FOLDER", tmp_path / "system")
    return tmp_path


# --- idx


@pytest.mark.parametrize("shape", [(0,), (5,), (2, 3, 4)])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_round_trip(tmp_path, shape, packed):
    array = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    content = idx(array)
    (tmp_path / "file").write_bytes(gzip.compress(content) if packed else content)
    assert np.array_equal(read_idx(tmp_path / "file"), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file"),
        (b"\x89PNG", "not an idx file of bytes: it starts with b'.x89PNG'"),
        (idx(np.zeros((2, 3), np.uint8))[:9], "truncated: 9 bytes hold no header of 12"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], r"holds 5 values but its header says \(2, 3\)"),
        (idx(np.zeros((2, 3), np.uint8)) + b"x", r"holds 7 values"),
        (gzip.compress(idx(np.zeros(9, np.uint8)), mtime=0)[:-9], "damaged gzip file"),
        (b"\x1f\x8bnot gzip", "damaged gzip file"),
    ],
)
def test_damaged_idx_is_named(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=f"file: .*{message}"):
        read_idx(tmp_path / "file")


# --- Fashion-MNIST and EMNIST


@pytest.mark.parametrize("below", [".", "fashion-mnist", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_fashion_mnist_in_every_layout(tmp_path, below, packed):
    labels = [0, 5, 4, 9, 3, 0]
    train = write_pair(tmp_path / below, "train", labels, packed)
    test = write_pair(tmp_path / below, "t10k", labels[::-1], packed)
    wanted = {"train": train[[0, 2, 4, 5]], "seen": test[[0, 1, 3, 5]], "unseen": test[[2, 4]]}
    for split, images in wanted.items():
        pixels = load_images("fashion-mnist", split, str(tmp_path))
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, images.reshape(-1, 784, 1))
        assert not pixels.flags.writeable


def test_emnist_is_upright_and_splits_at_class_ten(tmp_path):
    labels = [9, 10, 46, 0]
    train = write_pair(tmp_path / "EMNIST/raw", "emnist-balanced-train", labels)
    test = write_pair(tmp_path / "EMNIST/raw", "emnist-balanced-test", labels, packed=True)
    wanted = {"train": train[[0, 3]], "seen": test[[0, 3]], "unseen": test[[1, 2]]}
    for split, images in wanted.items():
        upright = np.stack([image.T for image in images]).reshape(-1, 784, 1)
        assert np.array_equal(load_images("emnist", split, str(tmp_path)), upright)


def test_files_are_read_once(tmp_path):
    write_pair(tmp_path, "train", [1, 2])
    first = load_images("fashion-mnist", "train", str(tmp_path))
    (tmp_path / "train-images-idx3-ubyte").unlink()
    assert load_images("fashion-mnist", "train", str(tmp_path)) is first


def test_labels_and_images_must_agree(tmp_path):
    write_pair(tmp_path, "train", [1, 2])
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(ValueError, match=r"images are \(2, 28, 28\) but there are 3 labels"):
        load_images("fashion-mnist", "train", str(tmp_path))


def test_environment_comes_first_and_a_folder_before_it(nowhere, monkeypatch):
    given, other = nowhere / "given", nowhere / "other"
    images = {folder: write_pair(folder, "train", [1]) for folder in (given, other)}
    monkeypatch.setenv("SYNOPSIS_DATA", str(given))
    assert default_folders()[0] == given
    found = load_images("fashion-mnist", "train")
    assert np.array_equal(found.reshape(1, 28, 28), images[given])
    found = load_images("fashion-mnist", "train", str(other))
    assert np.array_equal(found.reshape(1, 28, 28), images[other])


@pytest.mark.parametrize(
    ("dataset", "how"),
    [
        ("fashion-mnist", "apt install dataset-fashion-mnist.*fetch_fashion_mnist.*FashionMNIST"),
        ("emnist", r"datasets.EMNIST\(folder, 'balanced', download=True\)"),
        ("celeba64", r"datasets.CelebA\(folder, download=True\)"),
    ],
)
def test_missing_files_say_where_we_looked_and_how_to_get_them(nowhere, dataset, how):
    with pytest.raises(FileNotFoundError, match=f"in none of .*system.*{how}.*SYNOPSIS_DATA"):
        load_images(dataset, "train")
    with pytest.raises(FileNotFoundError, match=r"in none of [^;]*empty"):
        load_images(dataset, "train", str(nowhere / "empty"))


@pytest.mark.parametrize(("split", "images"), [("train", 30_000), ("seen", 5000), ("unseen", 5000)])
def test_the_real_fashion_mnist(split, images):
    try:
        pixels = load_images("fashion-mnist", split)
    except FileNotFoundError:
        pytest.skip("Fashion-MNIST is not on this machine")
    assert pixels.shape == (images, 784, 1)
    assert (pixels.min(), pixels.max()) == (0, 255)


# --- digits


def test_digits_are_all_there_once():
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = datasets.load_digits()
    train, seen, unseen = (load_images("digits", s) for s in ("train", "seen", "unseen"))
    first, last = slice(0, 1297), slice(1297, None)
    for split, rows, classes in (
        (train, first, range(5)),
        (seen, last, range(5)),
        (unseen, last, range(5, 10)),
    ):
        wanted = bunch.images[rows][np.isin(bunch.target[rows], classes)]
        assert np.array_equal(split, wanted.reshape(-1, 64, 1))
    assert train.max() == seen.max() == unseen.max() == 16


# --- CelebA


@pytest.fixture
def faces(tmp_path):
    image = pytest.importorskip("PIL.Image")
    home = tmp_path / "celeba"
    (home / "img_align_celeba").mkdir(parents=True)
    parts = {"000003.jpg": 0, "000001.jpg": 2, "000002.jpg": 1, "000004.jpg": 2}
    for name in parts:
        pixels = RANDOM.integers(0, 256, (218, 178, 3), dtype=np.uint8)
        image.fromarray(pixels).save(home / "img_align_celeba" / name, quality=95)
    lines = "".join(f"{name} {part}\n" for name, part in parts.items())
    (home / "list_eval_partition.txt").write_text(lines)
    return tmp_path


def shrunk(folder, name, side):
    from PIL import Image

    with Image.open(folder / "celeba/img_align_celeba" / name) as image:
        return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("side", [32, 64, 128])
def test_celeba_is_shrunk_and_in_the_order_of_names(faces, side):
    for split, names in (("train", "000002 000003"), ("seen", "000001 000004")):
        pixels = load_images(f"celeba{side}", split, str(faces))
        wanted = [shrunk(faces, f"{name}.jpg", side) for name in names.split()]
        assert np.array_equal(pixels, np.stack(wanted).reshape(2, side**2, 3))


def test_celeba_is_shrunk_once_and_kept(faces):
    first = np.array(load_images("celeba32", "train", str(faces)))
    image_files._load.cache_clear()
    (faces / "celeba/img_align_celeba/000002.jpg").unlink()
    assert np.array_equal(load_images("celeba32", "train", str(faces)), first)


def test_celeba_interrupted_leaves_nothing_half_done(faces):
    (faces / "celeba/img_align_celeba/000003.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"000003\.jpg"):
        load_images("celeba32", "train", str(faces))
    assert {p.name for p in (faces / "celeba").iterdir()} == {
        "img_align_celeba",
        "list_eval_partition.txt",
    }


def test_damaged_partition_is_named_with_its_line(faces):
    path = faces / "celeba/list_eval_partition.txt"
    path.write_text("000001.jpg 0\n000002.jpg 3\n")
    with pytest.raises(ValueError, match=r"partition\.txt:2: '000002.jpg 3' is not"):
        load_images("celeba32", "train", str(faces))
