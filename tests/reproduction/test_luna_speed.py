"""Training steps: the published way computes the same, costs are measured, and a stream equals the whole."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from synopsis.models import MODELS, SequenceClassifier
from synopsis.reproduction import luna_speed
from synopsis.reproduction.luna_speed import KINDS, Row, Settings, rows, streams
from synopsis.reproduction.luna_speed_page import markdown
from synopsis.reproduction.materialised import materialise
from synopsis.reproduction.step_costs import StepCell, StepCost, measure_step, one_step
from synopsis.reproduction.stream_check import Stream, StreamFacts, _check_here
from synopsis.tasks.sequences import SequenceBatch
from synopsis.training.experiment import Component
from tests.tolerances import PREDICTION, STATE

SMALL = {"layers": 2, "dim": 16, "heads": 2, "feedforward": 16, "length": 40, "dropout": 0.0}
GIB = 2**30


def small(kind) -> SequenceClassifier:
    torch.manual_seed(0)
    arguments = kind.model(40, recompute=False).arguments
    memory = min(kind.memory, 5)
    return SequenceClassifier(**{**arguments, **SMALL, "memory": memory, "attention_dropout": 0.0})


def a_batch() -> SequenceBatch:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 17, (3, 40), generator=generator)
    return SequenceBatch(torch.tensor([1, 2, 3]), tokens)


@pytest.mark.parametrize("name", KINDS)
def test_the_published_way_computes_the_same_and_learns_the_same(name):
    ours = small(KINDS[name])
    theirs = materialise(copy.deepcopy(ours))
    batch = a_batch()
    assert torch.allclose(ours(batch), theirs(batch), rtol=PREDICTION, atol=PREDICTION)
    for model in (ours, theirs):
        one_step(model, torch.optim.SGD(model.parameters(), lr=0.1))(batch)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=PREDICTION, atol=PREDICTION)


def test_the_published_way_stores_its_scores():
    model = materialise(small(KINDS["transformer"]))
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (sizes.append(t.numel()), t)[1], lambda t: t
    ):
        model(a_batch())
    assert max(sizes) == 3 * 2 * 41 * 41  # batch, heads, items with their class vector


def test_pads_are_ruled_out_in_the_published_way():
    model = materialise(small(KINDS["luna-16"])).eval()
    batch = a_batch()
    mask = torch.arange(40) < torch.tensor([40, 10, 3])[:, None]
    masked = replace(batch, mask=mask)
    other = replace(masked, tokens=batch.tokens.where(mask, 5))
    assert torch.allclose(model(masked), model(other), rtol=PREDICTION, atol=PREDICTION)


def test_pooling_is_not_rewritten():
    options = {"filtering": {"kind": "max", "kernel": 4}}
    sizes = {**SMALL, "memory": 3, "options": options}
    with pytest.raises(ValueError, match="a MaxPooling is not rewritten here"):
        materialise(SequenceClassifier(**sizes))


def test_a_step_is_measured_in_a_process_of_its_own():
    sizes = {**SMALL, "layer": "VanillaLayer", "memory": 0, "length": 1024}
    model = Component("SequenceClassifier", sizes)
    cost = measure_step(StepCell(model, 4, materialised=True), patience=60.0, most_gib=4.0)
    scores = 4 * 2 * 1025 * 1025 * 4  # of one of two layers, bytes
    assert cost.stopped is None
    assert cost.cpu_seconds > 0
    assert cost.seconds > 0
    assert 2 * scores < cost.peak < 20 * scores


def test_every_kind_is_of_the_published_size():
    expected = {"transformer": 1_519_370, "luna-256": 1_553_674, "convluna-256": 1_454_704}
    for name, parameters in expected.items():
        component = KINDS[name].model(2000, recompute=True)
        with torch.device("meta"):
            model = MODELS[component.name](**component.arguments)
        assert sum(p.numel() for p in model.parameters()) == parameters
        assert model.config["recompute"]


def test_a_stream_equals_the_whole_and_keeps_as_much_in_the_end_as_in_the_beginning():
    for stream in (
        Stream(2010, piece=100, dim=16, heads=2, cells=3),
        Stream(1999, piece=64, dim=16, heads=2, cells=3, kernel=16, stride=8),
    ):
        facts = _check_here(stream)
        assert facts.difference < STATE
        assert facts.scale > 0.1
        assert len(set(facts.state_bytes)) == 1
        assert len(facts.peaks) == 10


@pytest.fixture
def settings(tmp_path):
    return Settings(
        ["luna-16", "transformer"], 500, 32, 1, 60.0, 4.0, tmp_path, [Stream(items=1000)]
    )


FACTS = StreamFacts([1000] * 10, [5 * 2**20] * 10, 4.0, 2**30, 2.0, 4e-7, 3.6)


def test_measurements_are_made_once_and_stand_in_the_page(settings, monkeypatch):
    asked: list[StepCell] = []

    def measure(cell: StepCell, *_: object) -> StepCost:
        asked.append(cell)
        if (
            cell.model.arguments["layer"] == "VanillaLayer"
            and not cell.model.arguments["recompute"]
        ):
            return StepCost(cell.batch, stopped="time" if cell.materialised else "memory")
        each = 0.25 if cell.micro else 0.5
        return StepCost(cell.batch, each * cell.batch, 20.0, GIB * (cell.micro or cell.batch) // 16)

    monkeypatch.setattr(luna_speed, "measure_step", measure)
    monkeypatch.setattr(luna_speed, "check_stream", lambda _: FACTS)
    found = rows(settings)
    assert [(cell.batch, cell.micro, cell.materialised) for cell in asked[:4]] == [
        (32, 0, False),
        (32, 4, False),
        (32, 0, False),
        (8, 0, True),
    ]
    assert [cell.model.arguments["recompute"] for cell in asked[:4]] == [False, False, True, False]
    monkeypatch.setattr(luna_speed, "measure_step", lambda *_: pytest.fail("measured again"))
    assert rows(settings) == found
    page = markdown(found, streams(settings), settings, "synopsis reproduce luna-speed")
    assert "**Not the published size**" in page
    assert (
        "| Luna, 16 cells | 16.0 | 20.0 | 2.00 | 8.0 | 20.0 | 0.25 | 16.0 | 20.0 | 2.00 "
        "| 8 | 0.50 | 16.0 | 2.0 × | 8.3 |" in page
    )
    assert (
        "| Transformer | too much | – | – | too much | – | – | 16.0 | 20.0 | 2.00 "
        "| 2 | – | too long | – | 71.0 |" in page
    )
    assert (
        "| 4 taps, stride 1 | 1,000 | 1,000 | 1,000 | 5.0 | 4.0 | 1,024 | 2.0 | 4.0e−07 | 3.60 |"
        in page
    )


def test_the_published_size_needs_no_remark():
    cost = StepCost(32, 10.0, 12.0, GIB)
    whole = Settings(["luna-16"], 2000, 32, 1, 60.0, 4.0, Path())
    page = markdown([Row(KINDS["luna-16"], cost, cost, cost, cost)], [], whole, "synopsis")
    assert "Not the published size" not in page
