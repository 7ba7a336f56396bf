"""The image completion table: its models, its metric, its memory of what was done, its page and its picture."""

import math

import numpy as np
import pytest
import torch
import typer
from matplotlib.image import imread
from typer.testing import CliRunner

from synopsis.cli import reproduce, reproduce_np_images
from synopsis.processes import CNP
from synopsis.processes.base import build
from synopsis.reproduction import np_images
from synopsis.reproduction.costs import Cost
from synopsis.reproduction.np_images import (
    ALL,
    InOrder,
    Row,
    Settings,
    available,
    contender,
    ensure_images,
    rows,
    training_task,
    without_context,
)
from synopsis.reproduction.np_images_page import markdown
from synopsis.reproduction.np_images_pictures import completion, draw
from synopsis.tasks.image_files import IMAGE_SETS, load_images
from synopsis.tasks.images import ImageCompletion
from synopsis.training import evaluate
from synopsis.training.experiment import Experiment
from synopsis.training.registries import build_task
from tests.tolerances import FLOAT32, PREDICTION

BUDGET = 0.5  # CPU-seconds: some ten steps
# Parameters of the released code (CMANP, LBANP, TNP, BNP repositories): EMNIST, CelebA.
PUBLISHED = {
    "NP": (315_138, 365_702),
    "CNP": (298_626, 349_190),
    "CANP": (414_978, 465_542),
    "ANP": (431_490, 482_054),
    "BNP": (331_394, 381_958),
    "BANP": (447_746, 498_310),
    "TNPD": (222_146, 222_790),
    "TNPA": (222_146, 222_790),
    "TNPND": (332_885, 338_431),
    "EQTNP": (492_482, 493_126),
}


