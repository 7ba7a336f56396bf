"""Image completion: its numbers, its pixels, its laws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synopsis.tasks import Task, images
from synopsis.tasks.image_files import IMAGE_SETS
from synopsis.tasks.images import ImageCompletion
from tests.tolerances import FLOAT32, SIGMAS

COUNT = 7  # images in the sets below


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def pictures(monkeypatch):
    """Random images instead of files, by the name of the set."""
    random = np.random.default_rng(1)
    made = {
        name: random.integers(0, known.largest + 1, (COUNT, known.side**2, known.channels))
        for name, known in IMAGE_SETS.items()
    }
    made = {name: values.astype(np.uint8) for name, values in made.items()}
    monkeypatch.setattr(images, "load_images", lambda dataset, split, folder: made[dataset])
    return made


def places(x, side):
    """Row and column of every pixel, from the formula read backwards."""
    exact = (x.double() + 1) * (side - 1) / 2
    whole = exact.round()
    torch.testing.assert_close(exact, whole, rtol=0, atol=side * FLOAT32)
    return whole.long()


@pytest.mark.parametrize("name", [*IMAGE_SETS])
def test_values_are_those_of_the_pixels_at_x(name, pictures):
    known, task = IMAGE_SETS[name], ImageCompletion(name)
    for batch in task.in_order(COUNT, seed=2):
        for x, y in ((batch.xc, batch.yc), (batch.xt, batch.yt)):
            place = places(x, known.side)
            for i in range(COUNT):
                square = pictures[name][i].reshape(known.side, known.side, known.channels)
                values = square[place[i, :, 0], place[i, :, 1]].astype(float)
                wanted = torch.from_numpy(values / known.largest - 0.5)
                torch.testing.assert_close(y[i].double(), wanted, rtol=0, atol=FLOAT32)


@settings(deadline=None, max_examples=25)
@given(name=st.sampled_from(["digits", "fashion-mnist", "celeba32"]), seed=st.integers(0, 2**31))
def test_no_pixel_twice_and_another_set_for_every_image(name, seed):
    side = IMAGE_SETS[name].side
    batch = ImageCompletion(name).sample(3, generator(seed))
    place = places(torch.cat([batch.xc, batch.xt], dim=1), side)
    numbers = place[..., 0] * side + place[..., 1]
    assert numbers.min() >= 0
    assert numbers.max() < side**2
    assert all(len(row.unique()) == len(row) for row in numbers)
    assert not torch.equal(numbers[0], numbers[1])


def test_every_pixel_is_as_likely_in_the_context():
    draws = 3000
    task = ImageCompletion("digits", min_context=3, max_points=7)  # so N = 3
    counts = torch.zeros(64, dtype=torch.float64)
    batch = task.sample(draws, generator(3))
    place = places(batch.xc, 8)
    counts += (place[..., 0] * 8 + place[..., 1]).flatten().bincount(minlength=64)
    expected = 3 * draws / 64
    chi2 = ((counts - expected).square() / expected).sum().item()
    assert abs(chi2 - 63) < SIGMAS * math.sqrt(2 * 63)


@pytest.mark.parametrize("cap", [None, 9])
def test_numbers_of_points_follow_the_published_law(cap):
    """N uniform over 3..P−4, then M over 3..min(P − N, T) − 1, against exact probabilities."""
    draws, points, random = 4000, 32, generator(4)
    task = ImageCompletion("digits", max_targets=cap)
    counts = torch.zeros(points, points, dtype=torch.float64)
    for _ in range(draws):
        batch = task.sample(1, random)
        counts[batch.xc.shape[1], batch.xt.shape[1]] += 1
    expected = torch.zeros_like(counts)
    for n in range(3, points - 3):
        most = min(points - n, cap or points) - 1
        expected[n, 3 : most + 1] = draws / (points - 6) / (most - 2)
    assert (counts[expected == 0] == 0).all()
    for axis in (0, 1):
        seen, wanted = counts.sum(axis), expected.sum(axis)
        inside = wanted > 0
        chi2 = ((seen - wanted)[inside].square() / wanted[inside]).sum().item()
        freedom = int(inside.sum()) - 1
        assert abs(chi2 - freedom) < SIGMAS * math.sqrt(2 * freedom)


def test_published_bounds_and_dimensions():
    bounds = {"fashion-mnist": 200, "emnist": 200, "celeba32": 200, "celeba64": 800}
    for name, points in (bounds | {"celeba128": 1600}).items():
        task: Task = ImageCompletion(name)
        assert (task.dim_x, task.dim_y) == (2, 3 if "celeba" in name else 1)
        seen = [task.sample(1, generator(seed)) for seed in range(40)]
        context = [batch.xc.shape[1] for batch in seen]
        total = [batch.xc.shape[1] + batch.xt.shape[1] for batch in seen]
        assert 0.8 * points < max(context) <= points - 4
        assert max(total) < points


def test_targets_gives_every_task_that_many_and_keeps_the_contexts():
    for seed in range(20):
        fixed = ImageCompletion(targets=64).sample(2, generator(seed))
        law = ImageCompletion().sample(2, generator(seed))
        assert fixed.xt.shape == (2, 64, 2)
        assert fixed.xc.shape == law.xc.shape


def test_images_are_drawn_uniformly(pictures):
    draws = 2000
    batch = ImageCompletion("digits").whole(range(COUNT), 0, generator())
    seen = ImageCompletion("digits", targets=32).sample(draws, generator(5))
    place = places(seen.xt, 8)
    numbers = place[..., 0] * 8 + place[..., 1]
    # which image it was, by its 32 targets
    agree = [(seen.yt == batch.yt[i][numbers]).all(dim=(1, 2)) for i in range(COUNT)]
    which = torch.stack(agree)
    assert (which.sum(dim=0) == 1).all()
    error = SIGMAS * math.sqrt(draws / COUNT)
    assert ((which.sum(dim=1) - draws / COUNT).abs() < error).all()


def test_in_order_walks_through_every_image_once(pictures):
    task = ImageCompletion("digits", targets=36)
    batches = list(task.in_order(3, seed=6))
    assert [len(batch.xc) for batch in batches] == [3, 3, 1]
    assert len(task) == COUNT
    everything = task.whole(range(COUNT), 0, generator()).yt
    for number, batch in enumerate(batches):
        place = places(batch.xt, 8)
        numbers = place[..., 0] * 8 + place[..., 1]
        for i, chosen in enumerate(numbers):
            assert torch.equal(batch.yt[i], everything[3 * number + i][chosen])
    again = list(task.in_order(3, seed=6))
    assert all(torch.equal(a.xc, b.xc) for a, b in zip(batches, again, strict=True))
    other = next(task.in_order(3, seed=7))
    assert other.xc.shape != batches[0].xc.shape or not torch.equal(other.xc, batches[0].xc)


def test_whole_has_all_pixels_in_order_and_growing_contexts(pictures):
    task = ImageCompletion("celeba32")
    few, many = (task.whole([4, 2], n, generator(8)) for n in (10, 300))
    assert torch.equal(few.xc, many.xc[:, :10])
    wanted = torch.from_numpy(pictures["celeba32"][[4, 2]].astype(float) / 255 - 0.5)
    torch.testing.assert_close(many.yt.double(), wanted, rtol=0, atol=FLOAT32)
    place = places(many.xt, 32)
    assert torch.equal(place[0, :, 0] * 32 + place[0, :, 1], torch.arange(1024))
    assert task.whole([0], 1024, generator()).xc.shape == (1, 1024, 2)
    with pytest.raises(ValueError, match=r"context is 1025; it must lie in 0 … 1024"):
        task.whole([0], 1025, generator())


@pytest.mark.parametrize("scale", [0.05, -1.0])
def test_student_t_adds_noise_of_its_scale(scale):
    clean = ImageCompletion("celeba64").sample(8, generator(9))
    noisy = ImageCompletion("celeba64", student_t=scale).sample(8, generator(9))
    assert torch.equal(clean.xt, noisy.xt)
    noise = torch.cat([noisy.yc - clean.yc, noisy.yt - clean.yt], dim=1).double().abs().flatten()
    # The quartile of |t| with 2.1 degrees of freedom is 0.805; averaged over U[0, 0.09) scales,
    # P(|noise| < q) is taken from draws of torch's own Student distribution.
    student = torch.distributions.StudentT(torch.tensor(2.1, dtype=torch.float64))
    torch.manual_seed(0)
    reference = student.sample((200_000,)).abs()
    scales = scale if scale > 0 else 0.09 * torch.rand(200_000, dtype=torch.float64)
    middle = (reference * scales).median()
    share = (noise < middle).double().mean().item()
    assert abs(share - 0.5) < SIGMAS * 0.5 * math.sqrt(1 / len(noise) + 1 / 200_000)


def test_same_seed_same_batch_and_the_global_generator_does_not_matter():
    task = ImageCompletion("digits", student_t=-1.0)
    torch.manual_seed(0)
    one = task.sample(4, generator(11))
    torch.manual_seed(1)
    two = task.sample(4, generator(11))
    assert torch.equal(one.xc, two.xc)
    assert torch.equal(one.yt, two.yt)
    assert not torch.equal(one.xc[:, :3], task.sample(4, generator(12)).xc[:, :3])


def test_building_reads_nothing(monkeypatch):
    def refuse(*_):
        raise AssertionError("read")

    monkeypatch.setattr(images, "load_images", refuse)
    task = ImageCompletion("celeba32")
    assert (task.dim_y, task.side) == (3, 32)


def test_smallest_task_and_empty_contexts():
    batch = ImageCompletion("digits", max_points=7).sample(1, generator())
    assert (batch.xc.shape[1], batch.xt.shape[1]) == (3, 3)
    task = ImageCompletion("digits", min_context=0, min_targets=1, max_points=2)
    batch = task.sample(2, generator())
    assert (batch.xc.shape, batch.yt.shape) == ((2, 0, 2), (2, 1, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "mnist"}, "dataset is 'mnist'; it must be one of fashion-mnist, digits"),
        ({"split": "test"}, "split is 'test'; it must be one of train, seen, unseen"),
        ({"dataset": "celeba32", "split": "unseen"}, "split is 'unseen'.*no classes"),
        ({"folder": "/no/such"}, "folder is '/no/such'; it must be a folder"),
        ({"min_context": -1}, "min_context is -1"),
        ({"min_targets": 0}, "min_targets is 0"),
        ({"max_points": 6}, "max_points is 6; it must lie in 7 … 784"),
        ({"max_points": 785}, "max_points is 785"),
        ({"max_targets": 3}, "max_targets is 3; it must be None or exceed min_targets"),
        ({"max_targets": 0}, "max_targets is 0"),
        ({"targets": 0}, "targets is 0; it must be None or lie in 1 … 588"),
        ({"targets": 589}, "targets is 589"),
        ({"student_t": -0.5}, "student_t is -0.5; it must be None, positive or -1"),
    ],
)
def test_wrong_arguments_are_named_with_their_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageCompletion(**arguments)


def test_most_targets_there_can_be():
    task = ImageCompletion(targets=588)
    assert max(task.sample(1, generator(seed)).xc.shape[1] for seed in range(30)) > 150
