"""What a module owes to training and shipping: gradients, graphs, and weights on disk."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from synopsis.processes import Process, load
from synopsis.testing.subject import Points, Subject, require, same


def gradients_reach_every_parameter(subject: Subject) -> None:
    """In training mode every weight gets a finite gradient that is not all zero."""
    module = copy.deepcopy(subject.module).train()
    if not any(weight.requires_grad for weight in module.parameters()):
        return
    points = subject.points(1)
    _scalar(_answer_in_training(module, points, subject.question)).backward()
    for name, weight in module.named_parameters():
        if not weight.requires_grad:
            continue
        gradient = weight.grad
        require(gradient is not None, f"no gradient reaches {name}")
        require(bool(gradient.isfinite().all()), f"the gradient of {name} is not finite")
        require(bool(gradient.any()), f"the gradient of {name} is zero everywhere")


def padding_reaches_no_gradient(subject: Subject) -> None:
    """NaN in masked places, even in a stream with nothing else, leaves gradients finite."""
    module = copy.deepcopy(subject.module).train()
    mask = subject.ragged_mask()
    points = tuple(p.masked_fill(~mask.unsqueeze(-1), torch.nan) for p in subject.points(1))
    answer = _answer_in_training(module, points, subject.question, mask)
    require(bool(answer.isfinite().all()), "NaN in masked places reaches answers in training mode")
    if answer.requires_grad:
        _scalar(answer).backward()
    for name, weight in module.named_parameters():
        finite = weight.grad is None or bool(weight.grad.isfinite().all())
        require(finite, f"NaN in masked places reaches the gradient of {name}")


def training_answers_as_conditioning(subject: Subject) -> None:
    """``forward``, in either mode and with a mask, is init, update, predict."""
    points, mask = subject.points(1), subject.ragged_mask()
    for chosen in (None, mask):
        expected = subject.answer(subject.after(points, mask=chosen))
        for training in (False, True):
            module = copy.deepcopy(subject.module).train(training)
            with torch.no_grad():
                found = _forward(module, points, subject.question, chosen)
            masked = "without" if chosen is None else "with"
            mode = "training" if training else "evaluation"
            same(
                found,
                expected,
                f"forward in {mode} mode, {masked} mask, is not init, update, predict",
            )


def evaluation_keeps_no_graph(subject: Subject) -> None:
    """In evaluation mode a state holds no graph, though nobody wrote ``torch.no_grad``."""
    points = subject.points(1)
    with torch.enable_grad():
        state = subject.module.update(subject.module.init((len(points[0]),)), *points)
    kept = sum(leaf.requires_grad for leaf in tree_leaves(state))
    require(not kept, f"{kept} tensors of the state keep a graph in evaluation mode")


def weights_survive_the_disk(subject: Subject) -> None:
    """Saved and loaded, a process accepts its old states and predicts the same, bit for bit."""
    state = subject.after(subject.points(1))
    with TemporaryDirectory() as folder:
        subject.module.save_pretrained(Path(folder) / "new")
        loaded = load(Path(folder) / "new")
    again = Subject(loaded, subject.widths, subject.question)
    require(not loaded.training, "a loaded process is in training mode")
    require(loaded.config == subject.module.config, f"config came back as {loaded.config}")
    answers_agree = torch.equal(again.answer(state), subject.answer(state))
    require(answers_agree, "a process that was saved and loaded predicts differently")


def _answer_in_training(
    module: Any, points: Points, question: Tensor, mask: Tensor | None = None
) -> Tensor:
    if isinstance(module, Process):
        return _forward(module, points, question, mask)
    state = module.update(module.init((len(points[0]),)), *points, mask)
    read = module.read(state, question.expand(len(points[0]), -1, -1))
    return torch.cat([answer.flatten(1) for answer in tree_leaves(read)], dim=1)


def _forward(module: Any, points: Points, question: Tensor, mask: Tensor | None) -> Tensor:
    predicted = module(*points, question.expand(len(points[0]), -1, -1), mask)
    return torch.cat([predicted.mean.flatten(1), predicted.stddev.flatten(1)], dim=1)


def _scalar(answer: Tensor) -> Tensor:
    """A sum in which no two answers have equal weight, so that none cancels by symmetry."""
    weights = torch.linspace(0.5, 1.5, answer.numel()).to(answer)
    return (answer.flatten() * weights).sum()
