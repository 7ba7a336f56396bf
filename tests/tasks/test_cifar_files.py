"""CIFAR-10's two forms, written here byte by byte."""

import numpy as np
import pytest

from synopsis.tasks.cifar_files import TEST, TRAIN, read_cifar


def pictures(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3072)).astype(np.uint8), rng.integers(0, 10, count)


def binary(images, labels):
    return b"".join(
        bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True)
    )


def python_2_pickle(images, labels):
    """{'data': …, 'labels': [...], 'filenames': ['x']} as Python 2 wrote it, protocol 2."""
    data = images.tobytes()
    listed = b"".join(b"K" + bytes([label]) for label in labels)
    return (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n"
        b"q\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K"
        + bytes([len(labels)])
        + b"M\x00\x0c\x86cnumpy\ndtype\n"
        b"U\x02u1K\x00K\x01\x87R\x89T" + len(data).to_bytes(4, "little") + data + b"tb"
        b"U\x06labelsq\x07]q\x08(" + listed + b"eU\tfilenames]q\x09(U\x01xeu."
    )


def write(folder, form):
    folder.mkdir(parents=True, exist_ok=True)
    end = ".bin" if form is binary else ""
    for number, name in enumerate((*TRAIN, *TEST)):
        images, labels = pictures(3, number)
        (folder / (name + end)).write_bytes(form(images, labels))


@pytest.mark.parametrize("form", [binary, python_2_pickle])
@pytest.mark.parametrize("below", [".", "cifar-10-batches-py", "cifar-10-batches-bin"])
def test_reads_grey_pictures_in_order(tmp_path, form, below):
    write(tmp_path / below, form)
    grey, labels = read_cifar(tmp_path, train=True)
    expected = [pictures(3, number) for number in range(5)]
    assert labels.tolist() == [label for _, part in expected for label in part]
    red, green, blue = expected[1][0][2].astype(float).reshape(3, 1024)
    assert (grey[5] == (0.2989 * red + 0.587 * green + 0.114 * blue).astype(int)).all()
    assert grey.dtype == labels.dtype == np.uint8
    assert read_cifar(tmp_path, train=False)[1].tolist() == pictures(3, 5)[1].tolist()


def test_nothing_in_a_pickle_runs(tmp_path):
    write(tmp_path, python_2_pickle)
    path = tmp_path / "test_batch"
    touched = tmp_path / "touched"
    call = f"cos\nsystem\n(U{chr(len(f'touch {touched}'))}touch {touched}tR0".encode()
    content = path.read_bytes()
    path.write_bytes(content[:2] + call + content[2:])
    assert len(read_cifar(tmp_path, train=False)[1]) == 3
    assert not touched.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test_batch.bin", b"123", r"test_batch\.bin: 3 bytes are no whole number"),
        (
            "test_batch.bin",
            b"\x0b" + bytes(3072),
            r"test_batch\.bin: 1 pictures, 1 labels of 0 … 9",
        ),
        ("test_batch", b"no pickle", "test_batch: damaged"),
        ("test_batch", b"\x80\x02}q\x01.", "test_batch: 0 bytes are no whole number"),
        ("test_batch", python_2_pickle(*pictures(3))[:-60], "test_batch: "),
        ("test_batch", python_2_pickle(pictures(3)[0], [1, 2]), "test_batch: 3 pictures, 2 labels"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_cifar(tmp_path, train=False)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_batch_1\[\.bin\] of CIFAR-10"):
        read_cifar(tmp_path, train=True)
