"""Sequence memories of constant size, one published block per file."""

from synopsis.memory.base import Memory
from synopsis.memory.causal_luna import CausalLuna, CausalLunaLayer, CausalLunaState
from synopsis.memory.cmab import CMAB
from synopsis.memory.cmab_stack import CMABStack, CMABState
from synopsis.memory.conv_luna import ConvLunaLayer, SimplifiedConvLunaLayer, Temperatures
from synopsis.memory.induced_set import InducedSetLayer, SetLikeLayer
from synopsis.memory.linear_attention import (
    CausalLinearAttentionLayer,
    LinearAttention,
    LinearAttentionLayer,
)
from synopsis.memory.linformer import LinformerLayer
from synopsis.memory.luna import LunaLayer, SharedLunaLayer
from synopsis.memory.luna_attention import MemoryAttention
from synopsis.memory.luna_stream import ConvLuna, ConvLunaState, Luna
from synopsis.memory.memory_transformer import BottleneckMemoryLayer, MemoryTransformerLayer
from synopsis.memory.perceiver import LatentLayer, LatentMemory
from synopsis.memory.probabilistic_luna import VonMisesFisherLunaLayer, WeibullLunaLayer
from synopsis.memory.recurrent_memory_transformer import RecurrentMemory
from synopsis.memory.sequence_filters import Filter
from synopsis.memory.temporal_latent_bottleneck import TemporalLatentBottleneck
from synopsis.memory.vanilla import VanillaLayer

__all__ = [
    "CMAB",
    "BottleneckMemoryLayer",
    "CMABStack",
    "CMABState",
    "CausalLinearAttentionLayer",
    "CausalLuna",
    "CausalLunaLayer",
    "CausalLunaState",
    "ConvLuna",
    "ConvLunaLayer",
    "ConvLunaState",
    "Filter",
    "InducedSetLayer",
    "LatentLayer",
    "LatentMemory",
    "LinearAttention",
    "LinearAttentionLayer",
    "LinformerLayer",
    "Luna",
    "LunaLayer",
    "Memory",
    "MemoryAttention",
    "MemoryTransformerLayer",
    "RecurrentMemory",
    "SetLikeLayer",
    "SharedLunaLayer",
    "SimplifiedConvLunaLayer",
    "Temperatures",
    "TemporalLatentBottleneck",
    "VanillaLayer",
    "VonMisesFisherLunaLayer",
    "WeibullLunaLayer",
]
