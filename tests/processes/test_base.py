"""What every process inherits: fingerprints, the loss, and weights on disk."""

import copy
import json

import pytest
import safetensors.torch
import torch

import synopsis
from synopsis.processes import CMANP, AnchoredCMANP, BayesianLinear, build, load
from synopsis.processes.base import PROCESSES, Process
from synopsis.tasks import Batch
from tests.reference import enliven
from tests.tolerances import FLOAT32

SMALL = {"dim": 16, "heads": 2, "blocks": 2, "latents": 6}


def small(**options) -> CMANP:
    return enliven(CMANP(2, 1, **SMALL, **options)).eval()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch() -> Batch:
    return Batch(draw(2, 9, 2), draw(2, 9, 1, seed=1), draw(2, 5, 2, seed=2), draw(2, 5, 1, seed=3))


def test_the_loss_is_the_mean_over_real_targets():
    process, full = small(), batch()
    log_prob = process(full.xc, full.yc, full.xt).log_prob(full.yt)
    torch.testing.assert_close(process.loss(full), -log_prob.mean())
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 1]]).bool()
    seen = draw(2, 9, 1, seed=4)[..., 0] > 0
    padded = Batch(full.xc, full.yc, full.xt, full.yt, seen, mask)
    log_prob = process(full.xc, full.yc, full.xt, seen).log_prob(full.yt)
    torch.testing.assert_close(process.loss(padded), -log_prob[mask].mean())


@pytest.mark.parametrize("part", ["xt", "yt"])
def test_nan_in_padded_targets_reaches_no_gradient(part):
    process, full = small().train(), batch()
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 1]]).bool()
    targets = {"xt": full.xt, "yt": full.yt}
    targets[part] = targets[part].masked_fill(~mask.unsqueeze(-1), torch.nan)
    loss = process.loss(Batch(full.xc, full.yc, **targets, target_mask=mask))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in process.parameters())


def test_the_fingerprint_is_of_name_configuration_and_weights():
    process = small()
    assert process.fingerprint == small().fingerprint == copy.deepcopy(process).fingerprint
    assert len(process.fingerprint) == 16 and int(process.fingerprint, 16) >= 0
    others = {small(head="mixture-2").fingerprint, small(residual="normed").fingerprint}
    for name, weight in process.named_parameters():
        before = process.fingerprint
        with torch.no_grad():
            weight.view(-1)[-1] += 1e-6
        assert process.fingerprint != before, name
        others.add(process.fingerprint)
    assert len(others) == 2 + len(list(process.parameters()))
    assert BayesianLinear(2).fingerprint != BayesianLinear(2, rate=0.5).fingerprint


def test_saved_and_loaded_it_is_the_same_process(tmp_path):
    process, full = small(head="mixture-3").train(), batch()
    process.save_pretrained(tmp_path / "deep" / "folder")
    again = load(tmp_path / "deep" / "folder")
    assert sorted(p.name for p in (tmp_path / "deep" / "folder").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert isinstance(again, CMANP) and not again.training
    assert again.fingerprint == process.fingerprint and again.config == process.config
    process.eval()
    found, expected = (p(full.xc, full.yc, full.xt).mean for p in (again, process))
    assert torch.equal(found, expected)
    assert isinstance(synopsis.load(str(tmp_path / "deep" / "folder")), CMANP)


def test_half_the_bytes_on_disk_are_float32_again_in_memory(tmp_path):
    process = small()
    process.save_pretrained(tmp_path / "full")
    process.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("half", "full")]
    assert sizes[0] < 0.7 * sizes[1]
    again = load(tmp_path / "half")
    for name, weight in again.named_parameters():
        assert weight.dtype == torch.float32
        expected = process.get_parameter(name).bfloat16().float()
        assert torch.equal(weight, expected)


def test_folders_that_hold_no_process_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"'no-such-process' is neither a folder nor a shipped"):
        load("no-such-process")
    with pytest.raises(ValueError, match=str(tmp_path)):
        load(tmp_path)
    small().save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    good = {"config": config.read_bytes(), "weights": weights.read_bytes()}
    for content in (
        b"{",
        b"[]",
        b"\xff",
        b'{"process": "Nothing"}',
        b'{"process": "CMANP", "arguments": {"dim": 15}}',
        b'{"process": "CMANP", "arguments": {"sizes": 1}}',
        b'{"process": "CMANP", "arguments": [1]}',
    ):
        config.write_bytes(content)
        with pytest.raises(ValueError):
            load(tmp_path)
    config.write_bytes(good["config"])
    for content in (
        b"",
        good["weights"][:100],
        good["weights"][:-4],
        safetensors.torch.save({"a": torch.ones(1)}),
    ):
        weights.write_bytes(content)
        with pytest.raises(ValueError, match="does not hold a whole process"):
            load(tmp_path)


def test_every_process_is_rebuilt_from_its_configuration():
    for process in (small(), AnchoredCMANP(2, **SMALL), BayesianLinear(2, 3, rate=0.2)):
        config = json.loads(
            json.dumps({"process": type(process).__name__, "arguments": process.config})
        )
        again = build(config)
        assert again.config == process.config and type(again) is type(process)
        again.load_state_dict(process.state_dict())
        assert again.fingerprint == process.fingerprint


def test_what_is_not_implemented_says_so():
    class Bare(Process):
        def __init__(self, dim_x: int, dim_y: int) -> None:
            super().__init__(dim_x=dim_x, dim_y=dim_y)

    del PROCESSES["Bare"]
    bare = Bare(1, 1)
    x = torch.zeros(1, 1, 1)
    assert bare.merges is None
    with pytest.raises(NotImplementedError, match="states of Bare cannot be merged"):
        bare.merge(None, None)
    for action in (bare.init, lambda: bare.update(None, x, x), lambda: bare.predict(None, x)):
        with pytest.raises(NotImplementedError):
            action()


def test_forward_is_init_update_predict():
    process, full = small(), batch()
    state = process.update(process.init((2,)), full.xc, full.yc)
    expected = process.predict(state, full.xt)
    found = process(full.xc, full.yc, full.xt)
    torch.testing.assert_close(found.mean, expected.mean, rtol=FLOAT32, atol=FLOAT32)
