import pytest
import torch

from synopsis.training import Experiment, ExperimentError
from synopsis.training.registries import TASKS, build_task, build_trainee
from tests.training.small import experiment


def test_arguments_reach_the_constructors():
    wanted = experiment("task.kernel=matern52", "task.range=[-1, 3]", "process.latents=5")
    assert build_trainee(wanted).config["latents"] == 5
    task = build_task(wanted)
    assert (task.kernel, task.range) == ("matern52", (-1.0, 3.0))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_registered_task_samples(name, tmp_path):
    file = tmp_path / "hares.txt"
    file.write_text("".join(f"{1900 + i} {20 + i % 7} {9 + i % 5}\n" for i in range(40)))
    further = {"hare_lynx": f'file = "{file}"', "image_completion": 'dataset = "digits"'}
    text = f'[process]\nname = "CMANP"\n[task]\nname = "{name}"\n{further.get(name, "")}'
    task = build_task(Experiment.from_toml(text))
    batch = task.sample(2, torch.Generator().manual_seed(0))
    assert batch.xt.shape[-1] == task.dim_x
    assert batch.yt.shape[-1] == task.dim_y


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("process.name=CMAMP", r"experiment: process\.name = 'CMAMP': unknown; known are .*CMANP"),
        ("process.latent=3", r"process\.latent = 3: unknown key; known are dim_x, dim_y"),
        ("process.latents=few", r"process\.latents = 'few': must be int$"),
        ("process.residual=none", r"process\.residual = 'none': must be one of"),
        ("process.heads=3", r"experiment: process: .*3"),
    ],
)
def test_wrong_process(override, message):
    with pytest.raises(ExperimentError, match=message):
        build_trainee(experiment(override))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "task.name=os.system",
            r"task\.name = 'os\.system': unknown; known are .*gaussian_process",
        ),
        ("task.noise=-1", r"experiment: task: noise is -1\.0; it must be positive"),
        ("task.targets=1.5", r"task\.targets = 1\.5: must be int \| None$"),
    ],
)
def test_wrong_task(override, message):
    with pytest.raises(ExperimentError, match=message):
        build_task(experiment(override))
