from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synopsis.training.checkpoint import Checkpoint, CheckpointError

SCALARS = {"loss": 0.1 + 0.2, "list": [1, 2.5], "nested": {"a": None, "b": "ä"}}


def sample(step: int = 3) -> Checkpoint:
    tensors = {
        "weights.a": torch.randn(3, 4),
        "weights.b": torch.randn(5, dtype=torch.float64)[::2],
        "step.a": torch.tensor(3.0),
        "empty": torch.zeros(0, 2),
        "count": torch.tensor([2**40]),
        "half": torch.randn(3).bfloat16(),
    }
    tensors["tied"] = tensors["weights.a"]
    return Checkpoint(step, tensors, SCALARS, '[process]\nname = "ä"\n')


def test_everything_comes_back_to_the_bit(tmp_path):
    path, written = tmp_path / "c", sample()
    written.write(path)
    read = Checkpoint.read(path)
    assert (read.step, read.scalars, read.experiment) == (3, SCALARS, written.experiment)
    assert read.tensors.keys() == written.tensors.keys()
    for name, tensor in written.tensors.items():
        assert read.tensors[name].dtype == tensor.dtype
        assert torch.equal(read.tensors[name], tensor)


@pytest.mark.parametrize("broken", ["replace", "open"])
def test_crash_while_writing_leaves_the_old_one(tmp_path, monkeypatch, broken):
    path = tmp_path / "c"
    sample(step=1).write(path)

    def crash(*arguments, **options):
        raise OSError("the lights went out")

    with monkeypatch.context() as patch:
        patch.setattr(Path, broken, crash)
        with pytest.raises(OSError, match="lights"):
            sample(step=2).write(path)
    assert Checkpoint.read(path).step == 1
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("damaged") / "c"
    sample().write(path)
    return path, path.read_bytes()


@settings(deadline=None)
@given(data=st.data())
def test_cut_off_anywhere_is_one_line_with_the_file(whole, data):
    path, content = whole
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CheckpointError, match=r"/c: not a whole checkpoint") as caught:
        Checkpoint.read(path)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_one_changed_byte_anywhere_is_noticed(whole, data):
    path, content = whole
    place = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    try:
        read = Checkpoint.read(path)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:  # a byte that carries nothing, such as a space of padding: then nothing has changed
        expected = Checkpoint.read(_rewritten(path, content))
        assert read.scalars == expected.scalars
        assert all(torch.equal(read.tensors[k], v) for k, v in expected.tensors.items())


@pytest.mark.parametrize(
    ("before", "after"), [(b"[0,2]", b"[0,3]"), (b'"F32","shape":[3,4]', b'"I32","shape":[3,4]')]
)
def test_types_and_shapes_that_fit_the_bytes_are_noticed_too(whole, before, after):
    path, content = whole
    assert before in content
    path.write_bytes(content.replace(before, after, 1))
    with pytest.raises(CheckpointError, match="checksum does not match"):
        Checkpoint.read(path)
    path.write_bytes(content)


def _rewritten(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_not_there_and_not_ours(tmp_path):
    with pytest.raises(CheckpointError, match=r"none: no such checkpoint"):
        Checkpoint.read(tmp_path / "none")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match=r"foreign: not a whole checkpoint"):
        Checkpoint.read(tmp_path / "foreign")


def test_another_format_is_refused_by_number(tmp_path, monkeypatch):
    monkeypatch.setattr("synopsis.training.checkpoint.FORMAT", 2)
    sample().write(tmp_path / "c")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 2; this version reads 1"):
        Checkpoint.read(tmp_path / "c")
