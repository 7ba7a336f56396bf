"""One safetensors file that a run continues from, whole or not there."""

# Not accelerate's save_state: it pickles optimiser and generators, and a pickle runs code when read.

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from synopsis.states import write_atomic

FORMAT = 1

_LAYOUT = "layout"  # key of files whose checksum covers types and shapes; the first ones lack it


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued from; the one-line message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands.

    Args:
        step: steps done.
        tensors: weights, moments and averages by name.
        scalars: everything else that JSON can hold; floats come back bit for bit.
        experiment: the TOML text of the run.
    """

    step: int
    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, Any]
    experiment: str

    def write(self, path: Path) -> None:
        """Replace the checkpoint at ``path``; a crash at any moment leaves the old one whole."""
        # Cloned because safetensors refuses tensors that share memory, as tied weights do.
        tensors = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in self.tensors.items()}
        header = {
            "format": FORMAT,
            "step": self.step,
            "scalars": self.scalars,
            "experiment": self.experiment,
        }
        text = json.dumps(header)
        covered = {"training": text, _LAYOUT: "covered"}
        metadata = {**covered, "crc32": str(_crc32(covered, tensors))}
        write_atomic(path, safetensors.torch.save(tensors, metadata))

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Read what :meth:`write` wrote.

        Raises:
            CheckpointError: if the file is missing, damaged, or not a checkpoint of this format.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: no such checkpoint") from error
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a whole checkpoint ({error})") from error
        text = metadata.get("training", "")
        if metadata.get("crc32") != str(_crc32(metadata, tensors)):
            raise CheckpointError(f"{path}: not a whole checkpoint (its checksum does not match)")
        try:
            header = json.loads(text)
            found, parts = header["format"], [header[k] for k in ("step", "scalars", "experiment")]
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path}: not a checkpoint ({error!r})") from error
        if found != FORMAT:
            raise CheckpointError(f"{path}: format {found!r}; this version reads {FORMAT}")
        return cls(parts[0], tensors, parts[1], parts[2])


def _crc32(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> int:
    """Of the text and of all tensors: names, bytes and, where the file says so, types and shapes."""
    total = zlib.crc32(metadata.get("training", "").encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        words = f"{name}{tensor.dtype}{tuple(tensor.shape)}" if _LAYOUT in metadata else name
        data = tensor.reshape(-1).view(torch.uint8).numpy()
        total = zlib.crc32(data.data, zlib.crc32(words.encode(), total))
    return total
