"""Predators and prey: the simulator's laws, and the reader of the trappers' record."""

import math

import pytest
import torch
from scipy import stats

from synopsis.tasks import Task, lotka_volterra
from synopsis.tasks.lotka_volterra import HareLynxTask, LotkaVolterraTask, read_hare_lynx
from tests.tolerances import FLOAT32, PREDICTION, SIGMAS

STEPS = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]]).double()
RATES = (0.01, 0.5, 1.0, 0.01)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hazards(populations):
    """Of a predator's birth and death and a prey's birth and death, by the model's definition."""
    x, y = populations.unbind(-1)
    a, b, c, d = RATES
    return torch.stack([a * x * y, b * x, c * y, d * x * y], dim=-1)


# --- the simulator


def events(seed, tasks=8, length=1500):
    """State before, change, and waiting time of every event of every history."""
    histories = LotkaVolterraTask(events=length).simulate(tasks, generator(seed))
    before, changes, waits = [], [], []
    for i, n in enumerate(histories.length.tolist()):
        states, time = histories.populations[i, :n], histories.time[i, :n]
        before.append(states[:-1])
        changes.append(states[1:] - states[:-1])
        waits.append(time[1:] - time[:-1])
    return torch.cat(before), torch.cat(changes), torch.cat(waits)


def test_events_happen_in_proportion_to_their_hazards():
    """Counts of each kind minus the sum of its probabilities is a martingale."""
    before, changes, _ = events(1)
    kind = (changes[:, None] == STEPS).all(dim=-1)
    assert (kind.sum(dim=1) == 1).all()  # one individual at a time
    rates = hazards(before)
    probability = rates / rates.sum(dim=1, keepdim=True)
    excess = (kind.double() - probability).sum(dim=0)
    spread = (probability * (1 - probability)).sum(dim=0).sqrt()
    assert (excess.abs() < SIGMAS * spread).all()
    # and not only on average: also where prey are many
    many = before[:, 1] > before[:, 1].median()
    excess = (kind.double() - probability)[many].sum(dim=0)
    assert (excess.abs() < SIGMAS * (probability * (1 - probability))[many].sum(dim=0).sqrt()).all()


def test_waits_are_exponential_with_the_total_hazard():
    before, _, waits = events(2)
    scaled = (waits * hazards(before).sum(dim=1)).numpy()
    assert stats.kstest(scaled, stats.expon.cdf).pvalue > 1e-4


def test_beginnings_are_rounded_towards_zero_around_the_start():
    begin = LotkaVolterraTask(events=30).simulate(4000, generator(3)).populations[:, 0]
    for column, start in ((0, 50), (1, 100)):
        for value in range(start - 2, start + 3):
            share = stats.norm.cdf(value + 1 - start) - stats.norm.cdf(value - start)
            seen = (begin[:, column] == value).double().mean().item()
            assert abs(seen - share) < SIGMAS * math.sqrt(share * (1 - share) / 4000)
    low = LotkaVolterraTask(start=(0.1, 0.1), events=30).simulate(100, generator(4))
    assert low.populations[:, 0].min() == 1


def test_histories_end_with_a_species_and_stand_still():
    histories = LotkaVolterraTask(
        start=(5.0, 5.0), rates=(0.1, 1.0, 1.0, 0.1), events=400
    ).simulate(60, generator(5))
    alive = (histories.populations > 0).all(dim=-1)
    ended = histories.length < 400
    assert int(ended.sum()) > 10
    for i, n in enumerate(histories.length.tolist()):
        assert alive[i, : n - 1].all()
        if ended[i]:
            assert not alive[i, n - 1 :].any()
            assert (histories.populations[i, n:] == histories.populations[i, n - 1]).all()
            assert (histories.time[i, n:] == histories.time[i, n - 1]).all()
        assert (histories.time[i, :n].diff() > 0).all()


# --- the task


