"""The contextual wheel bandit: five arms, a safe one everywhere and a rich one far from the centre.

A context is a point of the unit disc. Arm 0 pays N(1.2, 0.05²), arms 1–4 N(1, 0.05²); at radius δ
and beyond, the arm of the context's quadrant – 1 (+,+), 2 (−,+), 3 (−,−), 4 (+,−) – pays
N(50, 0.01²) instead. So arm 0 is the best inside δ, the quadrant's arm outside.

``protocol="legacy"`` is the published generator, draw for draw: contexts and rewards always come
from one seed, and the seed asked for only permutes them. All its training wheels then share their
contexts with each other and with every evaluation, and the runs of one δ are permutations of one
data set: use it to compare with published tables only. ``"fresh"`` draws everything anew.

Source: Riquelme, Tucker & Snoek, 2018 (Deep Bayesian bandits showdown), as used by Nguyen &
Grover, 2022 (Transformer neural processes), and Feng et al., 2023 (Latent bottlenecked attentive
neural processes).
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from synopsis.tasks.base import Batch
from synopsis.tasks.fixed_batches import batch_generator
from synopsis.tasks.laws import check_generator

ProtocolName = Literal["legacy", "fresh"]

ARMS = 5
MEANS = (1.2, 1.0, 1.0, 1.0, 1.0)
STDDEV = 0.05
RICH_MEAN, RICH_STDDEV = 50.0, 0.01
LEGACY_SEED = 0  # of the contexts and rewards, whatever seed is asked for
LEGACY_WHEELS = 8  # in the one training batch there is


class Wheel(NamedTuple):
    """Rows of one wheel, in float32."""

    contexts: Float[Tensor, "*wheels steps 2"]
    rewards: Float[Tensor, "*wheels steps 5"]  # of every arm, pulled or not
    best_arms: Int[Tensor, "*wheels steps"]


@dataclass(frozen=True)
class WheelBandit:
    """One run of the bandit, with the reward of every arm: what an agent is evaluated on.

    Args:
        delta: radius from which the rich arms pay, 0 … 1; published are 0.7, 0.9, 0.95, 0.99,
            0.995.
        steps: number of contexts, at least 3.
        seed: of this run, 0 or more.
        protocol: "fresh" or "legacy"; see the module. Fresh runs of one seed share their contexts
            and luck for all δ, so that δ can be compared.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> bandit = WheelBandit(delta=0.95, seed=3, protocol="legacy")
        >>> int((bandit.best_arms > 0).sum()), round(bandit.uniform_regret)
        (188, 7653)
    """

    delta: float
    steps: int = 2000
    seed: int = 0
    protocol: ProtocolName = "fresh"

    def __post_init__(self) -> None:
        _check_protocol(self.protocol)
        for name, value, holds, wanted in (
            ("delta", self.delta, 0 <= self.delta <= 1, "lie in 0 … 1"),
            ("steps", self.steps, self.steps >= 3, "be at least 3"),
            ("seed", self.seed, 0 <= self.seed < 2**32, "be at least 0 and less than 2**32"),
        ):
            if not holds:
                raise ValueError(f"{name} is {value!r}; it must {wanted}")

    @property
    def contexts(self) -> Float[Tensor, "steps 2"]:
        """Where the agent is at every step."""
        return self._wheel.contexts

    @property
    def rewards(self) -> Float[Tensor, "steps 5"]:
        """What each arm would pay at every step."""
        return self._wheel.rewards

    @property
    def best_arms(self) -> Int[Tensor, " steps"]:
        """The arm of highest expected reward: 0 inside δ, the quadrant's outside."""
        return self._wheel.best_arms

    @property
    def best_rewards(self) -> Float[Tensor, " steps"]:
        """What the best arm pays at every step."""
        return self.rewards.gather(1, self.best_arms[:, None])[:, 0]

    @property
    def uniform_regret(self) -> float:
        """Expected cumulative regret of an agent who pulls arms uniformly at random."""
        return float((self.best_rewards.double() - self.rewards.double().mean(dim=1)).sum())

    def regret(self, arms: Int[Tensor, " steps"]) -> Float[Tensor, " steps"]:
        """Realised regret of the arms pulled: what the best arm paid minus what they did.

        Negative where luck made another arm pay more than the best one.
        """
        if arms.shape != (self.steps,):
            raise ValueError(f"arms are {tuple(arms.shape)}; there must be {self.steps}")
        return self.best_rewards - self.rewards.gather(1, arms[:, None])[:, 0]

    def outcome(self, step: int, arm: int, generator: Generator) -> Float[Tensor, " 5"]:
        """What the agent's history gets as y: the pulled arm's reward, N(0, 1) for the others."""
        y = torch.randn(ARMS, generator=generator)
        y[arm] = self.rewards[step, arm]
        return y

    @cached_property
    def _wheel(self) -> Wheel:
        if self.protocol == "legacy":
            return legacy_wheel(self.steps, self.delta, self.seed)
        generator = batch_generator(self.seed, 0)
        wheels = fresh_wheels(torch.tensor([self.delta]), self.steps, generator)
        return Wheel(*(part[0] for part in wheels))


