"""Which parameters an optimiser moves, and how far."""

import torch
from torch import nn

from synopsis.processes import CMANP
from synopsis.training.experiment import Training
from synopsis.training.optimizers import MUON_NARROWEST, build_optimizers

BFLOAT16 = 0.02  # torch's Muon orthogonalises in bfloat16


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
    assert float(values.min()) > 0.5 - BFLOAT16 and float(values.max()) < 1.3 + BFLOAT16
    assert float((step * layer.weight.grad).sum()) > 0
