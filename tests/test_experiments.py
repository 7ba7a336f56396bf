"""Every experiment of the repository builds its model and its task, and is of the size that it says."""

from pathlib import Path

import pytest
import torch

from synopsis.models import PairMatcher, PixelClassifier, SequenceClassifier
from synopsis.training import Experiment
from synopsis.training.registries import build_task, build_trainee
from synopsis.training.schedules import learning_rate
from synopsis.training.trainees import check_suits
from tests.tolerances import PRINTED_RATE

ROOT = Path(__file__).parent.parent / "experiments"
LRA = sorted((ROOT / "lra").glob("*.toml"))
# Parameters of vanilla, Luna and ConvLuna as published; None: not published.
PUBLISHED = {
    "text": (1_405_442, 1_439_234, 1_373_258),
    "listops": (1_519_370, 1_553_674, 1_454_710),
    "retrieval": (1_998_082, 2_032_386, 1_933_422),
    "image": (None, 2_086_538, 1_954_586),
    "pathfinder": (None, 1_685_378, 1_586_414),
}
NAMES = ("vanilla", "luna", "convluna")
MODELS = {"retrieval": PairMatcher, "image": PixelClassifier, "pathfinder": PixelClassifier}
FACTORS = {"text": 5e-3, "listops": 5e-3, "retrieval": 15e-3, "image": 1e-2, "pathfinder": 1e-2}


def test_there_is_one_for_each_task_and_model():
    assert {path.stem for path in LRA} == {f"{task}-{name}" for task in PUBLISHED for name in NAMES}


@pytest.mark.parametrize("path", LRA, ids=lambda path: path.stem)
def test_its_model_fits_its_task_and_has_the_published_size(path):
    experiment = Experiment.read(path)
    task_name, _, name = path.stem.partition("-")
    task = build_task(experiment)  # which reads no data before it is asked for some
    with torch.device("meta"):
        model = build_trainee(experiment)
    assert type(model) is MODELS.get(task_name, SequenceClassifier)
    check_suits(model, task)
    published = PUBLISHED[task_name][NAMES.index(name)]
    if published is not None:
        unused = model.config["layers"] if name == "convluna" else 0  # temperatures of unpack
        assert sum(p.numel() for p in model.parameters()) == published - unused


@pytest.mark.parametrize("path", LRA, ids=lambda path: path.stem)
def test_its_learning_rate_is_the_published_one(path):
    training = Experiment.read(path).training
    factor, warmup = FACTORS[path.stem.partition("-")[0]], training.warmup
    for t in (1, warmup, training.steps):
        expected = factor * min(1, t / warmup) / max(t, warmup) ** 0.5
        assert learning_rate(t - 1, training) == pytest.approx(expected, rel=PRINTED_RATE)


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.toml")), ids=lambda path: path.stem)
def test_other_experiments_can_be_read(path):
    assert Experiment.read(path).section == "process"