@dataclass(frozen=True)
class WheelBanditTask:
    """Wheels to train on: contexts as inputs, the rewards of all five arms as outputs.

    Published: one batch of 8 wheels, δ ~ U[0, 1) from a fixed seed, is trained on for ever
    (``protocol="legacy"``); "fresh" draws as many new wheels as asked for at every call.

    Args:
        protocol: "fresh" or "legacy".
        context: number of context points.
        targets: number of target points.
        drop_y: probability with which each reward of the context, arm by arm, is replaced by
            N(0, 1) noise, as those of arms not pulled are in use.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> batch = WheelBanditTask().sample(8, torch.Generator().manual_seed(0))
        >>> batch.xc.shape, batch.yt.shape
        (torch.Size([8, 512, 2]), torch.Size([8, 50, 5]))
    """

    protocol: ProtocolName = "fresh"
    context: int = 512
    targets: int = 50
    drop_y: float = 0.5
    dim_x = 2  # not fields: the wheel's own
    dim_y = ARMS

    def __post_init__(self) -> None:
        _check_protocol(self.protocol)
        for name, holds, wanted in (
            ("context", self.context >= 0, "be 0 or more"),
            ("targets", self.targets >= 1, "be 1 or more"),
            ("drop_y", 0 <= self.drop_y <= 1, "lie in 0 … 1"),
        ):
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must {wanted}")
        if self.protocol == "legacy" and self.context + self.targets < 3:
            raise ValueError(f"context + targets is {self.context + self.targets}; legacy needs 3")

    def sample(self, batch_size: int, generator: Generator) -> Batch:
        """Draw wheels, or in the legacy protocol give the eight there are.

        Raises:
            ValueError: ``batch_size`` is not 8 in the legacy protocol, or the generator is not on
                the CPU.
        """
        check_generator(generator)
        if self.protocol == "legacy" and batch_size != LEGACY_WHEELS:
            raise ValueError(f"batch_size is {batch_size}; the legacy protocol has 8 wheels")
        n, points = self.context, self.context + self.targets
        if self.protocol == "legacy":
            wheels = legacy_training_wheels(points)
        else:
            wheels = fresh_wheels(torch.rand(batch_size, generator=generator), points, generator)
        x, y = wheels.contexts, wheels.rewards
        dropped = torch.rand((batch_size, n, ARMS), generator=generator) < self.drop_y
        noise = torch.randn((batch_size, n, ARMS), generator=generator)
        yc = torch.where(dropped, noise, y[:, :n])
        return Batch(xc=x[:, :n], yc=yc, xt=x[:, n:], yt=y[:, n:])


def fresh_wheels(delta: Float[Tensor, " wheels"], steps: int, generator: Generator) -> Wheel:
    """Independent wheels, one for each δ."""
    shape = (len(delta), steps)
    radius = torch.rand(shape, generator=generator).sqrt()  # area grows with the square
    angle = 2 * math.pi * torch.rand(shape, generator=generator)
    contexts = radius[..., None] * torch.stack([angle.cos(), angle.sin()], dim=-1)
    normals = torch.randn((*shape, ARMS + 1), generator=generator)
    return _rewarded(contexts, radius >= delta[:, None], normals)


@lru_cache(maxsize=2)
def legacy_training_wheels(points: int) -> Wheel:
    """The eight wheels of the published training set."""
    delta = torch.rand(LEGACY_WHEELS, generator=Generator().manual_seed(LEGACY_SEED))
    wheels = [legacy_wheel(points, float(d), seed=i) for i, d in enumerate(delta)]
    return Wheel(*(torch.stack(parts) for parts in zip(*wheels, strict=True)))


def legacy_wheel(steps: int, delta: float, seed: int) -> Wheel:
    """A wheel of the published generator: NumPy's legacy one, draw for draw.

    Contexts come from the square in chunks of ⌊steps / 3⌋, those outside the disc dropped; then
    the normals of each row in turn, five and, outside δ, a sixth.
    """
    draws = np.random.RandomState(LEGACY_SEED)
    kept: list[np.ndarray] = []
    while sum(map(len, kept)) < steps:
        square = draws.uniform(-1, 1, (steps // 3, 2))
        kept.append(square[np.linalg.norm(square, axis=1) <= 1])
    contexts = np.concatenate(kept)[:steps]
    outside = np.linalg.norm(contexts, axis=1) >= delta
    counts = ARMS + outside
    starts = counts.cumsum() - counts
    normals = draws.normal(size=counts.sum() + 1)  # one more: the last row may have no sixth
    rows = torch.from_numpy(normals[starts[:, None] + np.arange(ARMS + 1)])
    wheel = _rewarded(torch.from_numpy(contexts), torch.from_numpy(outside), rows)
    order = np.arange(steps)
    np.random.RandomState(seed).shuffle(order)
    return Wheel(*(part[torch.from_numpy(order)] for part in wheel))


def _rewarded(
    contexts: Float[Tensor, "*wheels steps 2"],
    outside: Bool[Tensor, "*wheels steps"],
    normals: Float[Tensor, "*wheels steps 6"],
) -> Wheel:
    """Rewards from standard normals; the sixth is that of the rich arm."""
    rewards = torch.tensor(MEANS, dtype=normals.dtype) + STDDEV * normals[..., :ARMS]
    rich = RICH_MEAN + RICH_STDDEV * normals[..., ARMS:]
    right, up = contexts[..., 0] > 0, contexts[..., 1] > 0
    quadrant = torch.where(up, torch.where(right, 1, 2), torch.where(right, 4, 3))
    best = torch.where(outside, quadrant, 0)
    paying = (torch.arange(ARMS) == best[..., None]) & outside[..., None]
    return Wheel(contexts.float(), torch.where(paying, rich, rewards).float(), best)


def _check_protocol(protocol: str) -> None:
    if protocol not in get_args(ProtocolName):
        raise ValueError(
            f"protocol is {protocol!r}; it must be one of {', '.join(get_args(ProtocolName))}"
        )
