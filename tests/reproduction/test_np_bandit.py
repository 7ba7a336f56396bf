"""The wheel bandit's table: agents against one run written out, curves, portions, page and pictures."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from matplotlib.image import imread
from typer.testing import CliRunner

from synopsis.cli import reproduce
from synopsis.processes import CNP, LBANP
from synopsis.processes.base import build
from synopsis.reproduction import np_bandit
from synopsis.reproduction.bandit_agents import Play, play, quadrant_arms, regret_of, uniform_arms
from synopsis.reproduction.bandit_curves import DELTAS, kept, of_arms, together
from synopsis.reproduction.np_bandit import ALL, Settings, contender, tables
from synopsis.reproduction.np_bandit_page import markdown
from synopsis.reproduction.np_bandit_pictures import draw
from synopsis.tasks.fixed_batches import batch_generator
from synopsis.tasks.wheel_bandit import WheelBandit
from tests.tolerances import FLOAT32, FLOAT64, SIGMAS

BUDGET = 0.5  # CPU-seconds: some ten steps


class Known:
    """Predicts what it is told, whatever it has seen, and remembers what it was given."""

    bounded = True

    def __init__(self, mean, stddev):
        self.mean, self.stddev = mean, stddev
        self.history = []

    def init(self, batch_shape):
        return SimpleNamespace(nbytes=7 * batch_shape[0])

    def update(self, state, x, y):
        self.history.append((x, y))
        return state

    def predict(self, state, x):
        mean = self.mean(x) if callable(self.mean) else self.mean.expand(len(x), 1, 5)
        return SimpleNamespace(mean=mean, stddev=self.stddev.expand(len(x), 1, 5))


def bandits(runs=3, delta=0.5, steps=30, protocol="fresh"):
    return [WheelBandit(delta, steps, seed, protocol) for seed in range(runs)]


def small(kind=CNP, **sizes):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return kind(dim_x=2, dim_y=5, dim=16, **sizes).eval()


@pytest.mark.parametrize("exploration", ["ucb", "mean", "thompson"])
def test_a_run_is_what_one_agent_alone_would_do(exploration):
    """Against one step at a time, conditioned anew on the whole history."""
    process, together = small(), bandits()
    found = play(process, together, exploration).regret
    for run, bandit in enumerate(together):
        luck = batch_generator(bandit.seed, 1)
        arm = int(torch.randint(5, (), generator=luck))
        fillers, normals = torch.randn((2, bandit.steps, 5), generator=luck)
        xs, ys, regrets = [], [], []
        for step in range(bandit.steps):
            x = bandit.contexts[step]
            if step:
                with torch.no_grad():
                    predicted = process(torch.stack(xs)[None], torch.stack(ys)[None], x[None, None])
                score = predicted.mean[0, 0]
                if exploration != "mean":
                    bonus = normals[step] if exploration == "thompson" else 1.0
                    score = score + predicted.stddev[0, 0] * bonus
                arm = int(score.argmax())
            y = fillers[step].clone()
            y[arm] = bandit.rewards[step, arm]
            xs, ys = [*xs, x], [*ys, y]
            best = bandit.rewards[step, bandit.best_arms[step]]
            regrets.append((best - bandit.rewards[step, arm]).item())
        assert found[run].tolist() == pytest.approx(regrets, abs=FLOAT32)


@pytest.mark.parametrize("kind", [CNP, LBANP])
def test_runs_do_not_depend_on_those_beside_them(kind):
    process = small(kind, **({"layers": 2, "latents": 4} if kind is LBANP else {}))
    beside = play(process, bandits(4)).regret
    alone = torch.cat([play(process, [bandit]).regret for bandit in bandits(4)])
    torch.testing.assert_close(beside, alone)


def test_history_holds_the_reward_of_the_arm_pulled_and_noise_for_the_others():
    process = Known(torch.tensor([0.0, 0.0, 9.0, 0.0, 0.0]), torch.ones(5))
    runs = bandits(40, steps=50)
    play(process, runs)
    y = torch.cat([y for _, y in process.history[1:]], dim=1)
    rewards = torch.stack([bandit.rewards for bandit in runs])[:, 1:]
    torch.testing.assert_close(y[..., 2], rewards[..., 2])
    others = y[..., [0, 1, 3, 4]]
    error = 1 / math.sqrt(others.numel())
    assert abs(others.mean().item()) < SIGMAS * error
    assert abs(others.std().item() - 1) < SIGMAS * error
    x = torch.cat([x for x, _ in process.history], dim=1)
    torch.testing.assert_close(x, torch.stack([bandit.contexts for bandit in runs]))


def test_an_agent_that_knows_has_no_regret_after_its_first_arm():
    runs = bandits(5, delta=0.6)

    def best(x):
        radius = x.norm(dim=-1, keepdim=True)
        quadrants = [(1, 1), (-1, 1), (-1, -1), (1, -1)]
        rich = [((x * torch.tensor(q)) > 0).all(-1, keepdim=True) for q in quadrants]
        pays = [torch.where((radius >= 0.6) & here, 50.0, 1.0) for here in rich]
        return torch.cat([torch.full_like(radius, 1.2), *pays], dim=-1)

    found = play(Known(best, torch.zeros(5)), runs)
    assert found.regret[:, 1:].abs().max() == 0
    assert found.nbytes == 7
    assert len(found.seconds) == 30


def arms_pulled(process, runs, exploration):
    """From the history the process was given: the arm whose reward is the true one."""
    play(process, runs, exploration)
    y = torch.cat([y for _, y in process.history[1:]], dim=1)
    rewards = torch.stack([bandit.rewards for bandit in runs])[:, 1:]
    return torch.isclose(y, rewards).float().argmax(-1)


def test_exploration_follows_mean_or_mean_and_deviation():
    mean, stddev = torch.tensor([1.0, 0.9, 0, 0, 0]), torch.tensor([0.1, 0.3, 0, 0, 0])
    runs = bandits(20, steps=100)
    assert (arms_pulled(Known(mean, stddev), runs, "mean") == 0).all()
    assert (arms_pulled(Known(mean, stddev), runs, "ucb") == 1).all()
    second = (arms_pulled(Known(mean, stddev), runs, "thompson") == 1).double()
    # P(1 + 0.1 a < 0.9 + 0.3 b) for standard normal a and b
    expected = 0.5 * math.erfc(0.1 / math.sqrt(0.1**2 + 0.3**2) / math.sqrt(2))
    error = math.sqrt(expected * (1 - expected) / second.numel())
    assert abs(second.mean().item() - expected) < SIGMAS * error


def test_an_allowance_ends_a_play_early_but_not_too_early():
    assert play(small(), bandits(), allowance=0.0).regret.shape == (3, 1)
    assert play(small(), bandits(), allowance=0.0, at_least=7).regret.shape == (3, 7)
    steps = []
    play(small(), bandits(), watch=lambda done, of: steps.append((done, of)))
    assert steps == [(n, 30) for n in range(1, 31)]


def test_runs_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"runs are of \[20, 30\] steps"):
        play(small(), [*bandits(1), *bandits(1, steps=20)])
    with pytest.raises(ValueError, match="runs are of no steps"):
        play(small(), [])


def test_regret_is_that_of_the_task():
    runs = bandits(3)
    arms = uniform_arms(runs)
    expected = torch.stack([bandit.regret(a) for bandit, a in zip(runs, arms, strict=True)])
    torch.testing.assert_close(regret_of(runs, arms), expected)
    torch.testing.assert_close(regret_of(runs, arms[:, :9]), expected[:, :9])
    assert set(uniform_arms(bandits(1, steps=200))[0].tolist()) == {0, 1, 2, 3, 4}


def test_the_safe_agent_has_the_regret_that_was_measured_of_the_published_generator():
    settings = Settings(runs_per_delta=2)
    runs = settings.bandits("legacy", 0, 2)
    safe = of_arms(runs, torch.zeros(len(runs), 2000, dtype=torch.int64), settings.grid)
    for regret, expected in zip(
        safe.regret[..., -1], (50_702, 17_910, 9_174, 1_659, 1_074), strict=True
    ):
        assert regret.tolist() == pytest.approx([expected] * 2, abs=1.0)
    assert (safe.played, safe.regret.shape) == (2000, (5, 2, 100))


def test_the_quadrants_agent_is_right_outside_and_wrong_inside():
    runs = bandits(4, steps=200)
    arms = quadrant_arms(runs)
    best = torch.stack([bandit.best_arms for bandit in runs])
    assert (arms == best)[best > 0].all()
    assert (arms > 0).all()
    inside = regret_of(runs, arms)[best == 0]
    assert abs(inside.mean().item() - 0.2) < SIGMAS * 0.05 * math.sqrt(2 / len(inside))


def curves_of(regret, seconds, grid):
    streams = torch.as_tensor(regret).repeat(len(DELTAS), 1)
    return kept(Play(streams, torch.as_tensor(seconds), 11), grid)


def test_percentages_are_of_the_uniform_agents_over_as_many_steps():
    ones = together([curves_of(np.ones((2, 40)), np.ones(40), 2)], 2)
    ramp = np.arange(1.0, 41.0)[None]  # cumulative n (n + 1) / 2
    whole = together([curves_of(ramp, np.ones(40), 2)], 2)
    short = together([curves_of(ramp[:, :15], np.ones(15), 2)], 2)  # 14 steps are whole points
    assert whole.final(ones)[0].tolist() == pytest.approx([100 * 820 / 40], rel=FLOAT64)
    assert short.played == 14
    assert short.final(ones)[0].tolist() == pytest.approx([100 * 105 / 14], rel=FLOAT64)
    # the last quarter: steps 31–40 of all 40, and steps 5–14 of 14
    assert whole.simple(ones)[4].tolist() == pytest.approx([100 * 35.5], rel=FLOAT64)
    assert short.simple(ones)[4].tolist() == pytest.approx([100 * 9.5], rel=FLOAT64)
    tiny = together([curves_of(ramp[:, :8], np.ones(8), 2)], 2)  # less than a quarter
    assert tiny.simple(ones)[0].tolist() == pytest.approx([100 * 4.5], rel=FLOAT64)


def test_portions_are_joined_run_after_run_and_their_cost_is_that_of_a_run():
    first = curves_of(np.ones((2, 20)), 10 * np.ones(20), 2)
    second = curves_of(2 * np.ones((1, 20)), 5 * np.ones(20), 2)
    joined = together([first, second], 2)
    assert joined.regret.shape == (5, 3, 10)
    assert joined.regret[0, :, -1].tolist() == [20, 20, 40]
    # 10 streams for 10 s, and 5 streams for 5 s, at every step
    assert joined.seconds.tolist() == pytest.approx([1.0] * 10)
    assert joined.nbytes == 11
    assert json.loads(json.dumps(first)) == first


@pytest.mark.parametrize("name", ALL)
def test_models_fit_the_wheel(name):
    component = contender(name, Settings()).process
    made = build({"process": component.name, "arguments": dict(component.arguments)})
    assert (made.dim_x, made.dim_y) == (2, 5)


def test_unknown_models_are_named():
    with pytest.raises(ValueError, match="unknown model 'XNP'; there are CMANP"):
        contender("XNP", Settings())


@pytest.fixture
def settings(tmp_path):
    return Settings(("CNP",), ("legacy",), BUDGET, 10.0, 3, 40, runs=tmp_path / "runs")


def test_a_table_is_trained_and_played_once(settings, monkeypatch):
    [first] = tables(settings)
    [row] = first.rows
    assert row.curves.regret.shape == (5, 3, 40)
    assert row.ledgers[0].steps >= 1

    def never(*_):
        raise AssertionError("this was done before")

    monkeypatch.setattr(np_bandit, "play", never)
    monkeypatch.setattr("synopsis.reproduction.contenders.train", never)
    [again] = tables(settings, never)
    torch.testing.assert_close(again.rows[0].curves.regret, row.curves.regret)


def test_protocols_are_trained_apart(settings):
    both = Settings(("CNP",), ("legacy", "fresh"), BUDGET, 10.0, 2, 20, runs=settings.runs)
    legacy, fresh = tables(both)
    assert (legacy.protocol, fresh.protocol) == ("legacy", "fresh")
    assert legacy.rows[0].ledgers[0].folder == settings.runs / "legacy" / "CNP-s0"
    assert fresh.rows[0].ledgers[0].folder == settings.runs / "fresh" / "CNP-s0"


class Counted:
    """Stands for play: every portion costs what it is told, and plays so many steps."""

    def __init__(self, seconds, steps=40):
        self.seconds, self.steps, self.calls = seconds, steps, []

    def __call__(self, process, runs, exploration, allowance, at_least, watch):
        assert exploration == "ucb"
        self.calls.append((len(runs), allowance))
        ones = torch.ones(len(runs), self.steps)
        return Play(ones, torch.full((self.steps,), self.seconds / self.steps), 5)


def portions(settings, process, monkeypatch, counted):
    monkeypatch.setattr(np_bandit, "play", counted)
    ledger = SimpleNamespace(folder=settings.runs)
    return list(np_bandit._portions(process, ledger, "fresh", settings, lambda *_: None))


def test_portions_are_played_while_another_fits(settings, monkeypatch):
    growing = small(LBANP, layers=1, latents=2)
    counted = Counted(seconds=4.0)
    assert len(portions(settings, growing, monkeypatch, counted)) == 2  # 8 of 10 seconds
    assert counted.calls == [(5, 10.0), (5, math.inf)]  # one run of every δ
    more = Counted(seconds=4.0)
    portions(settings, growing, monkeypatch, more)
    assert more.calls == []  # remembered


def test_constant_states_play_all_runs_at_once(settings, monkeypatch):
    counted = Counted(seconds=4.0)
    assert len(portions(settings, small(), monkeypatch, counted)) == 1
    assert counted.calls == [(15, 10.0)]


def test_a_portion_that_ends_early_is_the_only_one_and_marked(settings, monkeypatch):
    counted = Counted(seconds=1.0, steps=30)
    assert len(portions(settings, small(LBANP, layers=1, latents=2), monkeypatch, counted)) == 1
    monkeypatch.setattr(np_bandit, "play", Counted(seconds=1.0, steps=30))
    found = tables(settings)
    page = markdown(found, settings, "the command", [])
    [line, simple] = [line for line in page.splitlines() if line.startswith("| CNP †")]
    assert line.endswith("| 3 | 30 |")
    assert "for 30 steps †" in page
    assert line != simple


def test_a_table_killed_while_it_plays_goes_on(settings, monkeypatch):
    growing = Settings(("LBANP",), ("fresh",), BUDGET, 1e3, 2, 20, runs=settings.runs)

    def killed(what, done, of):
        if what == "LBANP-s0, fresh, runs 2–2" and done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tables(growing, killed)
    monkeypatch.setattr("synopsis.reproduction.contenders.train", None)
    done = set()
    [table] = tables(growing, lambda what, *_: done.add(what))
    assert done == {"LBANP-s0, fresh, runs 2–2"}  # the rest is remembered
    assert table.rows[0].curves.regret.shape == (5, 2, 20)


@pytest.fixture
def app():
    made = typer.Typer()
    reproduce.register(made)
    return made


def invoke(app, *arguments):
    return CliRunner().invoke(app, ["reproduce", "np-bandit", *map(str, arguments)])


def test_the_command_writes_page_and_pictures(app, tmp_path):
    out = tmp_path / "made" / "np-bandit.md"
    options = ["--models", "TNPD", "--runs-per-delta", 2, "--steps", 20, "--out", out]
    result = invoke(app, *options, "--budget", 2 * BUDGET / 60, "--runs", tmp_path / "runs")
    assert result.exit_code == 0, result.output
    page = out.read_text(encoding="utf-8")
    assert page.count("| TNP-D |") == 6  # regret, simple regret and cost, in both protocols
    assert "| *uniform* | 100.0 ± " in page
    assert "20 steps, 2 runs for each δ" in page
    assert "--runs-per-delta 2 --steps 20 --exploration ucb --protocol both --seeds 1" in page
    for name in ("regret-fresh", "regret-legacy", "cost"):
        path = out.parent / f"np-bandit-{name}.png"
        assert f"({path.name})" in page
        assert imread(path).shape[1] > 600


def test_errors_of_the_command_are_one_line(app, tmp_path):
    result = invoke(app, "--models", "ABC", "--out", tmp_path / "x.md", "--runs", tmp_path)
    assert result.exit_code == 2
    assert "'ABC' is not in this table" in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_untrained_models_are_named_on_the_page(tmp_path):
    nothing = Settings(("CNP",), ("fresh",), 0.0, 1.0, 2, 20, runs=tmp_path)
    found = tables(nothing)
    page = markdown(found, nothing, "the command", [])
    assert "- CNP, fresh: CNP: no weights in" in page
    assert "Nothing was trained for this page" in page
    assert [p.name for p in draw(found, nothing, tmp_path / "a.md")] == ["a-regret-fresh.png"]
