"""Learning rates as closed formulas of the step, so that a resumed run needs no scheduler's state.

``"inverse-square-root"`` is peak · min(t/w, √(w/t)) at step t = 1, 2, … with warm-up w: Vaswani et al. 2017, section
5.3; the peak is the d^−½ w^−½ of that paper, and the ``factor``/√w of the Long Range Arena.
"""

import math

from synopsis.training.experiment import Training


def learning_rate(step: int, training: Training) -> float:
    """The learning rate of one optimiser step.

    Args:
        step: 0 for the first step, ``training.steps − 1`` for the last.
        training: peak, schedule, warm-up and length.

    Returns:
        The learning rate, at least 0.

    Example:
        >>> learning_rate(50, Training(steps=100, learning_rate=1.0, schedule="cosine"))
        0.5
    """
    if training.schedule == "one-cycle":
        return training.learning_rate * _one_cycle(step, training.steps, training.warmup)
    if step < training.warmup:
        return training.learning_rate * (step + 1) / training.warmup
    if training.schedule == "inverse-square-root":
        return training.learning_rate * math.sqrt(max(training.warmup, 1) / (step + 1))
    if training.schedule == "cosine":
        return training.learning_rate * _cosine(step - training.warmup, training)
    return training.learning_rate * _stable_decay(step, training)


def _cosine(step: int, training: Training) -> float:
    """½ (1 + cos(π t / T)): Loshchilov and Hutter 2017, equation 5, one period down to 0."""
    return 0.5 * (1 + math.cos(math.pi * step / max(training.steps - training.warmup, 1)))


def _stable_decay(step: int, training: Training) -> float:
    """Constant, then 1 − √(share of the decay done): Hägele et al. 2024."""
    decay = training.decay_fraction * training.steps
    begin = training.steps - decay
    return 1.0 if step < begin or decay == 0 else 1 - math.sqrt((step - begin) / decay)


def _one_cycle(step: int, steps: int, warmup: int) -> float:
    """1/25 → 1 → 4·10⁻⁶ along two half cosines: Smith and Topin 2018, with torch's defaults."""
    peak = (warmup if warmup else 0.3 * steps) - 1
    if step < peak:
        return _half_cosine(1 / 25, 1, step / peak)
    return _half_cosine(1, 1 / 25 / 1e4, (step - peak) / max(steps - 1 - peak, 1))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(share, 1.0)))
