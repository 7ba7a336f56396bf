"""Agents that play contextual bandits with a neural process: predict the rewards of all arms, pull one, learn from it.

Many runs are played side by side, each a stream of one batch: a process with a state of constant size then pays the
same for the last step as for the first, one that keeps its context pays for all of it at every step. What a run does
depends on its own seed, not on the runs beside it.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from synopsis.processes.base import Process
from synopsis.tasks.fixed_batches import batch_generator
from synopsis.tasks.wheel_bandit import ARMS, WheelBandit

Exploration = Literal["ucb", "mean", "thompson"]

_AGENT = 1  # index of an agent's random numbers in the set of its run; the wheel's have index 0


@dataclass(frozen=True)
class Play:
    """What came of runs played side by side.

    Args:
        regret: realised regret of every step that was played; negative where luck was on the agent's side.
        seconds: CPU-seconds of every step, of all runs together.
        nbytes: what the process keeps of one run at the end.
    """

    regret: Float[Tensor, "runs steps"]
    seconds: Float[Tensor, " steps"]
    nbytes: int


@dataclass(frozen=True)
class _Luck:
    """Everything random about agents, drawn before the first step."""

    first: Int[Tensor, " runs"]  # arm pulled before anything is known
    fillers: Float[Tensor, "runs steps arms"]  # stand for rewards nobody has seen
    normals: Float[Tensor, "runs steps arms"]  # of Thompson's agent


def play(
    process: Process,
    bandits: Sequence[WheelBandit],
    exploration: Exploration = "ucb",
    allowance: float = math.inf,
    at_least: int = 1,
    watch: Callable[[int, int], object] = lambda *_: None,
) -> Play:
    """Play runs side by side, from an empty history and a random first arm.

    After a pull the history gets the context and five rewards: that of the arm that was pulled, and N(0, 1) noise in
    place of those that nobody has seen, as in the training of Nguyen & Grover, 2022.

    Args:
        process: predicts five rewards (dim_y) of a context (dim_x 2); in evaluation mode.
        bandits: one for each run, all of the same number of steps.
        exploration: the arm of highest μ + σ ("ucb"), μ ("mean") or μ + σ·N(0, 1) ("thompson").
        allowance: CPU-seconds after which no further step is begun.
        at_least: steps that are played whatever they cost.
        watch: called after each step with steps played and all steps.

    Returns:
        Regrets and cost of the steps that were played.

    Raises:
        ValueError: there is no run, or their numbers of steps differ.

    Example:
        >>> from synopsis.processes import CNP
        >>> runs = [WheelBandit(0.9, steps=20, seed=seed) for seed in range(3)]
        >>> play(CNP(dim_x=2, dim_y=5, dim=16).eval(), runs).regret.shape
        torch.Size([3, 20])
    """
    steps = _steps_of(bandits)
    contexts = torch.stack([bandit.contexts for bandit in bandits])
    rewards = torch.stack([bandit.rewards for bandit in bandits])
    luck = _luck_of(bandits, steps)
    state, arms, seconds = process.init((len(bandits),)), [luck.first], list[float]()
    with torch.no_grad():
        for step in range(steps):
            begin, x = time.process_time(), contexts[:, step : step + 1]
            if step:
                arms.append(_chosen(process, state, x, exploration, luck.normals[:, step]))
            arm = arms[-1][:, None]
            paid = rewards[:, step].gather(1, arm)
            y = luck.fillers[:, step].scatter(1, arm, paid)
            state = process.update(state, x, y[:, None])
            seconds.append(time.process_time() - begin)
            watch(step + 1, steps)
            if step + 1 >= at_least and sum(seconds) >= allowance:
                break
    regret = regret_of(bandits, torch.stack(arms, dim=1))
    return Play(regret, torch.tensor(seconds), state.nbytes // len(bandits))


def uniform_arms(bandits: Sequence[WheelBandit]) -> Int[Tensor, "runs steps"]:
    """Arms of an agent who pulls them at random, whatever the context."""
    steps = _steps_of(bandits)
    generators = (batch_generator(bandit.seed, _AGENT) for bandit in bandits)
    return torch.stack([torch.randint(ARMS, (steps,), generator=g) for g in generators])


def quadrant_arms(bandits: Sequence[WheelBandit]) -> Int[Tensor, "runs steps"]:
    """Arms of an agent who has heard of rich arms but not of δ: always the one that pays far out in this direction."""
    contexts = torch.stack([bandit.contexts for bandit in bandits])
    right, up = (contexts > 0).unbind(-1)
    return torch.where(up, torch.where(right, 1, 2), torch.where(right, 4, 3))


def regret_of(
    bandits: Sequence[WheelBandit], arms: Int[Tensor, "runs steps"]
) -> Float[Tensor, "runs steps"]:
    """Realised regret of the arms pulled in the first steps: what the best arm paid minus what they did."""
    played = arms.shape[1]
    best = torch.stack([bandit.best_rewards[:played] for bandit in bandits])
    rewards = torch.stack([bandit.rewards[:played] for bandit in bandits])
    return best - rewards.gather(2, arms[..., None])[..., 0]


def _chosen(
    process: Process,
    state: object,
    x: Float[Tensor, "runs 1 2"],
    exploration: Exploration,
    normals: Float[Tensor, "runs arms"],
) -> Int[Tensor, " runs"]:
    prediction = process.predict(state, x)
    mean, stddev = prediction.mean[:, 0], prediction.stddev[:, 0]
    if exploration == "mean":
        return mean.argmax(dim=-1)
    bonus = stddev if exploration == "ucb" else stddev * normals
    return (mean + bonus).argmax(dim=-1)


def _luck_of(bandits: Sequence[WheelBandit], steps: int) -> _Luck:
    draws = [_draws(batch_generator(bandit.seed, _AGENT), steps) for bandit in bandits]
    first, fillers, normals = (torch.stack(part) for part in zip(*draws, strict=True))
    return _Luck(first, fillers, normals)


def _draws(generator: Generator, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    first = torch.randint(ARMS, (), generator=generator)
    fillers, normals = torch.randn((2, steps, ARMS), generator=generator)
    return first, fillers, normals


def _steps_of(bandits: Sequence[WheelBandit]) -> int:
    steps = {bandit.steps for bandit in bandits}
    if len(steps) != 1:
        raise ValueError(f"runs are of {sorted(steps) or 'no'} steps; there must be one number")
    return steps.pop()


__all__ = ["Exploration", "Play", "play", "quadrant_arms", "regret_of", "uniform_arms"]
