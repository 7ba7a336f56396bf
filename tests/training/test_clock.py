import time

from synopsis.training.clock import Clock


def test_goes_on_from_what_was_spent_before():
    begin = time.perf_counter()
    clock = Clock(seconds=100.0, cpu_seconds=50.0)
    started = time.perf_counter()
    while time.perf_counter() - started < 0.02:
        pass
    read = clock.read()
    elapsed = time.perf_counter() - begin
    assert 100.02 - 0.001 <= read["seconds"] <= 100 + elapsed + 0.001
    assert 50.0 <= read["cpu_seconds"] < 51
