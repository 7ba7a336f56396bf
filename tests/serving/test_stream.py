import math
from pathlib import Path

import pytest
import torch

from synopsis.processes import CMANP, AnchoredCMANP
from synopsis.processes.scaling import Scale
from synopsis.serving.progressive import Outcome
from synopsis.serving.records import InputError, Record, Value
from synopsis.serving.stream import Stream, StreamSettings
from synopsis.serving.stream_state import StreamState
from synopsis.states import State, StateFormatError


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("processes")
    torch.manual_seed(0)
    small = {"dim": 8, "heads": 2, "blocks": 1, "latents": 4}
    AnchoredCMANP(dim_x=3, components=2, **small).save_pretrained(folder)
    return str(folder)


def settings(source: str, **changes: object) -> StreamSettings:
    base: dict[str, object] = {"inputs": ("x",), "lags": (1, 2), "warmup": 4}
    return StreamSettings(source, "y", **{**base, **changes})  # type: ignore[arg-type]


def records(count: int, missing: dict[int, int] | None = None) -> list[Record]:
    """(y, x) from line 2 on; ``missing`` says which of the two is not there."""
    found = []
    for i in range(count):
        values: list[Value] = [str(math.sin(i) * 5), str(i % 4)]
        if missing and i in missing:
            values[missing[i]] = None
        found.append(Record(i + 2, tuple(values), "rows.csv"))
    return found


def run(stream: Stream, rows: list[Record]) -> list[Outcome]:
    return [outcome for row in rows for outcome in stream.take(row)]


def test_lags_follow_the_rows_of_the_table(source: str) -> None:
    stream = Stream.begin(settings(source))
    found = run(stream, records(6, missing={2: 0, 4: 1}))
    y = [math.sin(i) * 5 for i in range(6)]
    expected = [
        (0.0, math.nan, math.nan),
        (1.0, y[0], math.nan),
        (2.0, y[1], y[0]),
        (3.0, math.nan, y[1]),
        (1.0, y[4], y[3]),
    ]
    assert [outcome.row.number for outcome in found] == [1, 2, 3, 4, 6]
    for outcome, inputs in zip(found, expected, strict=True):
        assert outcome.row.inputs == pytest.approx(inputs, nan_ok=True)
    assert stream.missing == 2
    assert stream.progressive.absorbed == 4


def test_strict_names_what_is_missing_and_stops_before_it(source: str) -> None:
    stream = Stream.begin(settings(source))
    stream.strict = True
    run(stream, records(3))
    before = stream.state().serialize()
    with pytest.raises(InputError, match=r"^rows.csv:5: column 'x' holds no value$"):
        stream.take(records(4, missing={3: 1})[3])
    assert stream.state().serialize() == before


def test_a_number_beyond_float32_is_refused(source: str) -> None:
    stream = Stream.begin(settings(source))
    with pytest.raises(InputError, match=r"rows.csv:9: column 'y' holds '1e300', .*too large"):
        stream.take(Record(9, ("1e300", "1"), "rows.csv"))
    assert stream.progressive.rows == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 2}, "lag 1 is not known yet when 2 rows are predicted at a time"),
        (
            {"lags": (1, 2, 3)},
            "the process takes 3 inputs but there are 4: x, y\\[-1\\], y\\[-2\\], y\\[-3\\]",
        ),
        ({"lags": (), "inputs": ()}, "there is no input"),
        ({"source": "no-such-thing"}, "'no-such-thing' is neither a folder nor a shipped process"),
        ({"warmup": 1}, "at least 2"),
    ],
)
def test_settings_that_do_not_fit(source: str, changes: dict[str, object], message: str) -> None:
    wanted = {"source": source, "y": "y", "inputs": ("x",), "lags": (1, 2), **changes}
    with pytest.raises(ValueError, match=message):
        Stream.begin(StreamSettings(**wanted))  # type: ignore[arg-type]


def test_a_known_scale_needs_no_warm_up(source: str) -> None:
    first = Stream.begin(settings(source))
    run(first, records(10))
    scale = first.scale()
    assert scale.names == ("x", "y[-1]", "y[-2]")
    second = Stream.begin(settings(source), scale=scale)
    run(second, records(10))
    assert int(second.progressive.scores()[second.name].count) == 10
    assert second.scale() == scale
    other = Scale(("z", *scale.names[1:]), *(getattr(scale, n) for n in _NUMBERS))
    with pytest.raises(ValueError, match=r"the scale is of the inputs z, .*; there are x, "):
        Stream.begin(settings(source), scale=other)


_NUMBERS = ("location_x", "scale_x", "location_y", "scale_y")


def test_state_bytes_do_not_grow(source: str) -> None:
    stream = Stream.begin(settings(source))
    sizes = []
    for row in records(60):
        stream.take(row)
        sizes.append(stream.state().nbytes)
    assert len(set(sizes)) == 1


@pytest.mark.parametrize(("horizon", "lags"), [(1, (1, 2)), (3, (3,)), (2, ())])
def test_a_state_that_was_bytes_goes_on_as_if_nothing_had_been(
    source: str, horizon: int, lags: tuple[int, ...]
) -> None:
    rows = records(20, missing={7: 0, 11: 1})
    wanted = settings(source, horizon=horizon, lags=lags)
    whole = Stream.begin(wanted)
    expected = run(whole, rows) + whole.progressive.flush()
    for stop in range(21):
        first = Stream.begin(wanted)
        found = run(first, rows[:stop]) + first.progressive.flush()
        second = Stream.resume(StreamState.deserialize(first.state().serialize()))
        found += run(second, rows[stop:]) + second.progressive.flush()
        assert _essence(found) == _essence(expected)
        assert second.state().serialize() == whole.state().serialize()


def _essence(outcomes: list[Outcome]) -> list[str]:
    return [repr((o.row, o.forecast)) for o in outcomes]


def test_the_start_of_trends_is_part_of_the_state(source: str) -> None:
    wanted = StreamSettings(source, "y", ("day:trend",), warmup=2)
    rows = [Record(i + 2, (str(i), f"2020-01-{i + 1:02d}"), "rows.csv") for i in range(9)]
    whole = Stream.begin(wanted)
    expected = run(whole, rows)
    first = Stream.begin(wanted)
    run(first, rows[:4])
    second = Stream.resume(first.state())
    assert _essence(run(second, rows[4:])) == _essence(expected[4:])


def test_another_process_refuses_the_state(source: str, tmp_path: Path) -> None:
    stream = Stream.begin(settings(source))
    torch.manual_seed(1)
    AnchoredCMANP(dim_x=3, dim=8, heads=2, blocks=1, latents=4, components=2).save_pretrained(
        tmp_path / "other"
    )
    with pytest.raises(ValueError, match=r"the state was made by process .* this one has"):
        Stream.resume(stream.state(), source=str(tmp_path / "other"))


def test_a_process_that_needs_every_input_waits_for_the_lags(tmp_path: Path) -> None:
    torch.manual_seed(0)
    CMANP(dim_x=3, dim_y=1, dim=8, heads=2, blocks=1, latents=4).save_pretrained(tmp_path / "p")
    stream = Stream.begin(settings(str(tmp_path / "p")))
    found = run(stream, records(8))
    assert [outcome.row.number for outcome in found] == [3, 4, 5, 6, 7, 8]
    assert stream.missing == 0


def test_parts_that_do_not_fit_are_no_state(source: str) -> None:
    state = Stream.begin(settings(source)).state()
    broken = StreamState(**{**vars(state), "begun": 5})
    with pytest.raises(StateFormatError, match="0 of 5 rows wait in a block of 1"):
        State.deserialize(broken.serialize())
