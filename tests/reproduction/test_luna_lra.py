"""Short trainings on the Long Range Arena: every model fits its task, and stand-ins are called so everywhere."""

import gzip
import struct

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from synopsis.models import MODELS
from synopsis.reproduction import luna_lra, sequence_runs
from synopsis.reproduction.luna_lra import ARENAS, Arena, Result, Settings, results
from synopsis.reproduction.luna_lra_page import PUBLISHED, markdown
from synopsis.reproduction.luna_lra_pictures import _widen, draw
from synopsis.reproduction.sequence_runs import SequenceRun
from synopsis.training.experiment import Component, Experiment
from synopsis.training.registries import build_task
from synopsis.training.trainees import check_suits
from tests.reproduction.sequences import SIZES, listops, train_here


@pytest.mark.parametrize("name", ARENAS)
def test_every_model_fits_its_task(name):
    arena = ARENAS[name]
    experiment = Experiment(Component("x"), arena.task, section="model")
    task = build_task(experiment)
    contenders = arena.contenders(layers=2)
    assert list(contenders) == ["Vanilla", "Luna", "ConvLuna"]
    for contender in contenders.values():
        with torch.device("meta"):
            model = MODELS[contender.process.name](**contender.process.arguments)
        check_suits(model, task)
        assert (model.config["dim"], model.config["layers"]) == (64, 2)
    assert (
        task.stand_in
        == {
            "pathfinder": "",
            "image": "CIFAR-10 in grey",
            "text": "IMDb's reviews",
            "retrieval": "citations of the ACL Anthology Network",
        }[name]
    )


def test_published_figures_stand_in_the_page_and_convlunas_do_not():
    assert set(PUBLISHED["ConvLuna"][0]) == {"not found"}
    assert PUBLISHED["Luna, 256 cells"][0] == ("37.98", "65.78", "79.56", "47.86", "78.55")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """One task that the test makes, under the name of one whose data stand in for others, and fashion as small."""
    sizes = {key: SIZES[key] for key in ("dim", "heads", "feedforward")}
    monkeypatch.setattr(luna_lra, "_SIZES", sizes)
    monkeypatch.setattr(luna_lra, "_EVALUATIONS", 2)
    monkeypatch.setattr(luna_lra, "_BATCHES", 1)
    monkeypatch.setattr(sequence_runs, "train_all", train_here)
    monkeypatch.setattr(sequence_runs, "MEMORY_EXAMPLES", 8)
    arguments = {"vocabulary": 17, "classes": 10, "length": SIZES["length"]}
    made = Arena("ListOps", listops(tmp_path / "listops"), "SequenceClassifier", arguments)
    monkeypatch.setitem(ARENAS, "text", made)
    write_fashion(tmp_path / "fashion-mnist")
    monkeypatch.setenv("SYNOPSIS_DATA", str(tmp_path))
    image = ARENAS["image"]
    monkeypatch.setitem(ARENAS, "image", image)
    return Settings(("image", "text"), 2, 1, 1, 1, tmp_path / "runs", test_examples=20)


def write_fashion(folder) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for stem, count in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = rng.integers(0, 10, count).astype(np.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            path = folder / f"{stem}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(head + values.tobytes()))


def test_a_tiny_page_is_made_and_drawn(tiny, tmp_path):
    found = results(tiny)
    assert [len(result.runs) for result in found] == [3, 3]
    image, text = found
    assert image.title == "Image (stand-in for CIFAR-10 in grey)"
    assert text.title == "ListOps"
    page = markdown(found, tiny, "synopsis reproduce luna-lra", ["a.png"])
    assert "## Image (stand-in for CIFAR-10 in grey)\n" in page
    section = page.split("## Image")[1].split("\n## ")[0]
    assert "**These are not the benchmark's data**" in section
    assert "| *nearest mean* |" in section
    assert "not the benchmark's" not in page.split("## ListOps")[1]
    assert "| ConvLuna | not found | not found |" in page
    (picture,) = draw(found, tmp_path / "luna-lra.md")
    assert picture.stat().st_size > 10_000


def test_originals_are_read_from_where_they_are_given(tmp_path):
    settings = Settings(("image",), 2, 1, 1, 1, tmp_path, {"image": str(tmp_path)})
    assert settings.plan("image").task == Component("image", {"folder": str(tmp_path)})
    assert Settings(("image",), 2, 1, 1, 1, tmp_path).plan("image").task == Component("image")


@pytest.mark.parametrize(("accuracy", "says"), [(0.51, True), (0.53, False)])
def test_the_page_says_when_nothing_is_learned(tiny, accuracy, says):
    contender = ARENAS["image"].contenders(1)["Luna"]
    test = {"accuracy": {"value": accuracy, "standard_error": 0.01}}
    run = SequenceRun(contender, 0, tiny.runs, 2, 2, 9, 1.0, [], [], test)
    found = Result("image", "", {"majority": 0.5}, "0" * 64, [run])
    page = markdown([found], tiny, "synopsis reproduce luna-lra", [])
    assert ("Nothing is learned here yet" in page) == says


def test_a_panel_shows_at_least_twenty_points():
    axes = Figure().subplots()
    axes.set_ylim(49.8, 50.2)
    _widen(axes)
    assert axes.get_ylim() == pytest.approx((40.0, 60.0))
    axes.set_ylim(10.0, 80.0)
    _widen(axes)
    assert axes.get_ylim() == pytest.approx((10.0, 80.0))
