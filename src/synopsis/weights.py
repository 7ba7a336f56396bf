"""Which weights a module has at this moment: for caches of what they gave, and for states that belong to them."""

import ctypes
import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


class Weights:
    """Tells cheaply whether any weight of a module was written to or replaced: for caches of derived values.

    Args:
        module: complete, with all its submodules in place.
    """

    def __init__(self, module: nn.Module) -> None:
        self._tables = [part._parameters for part in module.modules()]

    def version(self) -> object:
        """Equal as long as nothing changed; equal to nothing while a transform of ``torch.func`` works on the weights.

        What was derived inside a transform must not be found outside, nor the other way round: it would bring a
        gradient or a tangent that is none of its business, or lack its own.
        """
        if forward_ad._current_level >= 0:  # a weight with a tangent looks like any other
            return object()
        weights = (p for table in self._tables for p in table.values() if p is not None)
        try:
            return tuple((p.data_ptr(), p._version) for p in weights)
        except RuntimeError:  # a weight inside a transform is a wrapper without memory of its own
            return object()


def fingerprint(module: nn.Module, config: dict[str, Any]) -> str:
    """Sixteen hex digits of the configuration and every weight's bytes: equal only for the same model."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, weight in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        digest.update(_bytes(weight))
    return digest.hexdigest()[:16]


def _bytes(weight: Tensor) -> bytes:
    """The numbers of a weight, be it inside a transform of ``torch.func``; those of all members under vmap."""
    bare = torch.func.debug_unwrap(weight).detach().cpu().contiguous()
    bare = torch.func.debug_unwrap(bare)  # inside a transform, what operations return is wrapped
    return ctypes.string_at(bare.data_ptr(), bare.nbytes)  # and has no .numpy()
