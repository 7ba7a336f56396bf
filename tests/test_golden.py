"""Golden files: what a release wrote, every later one reads."""

import hashlib
import json
from importlib import import_module
from pkgutil import walk_packages

import pytest
import torch

import synopsis
from synopsis.states import _KINDS, State, read_state
from tests.golden import make_golden
from tests.state_examples import NAMES
from tests.tolerances import PREDICTION

GOLDEN = sorted(make_golden.FOLDER.glob("*.synopsis"))
# One digest over names and bytes of all golden files of format 1. It changes only when files of another kind are added.
GOLDEN_DIGEST = "6f3baa3ba80c45a0820a79d26bc770e340e464fdf6ada0ac09c0a9666425aab1"


def test_every_name_has_golden_files():
    assert {p.stem for p in GOLDEN} == {f"{n}-n{c}-v1" for n in NAMES for c in (0, 1, 10, 1000)}


def test_every_kind_of_state_is_in_some_golden_file():
    for module in walk_packages(synopsis.__path__, "synopsis."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    ours = {k for k, cls in _KINDS.items() if cls.__module__.startswith("synopsis.")}
    found = {kind for path in GOLDEN for kind in kinds_in(read_state(path))}
    assert ours - found == {"pooled"}  # what CNP's and NP's have in common, which nobody keeps


def kinds_in(part: object) -> set[str]:
    if isinstance(part, State):
        inside = (kinds_in(value) for value in vars(part).values())
        return {part.kind}.union(*inside)
    return set().union(*map(kinds_in, part)) if isinstance(part, tuple) else set()


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
