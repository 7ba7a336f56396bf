"""What a process owes to data with missing outputs: NaN in y of a real point."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from synopsis.processes import Process
from synopsis.tasks import Batch
from synopsis.testing.subject import TOLERANCE, Points, Subject, require, same


def points_without_outputs_change_nothing(subject: Subject) -> None:
    """A point whose outputs are all NaN is not seen: not in an answer, not in ``count``, in either mode."""
    mask = subject.ragged_mask()
    x, y = subject.points(1)
    points = (x, y.masked_fill(~mask.unsqueeze(-1), torch.nan))
    expected = subject.after((x, y), mask=mask)
    singles = zip(*(part.split(1, dim=1) for part in points), strict=True)
    for way, state in {
        "at once": subject.after(points),
        "one by one": subject.after(*singles),
        "with a mask": subject.after(points, mask=torch.ones_like(mask)),
    }.items():
        count = state.count.tolist()
        require(count == mask.sum(1).tolist(), f"{way}, points without outputs count: {count}")
        claim = f"{way}, points without outputs change answers"
        same(subject.answer(state), subject.answer(expected), claim)
    for training in (False, True):
        module = copy.deepcopy(subject.module).train(training)
        with torch.no_grad():
            predicted = module(*points, subject.question.expand(len(x), -1, -1))
        found = torch.cat([predicted.mean.flatten(1), predicted.stddev.flatten(1)], dim=1)
        mode = "training" if training else "evaluation"
        claim = f"in {mode} mode, forward is changed by points without outputs"
        same(found, subject.answer(expected), claim)


def half_observed_points_are_accepted(subject: Subject) -> None:
    """A point with some of its outputs, told at once or one by one, leaves finite answers; and it can be scored."""
    if subject.widths[1] < 2:
        return
    points = _half_observed(subject.points(1))
    at_once = subject.answer(subject.after(points))
    require(bool(at_once.isfinite().all()), "NaN of half-observed points reaches answers")
    singles = zip(*(part.split(1, dim=1) for part in points), strict=True)
    one_by_one = subject.answer(subject.after(*singles))
    same(one_by_one, at_once, "half-observed points one by one give other answers than at once")
    for training, module in _in_both_modes(subject):
        batch = Batch(*points, *_half_observed(subject.points(2)))
        _require_learnable(module, batch, f"of half-observed points in {_name(training)}")


def loss_leaves_out_missing_targets(subject: Subject) -> None:
    """The loss of a batch with points that lack every output is that of a batch with these padded out."""
    (xc, yc), (xt, yt) = (subject.points(seed) for seed in (1, 2))
    seen, asked = subject.ragged_mask(), subject.ragged_mask().flip(1)
    asked[-1] = asked[-2]  # a task without a context has targets all the same
    hidden = [y.masked_fill(~m.unsqueeze(-1), torch.nan) for y, m in ((yc, seen), (yt, asked))]
    for training, module in _in_both_modes(subject):
        batch = Batch(xc, yc, xt, yt, context_mask=seen, target_mask=asked)
        padded = _loss(module, batch).detach()
        missing = Batch(xc, hidden[0], xt, hidden[1])
        found = _require_learnable(module, missing, f"of missing outputs in {_name(training)}")
        excess = float((found - padded).abs() / (1.0 + padded.abs()))
        require(
            excess <= TOLERANCE,
            f"in {_name(training)}, the loss is {float(found):.7g} with points that lack every output, "
            f"and {float(padded):.7g} with these padded out",
        )


def _half_observed(points: Points) -> Points:
    """Every other output of every point is missing, in turns; the first point of each stream is whole."""
    x, y = points
    place, output = (torch.arange(n, device=y.device) for n in y.shape[1:])
    missing = (place.unsqueeze(1) + output) % 2 == 1
    missing[0] = False
    return x, y.masked_fill(missing, torch.nan)


def _in_both_modes(subject: Subject) -> Iterator[tuple[bool, Any]]:
    for training in (False, True):
        yield training, copy.deepcopy(subject.module).train(training)


def _name(training: bool) -> str:
    return "training mode" if training else "evaluation mode"


def _loss(module: Process, batch: Batch) -> Tensor:
    """The loss, with the same random numbers for every batch of one shape."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return module.loss(batch)


def _require_learnable(module: Process, batch: Batch, what: str) -> Tensor:
    """The loss, when it and its gradients are finite."""
    loss = _loss(module, batch)
    if loss.requires_grad:
        loss.backward()
    loss = loss.detach()
    require(bool(loss.isfinite()), f"the loss {what} is {float(loss)}")
    for name, weight in module.named_parameters():
        finite = weight.grad is None or bool(weight.grad.isfinite().all())
        require(finite, f"the gradient of {name} {what} is not finite")
    return loss


__all__ = [
    "half_observed_points_are_accepted",
    "loss_leaves_out_missing_targets",
    "points_without_outputs_change_nothing",
]