def test_points_are_events_of_the_history_each_once():
    task = LotkaVolterraTask(events=600, standardise=False)
    random = generator(6)
    state = random.get_state()
    histories = task.simulate(4, random)
    random.set_state(state)
    batch = task.sample(4, random)
    x = torch.cat([batch.xc, batch.xt], dim=1)[..., 0]
    y = torch.cat([batch.yc, batch.yt], dim=1)
    for i in range(4):
        n = int(histories.length[i])
        time = histories.time[i, :n].float()
        match = x[i][:, None] == time
        assert (match.sum(dim=1) == 1).all()
        where = match.long().argmax(dim=1)
        assert len(where.unique()) == len(where)
        assert torch.equal(y[i].double(), histories.populations[i, where])


def test_events_are_chosen_uniformly(monkeypatch):
    """With time as the number of the event, chosen times are uniform over the history."""
    task = LotkaVolterraTask(events=1000, standardise=False)
    real = task.simulate(50, generator(7))
    time = torch.arange(1000.0).expand(50, 1000).double()
    length = torch.full((50,), 500)
    counted = real._replace(time=time, length=length)
    monkeypatch.setattr(LotkaVolterraTask, "simulate", lambda *_: counted)
    batch = task.sample(50, generator(8))
    x = torch.cat([batch.xc, batch.xt], dim=1).flatten().double()
    assert x.max() < 500
    counts = torch.histc(x, bins=10, min=0, max=500)
    expected = len(x) / 10
    # choosing without replacement spreads counts a little less than independent draws
    chi2 = ((counts - expected).square() / expected).sum().item()
    assert chi2 < 9 + SIGMAS * math.sqrt(2 * 9)


def test_numbers_of_points_follow_the_published_law():
    """N uniform over 15..84, then M over 15..99−N, and no more than the shortest history has."""
    draws, random, task = 6000, generator(9), LotkaVolterraTask()
    counts = torch.zeros(100, 100, dtype=torch.float64)
    for _ in range(draws):
        context, points = task._sizes(20_000, random)
        counts[context, points - context] += 1
    expected = torch.zeros_like(counts)
    for n in range(15, 85):
        expected[n, 15 : 100 - n] = draws / 70 / (85 - n)
    assert (counts[expected == 0] == 0).all()
    seen, wanted = counts.sum(1)[15:85], expected.sum(1)[15:85]
    chi2 = ((seen - wanted).square() / wanted).sum().item()
    assert abs(chi2 - 69) < SIGMAS * math.sqrt(2 * 69)
    mean = (counts.sum(0) * torch.arange(100)).sum() / draws
    law = (expected.sum(0) * torch.arange(100)).sum() / draws
    assert abs(mean - law) < SIGMAS * 20 / math.sqrt(draws)
    assert max(task._sizes(33, random)[1] for _ in range(20)) <= 33


def test_standardised_contexts_have_mean_zero_and_unit_spread():
    raw = LotkaVolterraTask(events=800, standardise=False).sample(5, generator(10))
    batch = LotkaVolterraTask(events=800).sample(5, generator(10))
    for name in ("x", "y"):
        context, targets = getattr(raw, f"{name}c").double(), getattr(raw, f"{name}t").double()
        mean, spread = context.mean(1, keepdim=True), context.std(1, keepdim=True)
        for part, values in (("c", context), ("t", targets)):
            given = getattr(batch, name + part).double()
            torch.testing.assert_close(
                given, (values - mean) / (spread + 1e-5), rtol=PREDICTION, atol=10 * PREDICTION
            )


def test_short_histories_are_simulated_again():
    task = LotkaVolterraTask(start=(3.0, 3.0), rates=(0.2, 1.0, 1.0, 0.2), events=100)
    assert (task.simulate(40, generator(11)).length < 30).any()
    batch = task.sample(40, generator(11))
    assert batch.xc.shape[0] == 40
    assert batch.xc.shape[1] >= 15
    assert batch.xt.shape[1] >= 15


def test_histories_that_always_end_too_soon_are_an_error(monkeypatch):
    monkeypatch.setattr(lotka_volterra, "ROUNDS", 3)
    task = LotkaVolterraTask(start=(1.0, 1.0), rates=(1e-9, 1.0, 1e-9, 1e-9), events=40)
    with pytest.raises(RuntimeError, match="in 3 rounds 2 of 2 histories never lasted 30 events"):
        task.sample(2, generator())


