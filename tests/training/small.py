"""A run small enough to repeat many times in a test."""

from synopsis.training import Experiment

TOML = """
[process]
name = "CMANP"
dim = 8
heads = 2
blocks = 1
latents = 4

[task]
name = "gaussian_process"
max_points = 12

[training]
steps = 20
batch_size = 4
learning_rate = 1e-2
log_every = 3
threads = 1

[evaluation]
batches = 2
batch_size = 2
"""


def experiment(*overrides: str) -> Experiment:
    return Experiment.from_toml(TOML, overrides)
