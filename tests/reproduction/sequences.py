"""ListOps and classifiers as small as they come, and their training without processes of their own."""

from collections.abc import Mapping
from pathlib import Path

from synopsis.reproduction.contenders import Contender
from synopsis.training import Experiment, train
from synopsis.training.experiment import Component

LENGTH = 20
SIZES = {"length": LENGTH, "layers": 2, "dim": 8, "heads": 2, "feedforward": 8}


def listops(folder: Path) -> Component:
    arguments = {"folder": str(folder), "min_length": 3, "max_length": LENGTH}
    return Component("listops", {**arguments, "train": 64, "validation": 64, "test": 40})


def contender(name: str, layer: str, memory: int) -> Contender:
    arguments = {**SIZES, "layer": layer, "memory": memory}
    return Contender(name, Component("SequenceClassifier", arguments), section="model")


TINY = {
    "Luna": contender("Luna", "SharedLunaLayer", 3),
    "ConvLuna": contender("ConvLuna", "SimplifiedConvLunaLayer", 3),
    "Vanilla": contender("Vanilla", "VanillaLayer", 0),
}


def train_here(folders: Mapping[str, Path], jobs: int, watch: object) -> dict[str, str]:
    """What ``train_all`` does, one after the other in this process."""
    for folder in folders.values():
        train(Experiment.read(folder / "experiment.toml"), folder, resume=True)
    return {}
