"""Contract checks for memories and processes, for third parties as much as for this library.

Each check is one function that takes a :class:`Subject` (a deep copy of what is checked) and raises AssertionError with
a sentence and figures. What a module claims decides which laws it must obey:

- ``merges``: "any order" (merge is associative and commutative, points come in any order), "in order" (associative), or
  None (there is no merge);
- ``bounded``: False for a state that grows with what was seen; absent means True.

Laws are compared through answers (what ``read`` or ``predict`` gives), because one state may be written down in many
ways; purity and resuming are compared in bytes. Under pytest each check can be a test of its own:

    @pytest.mark.parametrize("check", synopsis.testing.PROCESS_CHECKS, ids=lambda check: check.__name__)
    def test_contract(check):
        check(synopsis.testing.Subject.process(MyProcess()))
"""

from collections.abc import Callable

from torch import nn

from synopsis.processes import Process
from synopsis.testing import learning, merging, missing, states
from synopsis.testing.subject import TOLERANCE, Subject

Check = Callable[[Subject], None]

MEMORY_CHECKS: tuple[Check, ...] = (
    states.answers_depend_on_what_was_seen,
    states.empty_context,
    states.counts_points,
    states.any_split,
    states.any_order,
    states.mask_drops_points,
    states.streams_are_independent,
    states.streams_must_agree,
    states.answering_changes_nothing,
    states.states_share_nothing,
    states.constant_bytes,
    states.resumes_from_bytes,
    states.other_weights_refuse,
    merging.merge_only_where_exact,
    merging.merge_has_an_identity,
    merging.merge_is_associative,
    merging.merge_commutes,
    merging.learns_without_end,
    learning.gradients_reach_every_parameter,
    learning.padding_reaches_no_gradient,
)

PROCESS_CHECKS: tuple[Check, ...] = (
    *MEMORY_CHECKS,
    learning.training_answers_as_conditioning,
    learning.evaluation_keeps_no_graph,
    learning.weights_survive_the_disk,
    missing.points_without_outputs_change_nothing,
    missing.half_observed_points_are_accepted,
    missing.loss_leaves_out_missing_targets,
)


def check_memory(memory: nn.Module, dim: int) -> None:
    """Check everything that a memory promises.

    Args:
        memory: follows :class:`synopsis.memory.Memory`; it is not changed.
        dim: width of its items and latents.

    Raises:
        AssertionError: naming the first promise that is broken, with figures.

    Example:
        >>> from synopsis.memory import CMAB
        >>> check_memory(CMAB(dim=8, latents=4, heads=2, feedforward=16), dim=8)
    """
    _run(MEMORY_CHECKS, Subject.memory(memory, dim))


def check_process(process: Process) -> None:
    """Check everything that a neural process promises.

    Args:
        process: whose ``init`` needs nothing but a batch shape; it is not changed.

    Raises:
        AssertionError: naming the first promise that is broken, with figures.

    Example:
        >>> from synopsis.processes import BayesianLinear
        >>> check_process(BayesianLinear(dim_x=2))
    """
    _run(PROCESS_CHECKS, Subject.process(process))


def _run(checks: tuple[Check, ...], subject: Subject) -> None:
    for check in checks:
        try:
            check(subject)
        except AssertionError as broken:
            name = type(subject.module).__name__
            raise AssertionError(f"{name} fails {check.__name__}: {broken}") from broken


__all__ = [
    "MEMORY_CHECKS",
    "PROCESS_CHECKS",
    "TOLERANCE",
    "Check",
    "Subject",
    "check_memory",
    "check_process",
]
