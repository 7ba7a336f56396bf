"""A module on disk: what it takes to build it again, and its weights; never pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from synopsis.states import write_atomic

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write_folder(
    folder: Path, module: nn.Module, config: Mapping[str, Any], dtype: torch.dtype | None = None
) -> None:
    """Write ``config.json`` and ``model.safetensors``, each at once or not at all.

    Args:
        folder: made if it does not exist.
        module: whose weights are written.
        config: what else it takes to build it again.
        dtype: of the weights on disk; None keeps theirs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.to(dtype or v.dtype).contiguous() for k, v in module.state_dict().items()}
    write_atomic(folder / WEIGHTS, safetensors.torch.save(weights))
    write_atomic(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What :func:`write_folder` wrote; floating-point weights come back as float32.

    Raises:
        ValueError: when a file is missing or damaged.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
        weights = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"{folder} does not hold whole weights: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG} holds {config!r}; it must be an object")
    return config, {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
