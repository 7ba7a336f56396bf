import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synopsis.training.experiment import (
    Component,
    Evaluating,
    Experiment,
    ExperimentError,
    Training,
)
from tests.training.small import TOML

SHARE = st.floats(0, 1, exclude_max=True)
COUNT = st.integers(1, 10**9)
SETTINGS = {
    "steps": COUNT,
    "batch_size": COUNT,
    "micro_batch_size": st.integers(0, 99),
    "learning_rate": st.floats(1e-300, 1e3),
    "optimizer": st.sampled_from(["adamw", "muon"]),
    "muon_learning_rate": st.floats(1e-300, 1e3),
    "schedule": st.sampled_from(["cosine", "one-cycle", "warmup-stable-decay"]),
    "warmup": st.integers(0, 10**9),
    "decay_fraction": SHARE,
    "clip": st.floats(0, 1e300),
    "weight_decay": SHARE,
    "betas": st.tuples(SHARE, SHARE),
    "seed": st.integers(0, 2**63 - 1),
    "threads": st.integers(0, 64),
    "precision": st.sampled_from(["no", "bf16"]),
    "ema": SHARE,
    "checkpoint_minutes": st.floats(0, 1e6),
    "log_every": COUNT,
    "start": st.text("ab/_"),
}
TRAININGS = st.builds(Training, **SETTINGS)
EVALUATIONS = st.builds(
    Evaluating, batches=st.integers(0, 99), batch_size=COUNT, every=st.integers(0, 99)
)
COMPONENTS = st.builds(
    Component,
    st.text("ab_"),
    st.dictionaries(
        st.text("xyz", min_size=1), st.integers() | st.booleans() | st.lists(SHARE), max_size=3
    ),
)


@given(st.builds(Experiment, COMPONENTS, COMPONENTS, TRAININGS, EVALUATIONS))
def test_toml_round_trip(experiment):
    text = experiment.to_toml()
    again = Experiment.from_toml(text)
    assert again == experiment
    assert again.to_toml() == text


def test_the_round_trip_covers_every_setting():
    assert set(SETTINGS) == {field.name for field in dataclasses.fields(Training)}


def test_missing_sections_are_the_defaults():
    experiment = Experiment.from_toml('[process]\nname="CMANP"\n[task]\nname="gaussian_process"')
    assert experiment.training == Training()
    assert experiment.evaluation == Evaluating()


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("training.steps=7", "training", "steps", 7),
        ("training.learning_rate=1", "training", "learning_rate", 1.0),
        ("training.learning_rate = 3e-4", "training", "learning_rate", 3e-4),
        ("training.schedule=one-cycle", "training", "schedule", "one-cycle"),
        ('training.schedule="one-cycle"', "training", "schedule", "one-cycle"),
        ("training.betas=[0.8, 0.9]", "training", "betas", (0.8, 0.9)),
        ("evaluation.every=1_000", "evaluation", "every", 1000),
    ],
)
def test_override(override, section, key, value):
    experiment = Experiment.from_toml(TOML, [override])
    got = getattr(getattr(experiment, section), key)
    assert got == value
    assert type(got) is type(value)


def test_later_overrides_win_and_components_are_reached():
    experiment = Experiment.from_toml(
        TOML, ["process.latents=5", "process.latents=6", "task.kernel=matern52"]
    )
    assert experiment.process.arguments["latents"] == 6
    assert experiment.task.arguments["kernel"] == "matern52"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.step=7", r"f\.toml: training\.step = 7: unknown key; known are batch_size, "),
        ("training.steps=7.5", r"f\.toml: training\.steps = 7\.5: must be int$"),
        ("training.steps=true", r"training\.steps = True: must be int$"),
        ("training.steps=0", r"training\.steps = 0: must be at least 1$"),
        ("training.steps=many", r"training\.steps = 'many': must be int$"),
        ("training.learning_rate=0", r"training\.learning_rate = 0: must be positive$"),
        ("training.learning_rate=nan", r"training\.learning_rate = nan: must be positive$"),
        ("training.ema=1.0", r"training\.ema = 1\.0: must be at least 0 and less than 1$"),
        ("training.betas=[0.9]", r"training\.betas = \[0\.9\]: must be tuple\[float, float\]$"),
        ("training.betas=[0.9, 1]", r"training\.betas = \[0\.9, 1\]: must be at least 0 and"),
        ("training.schedule=linear", r"schedule = 'linear': must be one of 'cosine', 'one-cycle'"),
        ("training.decay_fraction=-0.1", r"decay_fraction = -0\.1: must be between 0 and 1$"),
        ("evaluation.batches=-1", r"evaluation\.batches = -1: must be at least 0$"),
        ("network.latents=3", r"f\.toml: unknown section \[network\]; there are \[process\]"),
        ("model.latents=3", r"f\.toml: has both \[process\] and \[model\]; one is trained"),
        ("training=3", r"override 'training=3' is not of the form section\.key=value$"),
        ("training.steps", r"override 'training\.steps' is not of the form"),
        ("process.name=3", r"f\.toml: process\.name = 3: must be a string$"),
    ],
)
def test_errors_are_one_line_with_file_key_and_value(override, message):
    with pytest.raises(ExperimentError, match=message) as caught:
        Experiment.from_toml(TOML, [override], source="f.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[process\n", r"e\.toml: .*line 1"),
        (b"process = 3\n", r"e\.toml: process = 3 must be a table"),
        (b"\xff\xfe", r"e\.toml: not UTF-8 at byte 0"),
        (b"[task]\nname = 'x'\n", r"e\.toml: process\.name = None: must be a string"),
    ],
)
def test_file_that_is_no_experiment(tmp_path, content, message):
    path = tmp_path / "e.toml"
    path.write_bytes(content)
    with pytest.raises(ExperimentError, match=message) as caught:
        Experiment.read(path)
    assert "\n" not in str(caught.value)


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(ExperimentError, match=r"none\.toml: No such file"):
        Experiment.read(tmp_path / "none.toml")
