import io

from rich.console import Console

from synopsis.training.progress import TrainingProgress


def shown(calls, steps=5, terminal=True):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120, color_system=None)
    with TrainingProgress(steps, console) as watch:
        for call in calls:
            watch(*call)
    return file.getvalue()


def test_the_last_step_is_shown_with_the_mean_loss_and_the_rate():
    last = shown([(k, float(k), 1e-3) for k in range(1, 6)])
    assert "5/5" in last
    assert "loss 3.0000" in last
    assert "lr 1.00e-03" in last
    assert "steps/s" in last


def test_a_resumed_run_begins_where_it_was():
    assert "3/5" in shown([(3, 1.0, 1e-3)])


def test_nothing_is_drawn_before_the_first_step():
    assert shown([]) == ""
    assert shown([], terminal=False) == ""