class FakeMemory:
    """Measures nothing: the real one starts a process of its own."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def measure(self, cell):
        assert (cell.points, cell.targets) == (32, 64)
        return Cost()


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch):
    monkeypatch.setattr(np_images, "FreshProcesses", FakeMemory)


@pytest.fixture
def settings(tmp_path):
    return Settings("digits", ("CNP",), BUDGET, batches=3, runs=tmp_path / "runs")


@pytest.fixture
def process():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CNP(dim_x=2, dim_y=1, dim=16).eval()


@pytest.mark.parametrize("dataset", IMAGE_SETS)
@pytest.mark.parametrize("name", ALL)
def test_models_fit_the_images_and_have_their_published_sizes(name, dataset):
    component = contender(name, Settings(dataset)).process
    made = build({"process": component.name, "arguments": dict(component.arguments)})
    channels = IMAGE_SETS[dataset].channels
    assert (made.dim_x, made.dim_y) == (2, channels)
    if name in PUBLISHED:
        count = sum(parameter.numel() for parameter in made.parameters())
        assert count == PUBLISHED[name][channels > 1]


def test_grey_images_have_the_published_floor_of_the_standard_deviation():
    for name, floor in (("CMANP", 0.05), ("CMANPAND", 0.05), ("CNP", 0.1)):
        component = contender(name, Settings("fashion-mnist")).process
        made = build({"process": component.name, "arguments": dict(component.arguments)}).eval()
        with torch.no_grad():
            for parameter in made.head.parameters() if name != "CNP" else made.decoder.parameters():
                parameter.copy_(-30.0 * parameter.abs())  # as certain as it can be
            x, y = torch.zeros(1, 4, 2), torch.zeros(1, 4, 1)
            predicted = made(x, y, torch.rand(1, 5, 2))
        smallest = getattr(predicted, "marginals", predicted).stddev.min().item()
        assert smallest >= floor - FLOAT32, name


def test_unknown_models_are_named():
    with pytest.raises(ValueError, match="unknown model 'XNP'; there are CMANP"):
        contender("XNP", Settings())


@pytest.mark.parametrize("dataset", IMAGE_SETS)
def test_training_tasks_can_be_built(dataset):
    component = training_task(dataset)
    task = build_task(Experiment(component, component))
    assert isinstance(task, ImageCompletion)
    assert task.split == "train"


def test_evaluation_is_of_every_image_once_and_the_mean_of_batch_means(process):
    task = ImageCompletion("digits", "unseen")
    batches = available(task, 10_000)
    assert batches == math.ceil(len(task) / 16)
    seen = []
    scores = evaluate(process, InOrder(task, seen.append), batches, 16, 0)
    assert seen == list(range(1, batches + 1))
    means = []
    with torch.no_grad():
        for batch in task.in_order(16, 0):
            predicted = process(batch.xc, batch.yc, batch.xt)
            density = torch.distributions.Normal(
                predicted.mean.double(), predicted.stddev.double()
            ).log_prob(batch.yt.double())
            means.append(density.mean().item())
    assert scores.log_likelihood.value == pytest.approx(np.mean(means), rel=PREDICTION)
    error = np.std(means, ddof=1) / math.sqrt(batches)
    assert scores.log_likelihood.standard_error == pytest.approx(error, rel=1e3 * FLOAT32)


def test_the_reference_knows_only_each_pixels_mean_and_deviation():
    """Against a loop over pixels in float64."""
    settings = Settings("digits", batches=2)
    train = load_images("digits", "train").astype(np.float64)[..., 0] / 16 - 0.5
    mean, stddev = train.mean(0), np.maximum(train.std(0, ddof=1), 0.05)
    scores = []
    for batch in list(ImageCompletion("digits", "seen").in_order(16, 0))[:2]:
        densities = []
        for x, y in zip(batch.xt.flatten(0, 1), batch.yt.flatten(), strict=True):
            row, column = (round((v + 1) / 2 * 7) for v in x.tolist())
            m, s = mean[8 * row + column], stddev[8 * row + column]
            densities.append(
                -0.5 * ((y.item() - m) / s) ** 2 - math.log(s * math.sqrt(2 * math.pi))
            )
        scores.append(np.mean(densities))
    found = without_context(settings, "seen")
    assert found.value == pytest.approx(np.mean(scores), rel=PREDICTION)
    assert without_context(Settings("celeba32"), "seen") is None


def test_a_table_is_trained_once_and_measured_once(settings, monkeypatch):
    watched = set()
    [first] = rows(settings, lambda what, done, of: watched.add((what, done == of)))
    assert {("CNP", True), ("CNP-s0, seen", True), ("CNP-s0, unseen", True)} <= watched
    assert first.ledgers[0].origin == "trained here"
    assert first.ledgers[0].steps >= 1
    assert first.kept[0] == first.kept[1] > 0  # CNP streams
    assert np.isfinite(first.log_likelihood("unseen").value)

    def never(*_):
        raise AssertionError("this was done before")

    monkeypatch.setattr(np_images, "evaluate", never)
    monkeypatch.setattr("synopsis.reproduction.contenders.train", never)
    [second] = rows(settings, never)
    assert second.scores == first.scores
    [free] = rows(Settings("digits", ("CNP",), 0.0, batches=3, runs=settings.runs))
    assert free.scores == first.scores


def test_a_table_killed_while_it_measures_does_not_train_again(settings, monkeypatch):
    def killed(what, done, of):
        if what == "CNP-s0, unseen":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rows(settings, killed)
    monkeypatch.setattr("synopsis.reproduction.contenders.train", None)
    done = []
    [row] = rows(settings, lambda what, *_: done.append(what))
    assert set(done) == {"CNP-s0, unseen"}  # the rest is remembered
    assert set(row.scores) == {"seen", "unseen"}


def test_untrained_models_are_named_on_the_page(tmp_path):
    settings = Settings("digits", ("CNP",), 0.0, batches=2, runs=tmp_path)
    found = rows(settings)
    page = markdown(found, settings, "the command", [])
    assert "| CNP | not found | – |" in page
    assert "- CNP: CNP: no weights in" in page
    assert draw({}, "digits", settings.splits, tmp_path / "x.md") == []


def test_scores_are_means_over_seeds():
    scores = [
        {"log_likelihood": {"value": value, "standard_error": error}}
        for value, error in ((1.0, 0.1), (2.0, 0.3))
    ]
    row = Row("CNP", scores={"seen": tuple(scores), "unseen": tuple(scores[:1])})
    assert row.log_likelihood("seen").value == pytest.approx(1.5)
    assert row.log_likelihood("seen").standard_error == pytest.approx(0.2)
    assert row.spread("seen") == pytest.approx(math.sqrt(0.5))
    assert row.spread("unseen") is None


def test_missing_images_are_downloaded_or_named(monkeypatch):
    here, said = [], []

    def load(dataset, split):
        if dataset not in here:
            raise FileNotFoundError("not here; get it somehow")

    def fetch(say):
        say("downloading")
        here.append("fashion-mnist")

    monkeypatch.setattr(np_images, "load_images", load)
    monkeypatch.setattr(np_images, "fetch_fashion_mnist", fetch)
    ensure_images("fashion-mnist", said.append)
    assert said == ["downloading"]
    with pytest.raises(FileNotFoundError, match="get it somehow"):
        ensure_images("emnist", said.append)

    def refuse(say):
        raise OSError("no network")

    here.clear()
    monkeypatch.setattr(np_images, "fetch_fashion_mnist", refuse)
    with pytest.raises(OSError, match="cannot be downloaded: no network"):
        ensure_images("fashion-mnist", said.append)


def test_what_is_given_is_shown_and_nothing_else(process):
    task = ImageCompletion("digits", "seen")
    image = load_images("digits", "seen")[3].reshape(8, 8) / 16
    few, more, whole = (completion(process, task, 3, n).given for n in (5, 20, 64))
    np.testing.assert_allclose(whole[..., 0], image, atol=FLOAT32)
    shown_few, shown_more = (np.ptp(given, axis=-1) == 0 for given in (few, more))
    assert (shown_few.sum(), shown_more.sum()) == (5, 20)  # the hidden colour is no grey
    assert not (shown_few & ~shown_more).any()
    np.testing.assert_allclose(more[shown_more][:, 0], image[shown_more], atol=FLOAT32)


def test_completions_are_the_predictions_at_every_pixel(process):
    task = ImageCompletion("digits", "seen")
    found = completion(process, task, 0, 10)
    batch = task.whole([0], 10, torch.Generator().manual_seed(0))
    x = torch.tensor([[[2 * 2 / 7 - 1, 2 * 5 / 7 - 1]]])  # row 2, column 5
    with torch.no_grad():
        predicted = process(batch.xc, batch.yc, x)
    mean = min(max(predicted.mean.item() + 0.5, 0.0), 1.0)
    assert found.mean[2, 5] == pytest.approx([mean] * 3, abs=PREDICTION)
    assert found.stddev[2, 5] == pytest.approx(predicted.stddev.item(), rel=PREDICTION)


def test_pictures_are_drawn_beside_the_page(process, tmp_path):
    [path] = draw({"A": process, "B": process}, "digits", ("seen", "unseen"), tmp_path / "np.md")
    assert path == tmp_path / "np-completed.png"
    height, width, _ = imread(path).shape
    assert width > height > 300


@pytest.fixture
def app():
    made = typer.Typer()
    reproduce.register(made)
    return made


def invoke(app, *arguments):
    return CliRunner().invoke(app, ["reproduce", "np-images", *map(str, arguments)])


def test_the_command_writes_page_and_picture(app, tmp_path):
    out = tmp_path / "made" / "np-images.md"
    options = ["--dataset", "digits", "--models", "CNP", "--batches", 2, "--out", out]
    result = invoke(app, *options, "--budget", BUDGET / 60, "--runs", tmp_path / "runs")
    assert result.exit_code == 0, result.output
    page = out.read_text(encoding="utf-8")
    assert page.startswith("# Image completion: scikit-learn's digits\n")
    for words in (
        "classes 0–4",
        "classes 5–9",
        "2 batches of 16 (unseen)",
        "CPU-minutes of training",
    ):
        assert words in page
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| CNP", "| *no context*"]
    assert "--dataset digits --budget 0.00833333 --seeds 1 --batches 2 --models CNP\n" in page
    assert (out.parent / "np-images-completed.png").exists()
    assert "![completed images](np-images-completed.png)" in page


def test_errors_of_the_command_are_one_line(app, tmp_path):
    for options, words in (
        (["--dataset", "digits", "--models", "ABC"], "'ABC' is not in this table"),
        (["--dataset", "celeba64"], "list_eval_partition.txt of celeba is in none of"),
    ):
        result = invoke(app, *options, "--out", tmp_path / "x.md", "--runs", tmp_path)
        assert result.exit_code == 2
        assert words in result.output
        assert len(result.output.strip().splitlines()) == 1


def test_the_shipped_process_stands_first_where_there_is_one(monkeypatch):
    monkeypatch.setattr("synopsis.processes.base.shipped", lambda: ["fashion-cmanp"])
    assert reproduce_np_images._names(None, "fashion-mnist")[:2] == ["fashion-cmanp", "CMANP"]
    assert reproduce_np_images._names(None, "digits")[0] == "CMANP"
    assert reproduce_np_images._names("CNP,fashion-cmanp", "fashion-mnist")[1] == "CNP"
