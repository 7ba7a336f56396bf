from pathlib import Path

import pytest
import torch

from synopsis.processes import AnchoredCMANP


@pytest.fixture(scope="session")
def process_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A process as small as they come, with random weights."""
    return save_process(tmp_path_factory.mktemp("processes") / "tiny", seed=0)


@pytest.fixture(scope="session")
def other_process_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_process(tmp_path_factory.mktemp("processes") / "other", seed=1)


def save_process(folder: Path, seed: int) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"dim": 8, "heads": 2, "blocks": 1, "latents": 4, "components": 2}
        AnchoredCMANP(dim_x=4, **sizes).save_pretrained(folder)
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Sixty days of a wave with noise, two of them with a gap."""
    return write_table(tmp_path / "rows.csv", 60, gaps=(20, 45))


def write_table(path: Path, rows: int, gaps: tuple[int, ...] = ()) -> Path:
    noise = torch.randn(rows, generator=torch.Generator().manual_seed(0)).tolist()
    lines = ["date,x,y"]
    for i in range(rows):
        y = 10 + 3 * torch.tensor(i / 5).sin().item() + noise[i]
        lines.append(
            f"2020-{1 + i // 28 % 12:02d}-{1 + i % 28:02d},{i % 7},{'' if i in gaps else y}"
        )
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def base(process_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    monkeypatch.chdir(tmp_path)
    return ["--y", "y", "--x", "date:year,x", "--process", process_folder, "--warmup", 8]
