"""Golden files: what a release wrote, every later one reads."""

import hashlib
import json

import pytest
import torch

from synopsis.states import (
    read_state,
)
from tests.golden import make_golden
from tests.state_examples import NAMES
from tests.tolerances import PREDICTION

GOLDEN = sorted(make_golden.FOLDER.glob("*.synopsis"))
# One digest over names and bytes of all golden files of format 1. It changes only when files of another kind are added.
GOLDEN_DIGEST = "8615ec8e4af97c196a697387782db9e2f76e07cf962d2703d77d028a985fa47c"


def test_every_kind_has_golden_files():
    assert {p.stem for p in GOLDEN} == {f"{n}-n{c}-v1" for n in NAMES for c in (0, 1, 10, 1000)}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_files_still_say_what_they_said(path):
    beside = json.loads(path.with_suffix(".json").read_text())
    state = read_state(path)
    assert state.kind == beside["kind"] and int(state.count.max()) == beside["count"]
    found = torch.tensor(make_golden.answer(path.stem.rsplit("-n", 1)[0], state)).double()
    expected = torch.tensor(beside["answer"], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=10 * PREDICTION, atol=10 * PREDICTION)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_todays_states_agree_with_golden_files(path):
    name, count = path.stem.removesuffix("-v1").rsplit("-n", 1)
    today, then = make_golden.make(name, int(count)), read_state(path)
    assert type(today) is type(then) and today.nbytes == then.nbytes
    assert getattr(today, "fingerprint", None) == getattr(then, "fingerprint", None)
    found, expected = (torch.tensor(make_golden.answer(name, s)) for s in (today, then))
    torch.testing.assert_close(found, expected, rtol=10 * PREDICTION, atol=10 * PREDICTION)


def test_golden_files_are_never_rewritten():
    digest = hashlib.sha256()
    for path in sorted(make_golden.FOLDER.glob("*-v1.*")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    assert digest.hexdigest() == GOLDEN_DIGEST, "files that were released must stay as they are"


def test_making_golden_files_leaves_those_that_exist_alone(tmp_path, monkeypatch):
    (tmp_path / "cmab-n0-v1.synopsis").write_bytes(b"released")
    monkeypatch.setattr(make_golden, "FOLDER", tmp_path)
    monkeypatch.setattr(make_golden, "COUNTS", (0,))
    make_golden.main()
    assert (tmp_path / "cmab-n0-v1.synopsis").read_bytes() == b"released"
    assert len(list(tmp_path.glob("*.synopsis"))) == len(NAMES)