def test_seeds_and_dimensions():
    task: Task = LotkaVolterraTask(events=300)
    assert (task.dim_x, task.dim_y) == (1, 2)
    torch.manual_seed(0)
    one = task.sample(2, generator(12))
    torch.manual_seed(1)
    assert torch.equal(one.yt, task.sample(2, generator(12)).yt)
    assert not torch.equal(one.yc[:, :15], task.sample(2, generator(13)).yc[:, :15])
    assert one.xc.shape[::2] == (2, 1)
    assert one.yt.shape[::2] == (2, 2)
    assert one.yt.dtype == torch.float32


# --- hares and lynxes (invented numbers: the record is not part of the library)


def record(path, years=31, header="", line="{} {} {}"):
    rows = [(1000 + i, 10 * i + 0.5, 300 - i) for i in range(years)]
    path.write_text(header + "\n".join(line.format(*row) for row in rows) + "\n")
    return rows


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("", "{} {} {}"),
        ("", "  {}\t{}\t{}  "),
        ("# a comment\n\n", "{}, {}, {}"),
        ("Year Hare Lynx\n", "{} {} {}"),
        ('"time","lynx","hare"\n', "{0},{2},{1}"),
        ("row,lynx,year,hare\n", "7,{2},{0},{1}"),
    ],
)
def test_every_form_of_the_record_is_read(tmp_path, header, line):
    rows = record(tmp_path / "it.txt", header=header, line=line)
    assert list(read_hare_lynx(str(tmp_path / "it.txt"))) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1900 1\n", r"it\.txt:1: '1900 1' is not year, hare, lynx"),
        ("1900 1 2\n1901 x 3\n", r"it\.txt:2: '1901 x 3' is not year, hare, lynx"),
        ("1900 1 2 3\n", r"it\.txt:1: "),
        ("1900 nan 2\n", r"it\.txt:1: "),
        ("hare lynx\n1 2\n", r"it\.txt:2: "),
        ("", "holds 0 years; min_points 15 needs 31"),
        ("1900 1 2\n", "holds 1 years"),
    ],
)
def test_damaged_records_are_named_with_their_line(tmp_path, text, message):
    (tmp_path / "it.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        HareLynxTask(str(tmp_path / "it.txt"))


def test_every_task_is_the_whole_record_shuffled(tmp_path):
    rows = record(tmp_path / "it.txt", years=40)
    task: Task = HareLynxTask(str(tmp_path / "it.txt"), standardise=False)
    assert (task.dim_x, task.dim_y) == (1, 2)
    wanted = torch.tensor([[year, lynx, hare] for year, hare, lynx in rows])
    sizes = set()
    for seed in range(60):
        batch = task.sample(3, generator(seed))
        x, y = torch.cat([batch.xc, batch.xt], dim=1), torch.cat([batch.yc, batch.yt], dim=1)
        whole = torch.cat([x, y], dim=-1)
        order = x[..., 0].argsort(dim=1)
        for i in range(3):
            assert torch.equal(whole[i][order[i]], wanted)
        assert not torch.equal(order[0], order[1])
        sizes.add(batch.xc.shape[1])
    assert sizes == set(range(15, 25))


def test_record_is_standardised_by_its_context(tmp_path):
    record(tmp_path / "it.txt", years=40)
    batch = HareLynxTask(str(tmp_path / "it.txt")).sample(3, generator())
    for values in (batch.xc, batch.yc):
        assert values.mean(dim=1).abs().max() < 10 * FLOAT32
        torch.testing.assert_close(
            values.std(dim=1), torch.ones_like(values[:, 0]), rtol=PREDICTION, atol=0
        )


def test_no_record_is_an_error_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        HareLynxTask(str(tmp_path / "nowhere.txt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": (0.0, 1.0)}, r"start is \(0.0, 1.0\); it must be positive"),
        ({"rates": (1.0, 1.0, 1.0, 0.0)}, "rates is"),
        ({"min_points": 1}, "min_points is 1; it must be 2 or more"),
        ({"max_points": 30}, "max_points is 30; it must be more than 30"),
        ({"events": 29}, "events is 29; it must be 30 or more"),
    ],
)
def test_wrong_arguments_are_named_with_their_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        LotkaVolterraTask(**arguments)
