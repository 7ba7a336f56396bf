"""Which parameters an optimiser moves, and how far."""

import copy

import pytest
import torch
from torch import nn

from synopsis.processes import CMANP
from synopsis.training.experiment import Training
from synopsis.training.optimizers import MUON_NARROWEST, BatchedMuon, build_optimizers
from tests.tolerances import MUON_BFLOAT16


def process() -> CMANP:
    torch.manual_seed(0)
    return CMANP(dim=16, heads=2, blocks=1, latents=20)


def moved(optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def test_every_parameter_is_moved_once():
    for name in ("adamw", "muon"):
        network = process()
        parts = [
            id(p) for o in build_optimizers(network, Training(optimizer=name)) for p in moved(o)
        ]
        assert sorted(parts) == sorted(id(p) for p in network.parameters())


def test_muon_takes_the_weights_between_wide_layers_only():
    network = process()
    muon, adamw = build_optimizers(network, Training(optimizer="muon"))
    names = {id(p): name for name, p in network.named_parameters()}
    hidden, rest = ({names[id(p)] for p in moved(o)} for o in (muon, adamw))
    assert "trunk.stack.blocks.0.absorb.attention.to_query.weight" in hidden
    assert {"embed_context.0.weight", "head.predict.weight", "trunk.latents"} <= rest
    assert not any("norm" in name or "bias" in name or "latents" in name for name in hidden)
    assert all(min(p.shape) >= MUON_NARROWEST for p in moved(muon))


def test_without_wide_layers_all_is_adamw():
    narrow = nn.Linear(3, 40)
    (only,) = build_optimizers(narrow, Training(optimizer="muon"))
    assert isinstance(only, torch.optim.AdamW)


def test_a_frozen_weight_is_left_alone():
    network = process()
    frozen = network.trunk.decoder[0].transform.expand.weight.requires_grad_(False)
    parts = [p for o in build_optimizers(network, Training(optimizer="muon")) for p in moved(o)]
    assert not any(p is frozen for p in parts)


def test_a_first_step_of_muon_turns_the_gradient_into_a_rotation():
    """Every singular value of the step is the learning rate, up to the iteration's own 0.7 to 1.2."""
    layer = nn.Linear(32, 32, bias=False)
    before = layer.weight.detach().clone()
    (muon,) = build_optimizers(layer, Training(optimizer="muon", muon_learning_rate=0.1))
    layer.weight.grad = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    muon.step()
    step = before - layer.weight.detach()
    values = torch.linalg.svdvals(step / 0.1)
    assert float(values.min()) > 0.5 - MUON_BFLOAT16 and float(values.max()) < 1.3 + MUON_BFLOAT16
    assert float((step * layer.weight.grad).sum()) > 0


SHAPES = [(16, 16), (48, 16), (16, 16), (16, 48), (16, 16)]


def matrices(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def walk(optimizer, parameters, steps=range(4)) -> None:
    for step in steps:
        for parameter, gradient in zip(parameters, matrices(100 + step), strict=True):
            parameter.grad = gradient.clone()
        parameters[-1].grad = None if step == 1 else parameters[-1].grad
        optimizer.step()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.0, "momentum": 0.8},
        {"nesterov": False},
        {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3},
    ],
    ids=str,
)
def test_muon_on_all_matrices_of_a_shape_at_a_time_is_torchs(options):
    """Up to the iteration's rounding, and with a step in which one has no gradient."""
    ours, theirs = ([nn.Parameter(m) for m in matrices(0)] for _ in range(2))
    walk(BatchedMuon(ours, lr=0.1, **options), ours)
    walk(torch.optim.Muon(theirs, lr=0.1, **options), theirs)
    for found, expected, start in zip(ours, theirs, matrices(0), strict=True):
        moved = (expected - start).norm()
        assert moved > 0.1
        assert (found - expected).norm() < MUON_BFLOAT16 * moved


def test_muon_goes_on_from_torchs_state_and_torchs_from_ours():
    parts = [[nn.Parameter(m) for m in matrices(0)] for _ in range(2)]
    kinds = (torch.optim.Muon, BatchedMuon)
    first = [kind(part, lr=0.1) for kind, part in zip(kinds, parts, strict=True)]
    for optimizer, part in zip(first, parts, strict=True):
        walk(optimizer, part, range(2))
    second = [kind(part, lr=0.1) for kind, part in zip(kinds[::-1], parts, strict=True)]
    for optimizer, before in zip(second, first, strict=True):
        optimizer.load_state_dict(copy.deepcopy(before.state_dict()))
    for optimizer, part in zip(second, parts, strict=True):
        walk(optimizer, part, range(2, 4))
    for a, b, start in zip(*parts, matrices(0), strict=True):
        assert (a - b).norm() < MUON_BFLOAT16 * (a - start).norm()


def test_a_closure_is_called_with_gradients_on():
    (parameter,) = parts = [nn.Parameter(torch.eye(16))]

    def closure() -> float:
        loss = parameter.square().sum()
        loss.backward()
        return loss.item()

    assert BatchedMuon(parts, lr=0.1).step(closure) == 16.0
    assert not torch.equal(parameter, torch.eye(16))
