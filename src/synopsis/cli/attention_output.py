"""Where the attention that a command computed is written."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synopsis.attention import AttentionState

_SUFFIXES = (".safetensors", ".npy")


def check_place(path: Path) -> None:
    """Raise ValueError unless a result can be written there: better before the work than after."""
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"{path}: the attention goes to a .safetensors or .npy file")
    check_folder(path)


def check_folder(path: Path) -> None:
    """Raise ValueError unless the folder of a file is there."""
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")


def write_output(path: Path, state: "AttentionState") -> None:
    """Write output and log-sum-exp to ``.safetensors`` (``output``, ``lse``), or the output alone to ``.npy``."""
    import numpy as np
    import safetensors.torch
    import torch

    from synopsis.states import write_atomic

    output = state.output.detach().contiguous()
    if path.suffix.lower() == ".npy":
        data = io.BytesIO()
        wide = (
            output.float() if output.dtype == torch.bfloat16 else output
        )  # .npy knows no bfloat16
        np.save(data, wide.numpy())
        write_atomic(path, data.getvalue())
    else:
        lse = state.lse.detach().contiguous()
        write_atomic(path, safetensors.torch.save({"output": output, "lse": lse}))
