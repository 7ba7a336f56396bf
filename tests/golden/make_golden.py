"""Writes the golden state files of one format version, which every later version must read.

    PYTHONPATH=src python -m tests.golden.make_golden

Files that exist are never written again: a release's files stay as that release wrote them. Weights and data follow
formulas with exact float32 values, so models can be rebuilt anywhere without a random number generator.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from synopsis import AttentionState
from synopsis.memory import (
    CMAB,
    CausalLuna,
    ConvLuna,
    ConvLunaLayer,
    Filter,
    InducedSetLayer,
    LinearAttention,
    TemporalLatentBottleneck,
)
from synopsis.processes import (
    CMANP,
    CNP,
    NP,
    TNPD,
    AnchoredCMANP,
    BayesianLinear,
    LastValue,
    RunningMean,
    SpectralRegression,
    Standardized,
)
from synopsis.processes.base import Process
from synopsis.serving.records import Record
from synopsis.serving.stream import Stream, StreamSettings
from synopsis.states import FORMAT_VERSION, State

FOLDER = Path(__file__).parent
COUNTS = (0, 1, 10, 1000)
SHALLOW = (3, 1, 2, 3, 1)  # the fewest layers that these processes may have


def pattern(*shape: int, step: int) -> Tensor:
    """Multiples of 1/64 between −0.8 and 0.8 in an order that depends on the step."""
    numbers = torch.arange(int(torch.Size(shape).numel()))
    return (((numbers * step) % 101 - 50) / 64).reshape(shape)


def patterned(module: Any) -> Any:
    """The module with weights and buffers by formula, in evaluation mode."""
    with torch.no_grad():
        for i, (name, tensor) in enumerate(sorted(module.state_dict().items())):
            if not tensor.is_floating_point():
                continue
            wave = pattern(*tensor.shape, step=7 + 2 * i) / 2
            tensor.copy_(1 + wave / 4 if "norm" in name and "weight" in name else wave)
    return module.eval()


def attention(count: int) -> State:
    state = AttentionState.empty(pattern(1, 2, 3, 4, step=3), value_dim=2)
    key, value = pattern(1, 2, count, 4, step=17), pattern(1, 2, count, 2, step=29)
    return state.update(key, value)


def answer_of_attention(state: Any) -> Tensor:
    return torch.cat([state.output.flatten().double(), state.lse.flatten()])


def causal_luna() -> CausalLuna:
    return patterned(CausalLuna(dim=8, heads=2))


def of_causal_luna(count: int) -> State:
    module = causal_luna()
    with torch.no_grad():
        state = module.init(pattern(2, 3, 8, step=11))
        for item in pattern(2, count, 8, step=17).unbind(1):
            _, state = module.step(state, item)
    return state


def answer_of_causal_luna(state: Any) -> Tensor:
    with torch.no_grad():
        return causal_luna().step(state, pattern(2, 8, step=29))[0].flatten()


MEMORIES: dict[str, Callable[[], Any]] = {
    "cmab": lambda: patterned(CMAB(dim=8, latents=3, heads=2, feedforward=8)),
    "packing": lambda: patterned(InducedSetLayer(dim=8, heads=2, feedforward=8, memory=3)),
    # With a stride, what a state means depends on its count as well as on its sums.
    "conv-luna": lambda: patterned(
        ConvLuna(ConvLunaLayer(8, 2, 8, filtering=Filter("convolution", 5, 3)), cells=3)
    ),
    "linear-attention": lambda: patterned(LinearAttention(dim=8, heads=2)),
    # Neither 10 nor 1,000 items fill their last segment.
    "segments": lambda: patterned(
        TemporalLatentBottleneck(8, 2, feedforward=8, memory=3, segment=7, layers=1)
    ),
}


def of_memory(name: str, count: int) -> State:
    memory = MEMORIES[name]()
    with torch.no_grad():
        state: State = memory.update(memory.init((2,)), pattern(2, count, 8, step=17))
    return state


def answer_of_memory(name: str, state: Any) -> Tensor:
    with torch.no_grad():
        found = MEMORIES[name]().read(state, pattern(2, 2, 8, step=29))
    parts = found if isinstance(found, tuple) else (found,)
    return torch.cat([part.flatten() for part in parts])


PROCESSES: dict[str, Callable[[], Process]] = {
    "linear": lambda: BayesianLinear(dim_x=2),
    "anchored": lambda: patterned(
        AnchoredCMANP(dim_x=1, dim=8, heads=2, blocks=1, latents=3, components=2)
    ),
    "standardized": lambda: Standardized(BayesianLinear(dim_x=2)),
    "spectral-regression": lambda: patterned(
        SpectralRegression(dim_x=1, prior={"features": 8, "length_scales": [0.5]})
    ),
    "cmanp": lambda: patterned(CMANP(dim=8, heads=2, blocks=2, latents=3)),
    "cnp": lambda: patterned(CNP(dim=8, depths=SHALLOW)),
    "np": lambda: patterned(NP(dim=8, depths=SHALLOW, samples=3)),
    "context": lambda: patterned(TNPD(dim=8, heads=2, layers=1)),
    "last-value": LastValue,
    "running-mean": RunningMean,
}


def of_process(name: str, count: int) -> State:
    process = PROCESSES[name]()
    x, y = pattern(1, count, process.dim_x, step=17), pattern(1, count, 1, step=29)
    state: State = process.update(process.init(), x, y)
    return state


def answer_of_process(name: str, state: Any) -> Tensor:
    process = PROCESSES[name]()
    with torch.no_grad():
        predicted = process.predict(state, pattern(1, 3, process.dim_x, step=41))
    return torch.cat([predicted.mean.flatten(), predicted.stddev.flatten()])


STREAM = StreamSettings("patterned", "y", inputs=("x",), lags=(1,), warmup=4)


@contextmanager
def streamed_process() -> Iterator[str]:
    """Folder of the process that streams predict with; every state names it ``patterned``."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / STREAM.source
        BayesianLinear(dim_x=2).save_pretrained(path)
        yield str(path)


