"""`synopsis attend` and `synopsis merge` of its states, from tiny files to files on disk."""

import json
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from synopsis import AttentionState
from synopsis.states import read_state
from tests.attention.test_state_growth import dense
from tests.cli.commands import assert_one_line_error, environment, run
from tests.tolerances import FLOAT32, FLOAT64

EXACT = {"rtol": 100 * FLOAT64, "atol": 100 * FLOAT64}


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    """q.npy (2, 5, 4), k.npy (2, 60, 4), v.npy (2, 60, 3), and halves of the latter, in the current folder."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    found = {n: generator.normal(size=s) for n, s in (("q", (2, 5, 4)), ("k", (2, 60, 4)))}
    found["v"] = generator.normal(size=(2, 60, 3))
    for name, rows in found.items():
        np.save(f"{name}.npy", rows)
    for name in "kv":
        np.save(f"{name}0.npy", found[name][:, :25])
        np.save(f"{name}1.npy", found[name][:, 25:])
    return {name: torch.from_numpy(rows) for name, rows in found.items()}


def attend(*options, query="q.npy", keys=("k.npy",), values=("v.npy",)):
    files = [x for k in keys for x in ("--keys", k)] + [x for v in values for x in ("--values", v)]
    return run("attend", query, *files, *options)


def written(path="o.safetensors"):
    found = safetensors.torch.load_file(path)
    return found["output"], found["lse"]


def assert_written(expected, path="o.safetensors"):
    for mine, theirs in zip(written(path), expected, strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)


@pytest.mark.parametrize("block", [2, 7, 60, 65536])
def test_attention_from_files(arrays, block):
    result = attend("--block", block, "--out", "o.safetensors")
    assert result.exit_code == 0, result.output
    line = r"o.safetensors: 5 queries in 2 heads, 60 keys in \d+\.\d s \([\d,]+ keys/s\)\n"
    assert re.fullmatch(line, result.stdout)
    assert result.stderr == ""
    assert_written(dense(arrays["q"], arrays["k"], arrays["v"]))


def test_one_head_many_files_other_scale_and_npy(arrays):
    for name in ("q", "k0", "k1", "v0", "v1"):
        np.save(f"{name}.npy", np.load(f"{name}.npy")[0].astype("f4"))
    parts = {"keys": ("k0.npy", "k1.npy"), "values": ("v0.npy", "v1.npy")}
    options = ["--scale", 0.3, "--out", "o.npy", "--quiet", "--threads", 1]
    result = attend(*options, **parts)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    one = [arrays[name][:1].float() for name in "qkv"]
    found = np.load("o.npy")
    assert found.shape == (5, 3) and found.dtype == np.float32
    expected = dense(*one, scale=0.3)[0][0].numpy()
    np.testing.assert_allclose(found, expected, rtol=10 * FLOAT32, atol=FLOAT32)


def test_causal_positions(arrays):
    options = ["--causal", "--query-offset", 30, "--out", "o.safetensors"]
    assert attend(*options).exit_code == 0
    whole = dense(arrays["q"], arrays["k"], arrays["v"], allowed=lambda i, j: j <= i + 30)
    assert_written(whole)
    for i, offset in ((0, 0), (1, 25)):
        state = ["--state", f"p{i}", "--key-offset", offset]
        assert attend(*options[:3], *state, keys=[f"k{i}.npy"], values=[f"v{i}.npy"]).exit_code == 0
    assert run("merge", "p0", "p1", "--output", "o.safetensors").exit_code == 0
    assert_written(whole)


def test_parts_made_apart_merge_into_the_whole(arrays):
    for i in (0, 1):
        result = attend("--state", f"p{i}.safetensors", keys=[f"k{i}.npy"], values=[f"v{i}.npy"])
        assert result.exit_code == 0, result.output
    parts = ["p0.safetensors", "p1.safetensors"]
    result = run("merge", *parts, "--out", "s.safetensors", "--output", "o.safetensors")
    assert result.exit_code == 0, result.output
    assert result.stdout == "s.safetensors: 60 keys of 2 states\n"
    expected = dense(arrays["q"], arrays["k"], arrays["v"])
    assert_written(expected)
    state = read_state(Path("s.safetensors"))
    assert isinstance(state, AttentionState) and state.count == 60
    torch.testing.assert_close(state.output, expected[0], **EXACT)
    again = run("merge", "s.safetensors", *parts, "--output", "o.npy")
    assert again.stdout == "o.npy: 120 keys of 3 states\n"
    np.testing.assert_allclose(np.load("o.npy"), expected[0].numpy(), rtol=100 * FLOAT64)
    found = json.loads(run("inspect", "s.safetensors", "--json").stdout)
    assert (found["kind"], found["count"]) == ("attention", 60)


def test_parts_of_one_head_merge_too(arrays):
    for name in ("q", "k0", "k1", "v0", "v1"):
        np.save(f"{name}.npy", np.load(f"{name}.npy")[0])
    for i in (0, 1):
        assert attend("--state", f"p{i}", keys=[f"k{i}.npy"], values=[f"v{i}.npy"]).exit_code == 0
    result = run("merge", "p0", "p1", "--output", "o.npy")
    assert result.exit_code == 0, result.output
    expected = dense(*(arrays[name][:1] for name in "qkv"))[0][0]
    np.testing.assert_allclose(np.load("o.npy"), expected.numpy(), rtol=100 * FLOAT64)


def test_states_that_do_not_merge(arrays):
    assert attend("--state", "a").exit_code == 0
    assert attend("--state", "b", "--scale", 1.0).exit_code == 0
    assert_one_line_error(run("merge", "a", "b", "--out", "c"), "b: cannot be merged with a")
    assert_one_line_error(run("merge", "a", "--out", "c"), "at least two states; there is only a")
    assert_one_line_error(run("merge", "a", "a"), "name a file for the result: --out FILE")
    assert_one_line_error(run("merge", "a", "q.npy", "--out", "c"), "q.npy: not a state")
    assert_one_line_error(run("merge", "a", "gone", "--out", "c"), "gone: No such file")
    summary = read_state(Path("a")).summary
    Path("d").write_bytes(summary.serialize())
    message = "d: holds a state of kind 'softmax-summary'; a one of kind 'attention'"
    assert_one_line_error(run("merge", "a", "d", "--out", "c"), message)
    assert_one_line_error(run("merge", "a", "a", "--output", "c.txt"), "c.txt: the attention goes")
    message = "--output is for states of attention"
    assert_one_line_error(run("merge", "d", "d", "--output", "c.npy"), message)
    data = Path("a").read_bytes()
    Path("e").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert_one_line_error(run("merge", "a", "e", "--out", "c"), "e: state is damaged")
    assert not Path("c").exists()


@pytest.mark.parametrize(
    "kind", ["cut", "gone", "width", "heads", "batch", "length", "int", "values"]
)
def test_files_that_do_not_fit_are_one_line_and_nothing_is_written(arrays, kind):
    k = np.load("k.npy")
    change = {
        "width": k[..., :3],
        "heads": np.concatenate([k, k[:1]]),
        "batch": k[None],
        "length": k[:, :59],
        "int": k.astype(int),
    }
    if kind in change:
        np.save("k.npy", change[kind])
    if kind == "heads":
        np.save("v.npy", np.concatenate([np.load("v.npy")] * 2)[:3])
    if kind == "batch":
        np.save("v.npy", np.load("v.npy")[None])
    if kind == "cut":
        Path("k.npy").write_bytes(Path("k.npy").read_bytes()[:-1])
    message = {
        "cut": "k.npy: is cut short",
        "gone": "gone.npy: No such file",
        "width": "k.npy: has 3 features but q.npy has 4; they must agree",
        "heads": "k.npy: has 3 heads but q.npy has 2; those of keys must divide",
        "batch": "k.npy: has 4 dimensions; (heads, length, dim) at most",
        "length": "v.npy: its shape (2, 60, 3) and that of k.npy, (2, 59, 4)",
        "int": "k.npy: holds int64",
        "values": "1 files of keys came with 2 of values",
    }[kind]
    files = {"gone": {"keys": ["gone.npy"]}, "values": {"values": ["v.npy", "v.npy"]}}
    result = attend("--out", "o.npy", "--state", "s", **files.get(kind, {}))
    assert_one_line_error(result, message)
    assert not Path("o.npy").exists() and not Path("s").exists()


@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("what", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_found(arrays, where, what):
    rows = np.load(f"{where}.npy")
    rows[1, 3, 2] = what
    np.save(f"{where}.npy", rows)
    message = f"{where}.npy: row 3 holds a number that is not finite"
    assert_one_line_error(attend("--block", 2, "--out", "o.npy"), message)
    assert not Path("o.npy").exists()


def test_numbers_that_no_query_may_see_do_not_matter(arrays):
    rows = np.load("k.npy")
    rows[:, 50:] = np.nan
    np.save("k.npy", rows)
    options = ["--causal", "--query-offset", 40, "--out", "o.safetensors", "--block", 9]
    assert attend(*options).exit_code == 0
    assert_written(dense(arrays["q"], arrays["k"], arrays["v"], allowed=lambda i, j: j <= i + 40))


@pytest.mark.parametrize(
    "options,message",
    [
        ([], "name a file for the result: --out FILE, or --state FILE"),
        (["--out", "o.txt"], "o.txt: the attention goes to a .safetensors or .npy file"),
        (["--out", "gone/o.npy"], "there is no folder gone"),
        (["--state", "gone/s"], "there is no folder gone"),
        (["--out", "o.npy", "--state", "o.npy"], "--out and --state both name o.npy"),
        (["--out", "folder.npy"], "folder.npy: is a folder; the result needs the name of a file"),
        (["--state", "folder.npy"], "folder.npy: is a folder"),
        (["--out", "q.npy"], "q.npy: is read as q.npy; the result needs another file"),
        (["--state", "linked"], "linked: is read as v.npy"),
        (["--out", "o.safetensors"], "o.safetensors: is read as o.safetensors:v"),
    ],
)
def test_results_without_a_place(arrays, options, message):
    Path("folder.npy").mkdir()
    Path("linked").symlink_to("v.npy")
    before = {file: file.read_bytes() for file in Path().iterdir() if file.is_file()}
    values = ["v.npy"]
    if "o.safetensors" in options:
        safetensors.torch.save_file({"v": arrays["v"]}, "o.safetensors")
        before[Path("o.safetensors")] = Path("o.safetensors").read_bytes()
        values = ["o.safetensors:v"]
    assert_one_line_error(attend(*options, values=values), message)
    assert all(file.read_bytes() == data for file, data in before.items())


def test_queries_that_do_not_fit(arrays):
    np.save("q.npy", np.zeros((1, 2, 5, 4)))
    assert_one_line_error(attend("--out", "o.npy"), "q.npy: has shape (1, 2, 5, 4)")
    np.save("q.npy", np.zeros((0, 4)))
    assert_one_line_error(attend("--out", "o.npy"), "q.npy: holds no queries")


def test_a_kill_while_the_state_is_written_leaves_the_old_one(arrays):
    """The process is killed between writing beside the file and renaming."""
    assert attend("--state", "s").exit_code == 0
    before = Path("s").read_bytes()
    script = (
        "import os, signal, pathlib\n"
        "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from synopsis.cli import app\n"
        "app(['attend', 'q.npy', '--keys', 'k0.npy', '--values', 'v0.npy', '--state', 's'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Path("s").read_bytes() == before
    beside = list(Path().glob(".s.*"))
    assert len(beside) == 1 and AttentionState.deserialize(beside[0].read_bytes()).count == 25


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to send")
def test_an_interrupted_command_says_so_and_writes_nothing(tmp_path):
    rng = np.random.default_rng(0)
    for name, rows in (("q", 2000), ("k", 200_000), ("v", 200_000)):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(rows, 64)).astype("f4"))
    command = [sys.executable, "-m", "synopsis", "attend", "q.npy", "--keys", "k.npy"]
    command += ["--values", "v.npy", "--block", "64", "--out", "o.npy"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell in the background has Ctrl-C ignored, and what it starts inherits that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    time.sleep(0.2)
    deadline = time.monotonic() + 60
    while not _has_loaded(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error == b"Interrupted.\n"
    assert not (tmp_path / "o.npy").exists()


def _has_loaded(pid: int) -> bool:
    """Whether the process has begun to read keys: it has the file open."""
    try:
        return any(f.readlink().name == "k.npy" for f in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
