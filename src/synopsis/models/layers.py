"""The sequence layers by name, and how the settings of an experiment become their arguments."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

from torch import nn

from synopsis.memory.conv_luna import ConvLunaLayer, SimplifiedConvLunaLayer
from synopsis.memory.induced_set import InducedSetLayer, SetLikeLayer
from synopsis.memory.linear_attention import LinearAttentionLayer
from synopsis.memory.linformer import LinformerLayer
from synopsis.memory.luna import LunaLayer, SharedLunaLayer
from synopsis.memory.memory_transformer import BottleneckMemoryLayer, MemoryTransformerLayer
from synopsis.memory.perceiver import LatentLayer
from synopsis.memory.probabilistic_luna import VonMisesFisherLunaLayer, WeibullLunaLayer
from synopsis.memory.recurrent_memory_transformer import RecurrentMemory
from synopsis.memory.temporal_latent_bottleneck import TemporalLatentBottleneck
from synopsis.memory.vanilla import VanillaLayer

if TYPE_CHECKING:
    from synopsis.models.encoder import Architecture

_SIZES = ("dim", "heads", "feedforward", "dropout", "attention_dropout")


def _named(*layers: type[nn.Module]) -> Mapping[str, type[nn.Module]]:
    return {layer.__name__: layer for layer in layers}


# They take a memory, which the encoder learns, and hand it on.
WITH_MEMORY = _named(
    LunaLayer,
    SharedLunaLayer,
    ConvLunaLayer,
    SimplifiedConvLunaLayer,
    WeibullLunaLayer,
    VonMisesFisherLunaLayer,
    MemoryTransformerLayer,
    BottleneckMemoryLayer,
    SetLikeLayer,
    LatentLayer,
)
# They learn a memory of their own, and hand it out.
WITH_OWN_MEMORY = _named(RecurrentMemory, TemporalLatentBottleneck)
WITHOUT_MEMORY = _named(VanillaLayer, LinformerLayer, LinearAttentionLayer, InducedSetLayer)
LAYERS: Mapping[str, type[nn.Module]] = {**WITH_MEMORY, **WITH_OWN_MEMORY, **WITHOUT_MEMORY}


def carries_memory(name: str) -> bool:
    """Whether a kind of layer takes a memory and hands it on.

    Raises:
        ValueError: when there is no such layer.
    """
    if name not in LAYERS:
        raise ValueError(f"unknown layer {name!r}; there are {', '.join(sorted(LAYERS))}")
    return name in WITH_MEMORY


def build_layer(architecture: "Architecture") -> nn.Module:
    """A layer with weights of its own.

    A mapping among the options becomes the named tuple that the layer declares, as in
    ``{"filtering": {"kind": "max", "kernel": 16, "stride": 8}}``.

    Raises:
        ValueError: for an option that this layer does not have, or a value that does not suit it.
    """
    make = LAYERS[architecture.layer]
    known = inspect.signature(make).parameters
    sizes = {name: getattr(architecture, name) for name in _SIZES if name in known}
    if "cells" in known:  # a layer that knows its memory's size
        sizes["cells"] = architecture.memory
    for key in architecture.options:
        if key not in known or key in sizes:
            free = ", ".join(sorted(known.keys() - sizes.keys())) or "none"
            raise ValueError(f"{architecture.layer} has no option {key!r}; known are {free}")
    hints = get_type_hints(make.__init__)
    options = {k: _declared(k, v, hints.get(k)) for k, v in architecture.options.items()}
    return make(**sizes, **options)


def _declared(name: str, value: Any, kind: Any) -> Any:
    if not (isinstance(value, Mapping) and isinstance(kind, type) and issubclass(kind, tuple)):
        return value
    try:
        return kind(**value)
    except TypeError as error:
        raise ValueError(f"{name} = {dict(value)}: {error}") from error


__all__ = [
    "LAYERS",
    "WITHOUT_MEMORY",
    "WITH_MEMORY",
    "WITH_OWN_MEMORY",
    "build_layer",
    "carries_memory",
]
