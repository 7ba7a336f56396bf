"""Fingerprints of memories: known again without hashing, and never out of date."""

import copy

import pytest
import torch
from torch import nn

from synopsis.memory import ownership
from synopsis.memory.ownership import Owner


class Small(Owner):
    def __init__(self, **configuration):
        super().__init__(**configuration)
        self.weight = nn.Linear(3, 3)


def small(**configuration):
    torch.manual_seed(0)
    return Small(**configuration)


def test_a_fingerprint_is_of_weights_and_configuration():
    assert small(heads=1).fingerprint == small(heads=1).fingerprint
    assert len(small().fingerprint) == 16
    others = [small(heads=2), small(heads=1).double(), Small(heads=1)]
    assert len({small(heads=1).fingerprint, *(m.fingerprint for m in others)}) == 4


def test_unchanged_weights_are_hashed_once(monkeypatch):
    calls = []
    monkeypatch.setattr(
        ownership, "fingerprint", lambda *a: calls.append(a) or f"{len(calls):016d}"
    )
    made = small()
    assert made.fingerprint == made.fingerprint
    assert len(calls) == 1
    with torch.no_grad():
        made.weight.bias.add_(1.0)
    assert made.fingerprint == "2".zfill(16)
    made.train()
    assert made.fingerprint == "3".zfill(16)


@pytest.mark.parametrize("foreach", [False, True])
def test_it_follows_a_training_step_loading_and_a_copy(foreach):
    made = small()
    seen = [made.fingerprint]
    step = torch.optim.SGD(made.parameters(), lr=0.1, foreach=foreach)
    made.weight(torch.ones(2, 3)).sum().backward()
    step.step()
    seen.append(made.fingerprint)
    other = copy.deepcopy(made)
    assert other.fingerprint == made.fingerprint
    with torch.no_grad():
        other.weight.bias.zero_()
    assert other.fingerprint not in seen
    assert made.fingerprint == seen[1] != seen[0]
    made.load_state_dict(small().state_dict())
    assert made.fingerprint == seen[0]
