import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from synopsis.serving.trace import FIELDS, Ring, Thinned, Trace


@given(st.integers(1, 9), st.integers(0, 50))
def test_ring_holds_the_last_rows_in_order(capacity: int, rows: int) -> None:
    ring = Ring(capacity, 1)
    for i in range(rows):
        ring.add((float(i),))
    assert ring.rows[:, 0].tolist() == [float(i) for i in range(rows)][-capacity:]


@given(st.integers(2, 9), st.integers(0, 300))
def test_thinned_holds_every_stride_th_row(capacity: int, rows: int) -> None:
    thinned = Thinned(capacity, 1)
    for i in range(rows):
        thinned.add((float(i),))
    assert thinned.rows[:, 0].tolist() == [float(i) for i in range(0, rows, thinned.stride)]
    assert len(thinned.rows) <= capacity
    assert rows < capacity or len(thinned.rows) >= capacity // 2


def test_trace_does_not_grow() -> None:
    trace = Trace(dim=2, recent=10, thinned=20, first=30)
    for i in range(500):
        trace.add((float(i), *[0.0] * (len(FIELDS) - 1)), (1.0, 2.0), 0.5 + i % 3, seen=i)
    assert trace.recent.rows[:, 0].tolist() == [float(i) for i in range(490, 500)]
    assert trace.first.shape == (30, 3)
    assert len(trace.whole.rows) <= 20
    costs = trace.costs
    assert len(costs) <= 2 * np.log2(500) + 2
    assert [cost.rows for cost in costs] == sorted(cost.rows for cost in costs)
    assert costs[-1].rows <= 500
    assert all(0.5 <= cost.milliseconds <= 2.5 for cost in costs)