def records(count: int) -> list[Record]:
    values = pattern(count, 2, step=17).tolist()
    return [Record(i + 2, (str(y), str(x)), "rows.csv") for i, (y, x) in enumerate(values)]


def of_stream(count: int) -> State:
    with streamed_process() as folder:
        stream = Stream.begin(replace(STREAM, source=folder))
        for record in records(count):
            stream.take(record)
        return replace(stream.state(), source=STREAM.source)


def answer_of_stream(state: Any) -> Tensor:
    with streamed_process() as folder:
        stream = Stream.resume(state, source=folder)
        forecasts = [
            torch.tensor([outcome.forecast.mean, *outcome.forecast.stddevs])
            for record in records(8)
            for outcome in stream.take(record)
        ]
    return torch.cat([*forecasts, stream.state().sums.flatten()])


NAMES = ("attention", "causal-luna", "stream", *MEMORIES, *PROCESSES)


def make(name: str, count: int) -> State:
    """The state of this name after this many points."""
    makers = {"attention": attention, "causal-luna": of_causal_luna, "stream": of_stream}
    if name in makers:
        return makers[name](count)
    return of_memory(name, count) if name in MEMORIES else of_process(name, count)


def answer(name: str, state: Any) -> list[float]:
    """What a state of this name answers to a fixed question."""
    answers = {
        "attention": answer_of_attention,
        "causal-luna": answer_of_causal_luna,
        "stream": answer_of_stream,
    }
    if name in answers:
        found = answers[name](state)
    else:
        found = (answer_of_memory if name in MEMORIES else answer_of_process)(name, state)
    return [float(number) for number in found]


def main() -> None:
    for name in NAMES:
        for count in COUNTS:
            path = FOLDER / f"{name}-n{count}-v{FORMAT_VERSION}.synopsis"
            if path.exists():
                continue
            state = make(name, count)
            beside = {"kind": state.kind, "count": count, "answer": answer(name, state)}
            path.write_bytes(state.serialize())
            path.with_suffix(".json").write_text(json.dumps(beside) + "\n")


if __name__ == "__main__":
    main()
