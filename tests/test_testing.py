"""The contract checks: every memory and process of the library passes, and every broken one is caught by name."""

from functools import partial

import pytest
import torch

from synopsis.memory import CMAB, CMABStack
from synopsis.processes import (
    CMANP,
    AnchoredCMANP,
    BayesianLinear,
    LastValue,
    RunningMean,
    Standardized,
)
from synopsis.processes.base import Process
from synopsis.processes.scaling import Scale
from synopsis.processes.spectral import SpectralRegression
from synopsis.testing import MEMORY_CHECKS, PROCESS_CHECKS, Subject, check_process
from tests.broken_processes import BROKEN, Averages, SaysSo, Toy

SMALL = {"dim": 16, "heads": 2, "blocks": 2, "latents": 6}
BLOCK = {"dim": 16, "latents": 6, "heads": 2, "feedforward": 16}


def in_known_units(process: Process) -> Standardized:
    """Without a warm-up: with one, states merge only when their first rows were the same."""
    standardized = Standardized(process)
    names = tuple(f"x{i}" for i in range(process.dim_x))
    scale = Scale(names, (0.5,) * len(names), (2.0,) * len(names), (1.0,), (3.0,))
    standardized.init = partial(standardized.init, scale=scale)
    return standardized


MEMORIES = {
    "cmab": lambda: CMAB(**BLOCK),
    "cmab-normed": lambda: CMAB(**BLOCK, residual="normed"),
    "cmab-stack": lambda: CMABStack([CMAB(**BLOCK) for _ in range(3)]),
}
PROCESSES_OF_OURS = {
    "cmanp": lambda: CMANP(2, 2, **SMALL),
    "cmanp-one-block": lambda: CMANP(2, 1, **SMALL | {"blocks": 1}),
    "cmanp-published": lambda: CMANP(1, 1, **SMALL, residual="normed", head="bounded-gaussian"),
    "cmanp-mixture": lambda: CMANP(1, 2, **SMALL, head="mixture-3"),
    "anchored": lambda: AnchoredCMANP(dim_x=2, **SMALL),
    "linear": lambda: BayesianLinear(2, 2),
    "spectral": lambda: SpectralRegression(2),
    "last-value": LastValue,
    "running-mean": lambda: RunningMean(2),
    "standardized-linear": lambda: in_known_units(BayesianLinear(2)),
    "standardized-anchored": lambda: in_known_units(AnchoredCMANP(dim_x=2, **SMALL)),
}


def name_of(check) -> str:
    return check.__name__


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("check", MEMORY_CHECKS, ids=name_of)
@pytest.mark.parametrize("make", MEMORIES.values(), ids=MEMORIES)
def test_memories_keep_their_promises(make, check):
    check(Subject.memory(make(), 16))


@pytest.mark.parametrize("check", PROCESS_CHECKS, ids=name_of)
@pytest.mark.parametrize("make", PROCESSES_OF_OURS.values(), ids=PROCESSES_OF_OURS)
def test_processes_keep_their_promises(make, check):
    check(Subject.process(make()))


@pytest.mark.parametrize(
    ("process", "promise"), BROKEN, ids=[f"{type(p).__name__}-{name}" for p, name in BROKEN]
)
def test_a_broken_process_is_caught_by_the_check_of_that_name(process, promise):
    (check,) = (check for check in PROCESS_CHECKS if check.__name__ == promise)
    with pytest.raises(AssertionError):
        check(Subject.process(process))


def test_every_check_has_caught_something():
    assert {name for _, name in BROKEN} == {check.__name__ for check in PROCESS_CHECKS}


@pytest.mark.parametrize("make", [Toy, SaysSo], ids=["toy", "growing"])
def test_the_trunk_of_the_broken_ones_is_sound(make):
    check_process(make())


def test_the_first_broken_promise_is_named_with_figures():
    with pytest.raises(
        AssertionError, match=r"Averages fails merge_is_associative: .* differ by 0\.\d+"
    ):
        check_process(Averages())


def test_checks_leave_what_they_check_alone():
    process = CMANP(**SMALL).train()
    before = process.fingerprint
    for check in PROCESS_CHECKS:
        check(Subject.process(process))
    assert process.training and process.fingerprint == before
    assert all(weight.grad is None for weight in process.parameters())
