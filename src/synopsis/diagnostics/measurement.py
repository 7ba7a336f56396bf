"""The statistics of every layer's memory, from hooks that are there for as long as a measurement takes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from synopsis.diagnostics.cells import effective_rank, mean_cosine, mean_norm
from synopsis.diagnostics.report import Cells, LayerReport, MemoryReport, Number, Pack, Unpack
from synopsis.diagnostics.weights import Scores, of_packing, of_unpacking
from synopsis.memory.luna_attention import MemoryAttention
from synopsis.models import Model
from synopsis.models.encoder import Encoder
from synopsis.models.layers import WITH_MEMORY, WITH_OWN_MEMORY
from synopsis.tasks.sequences import PairBatch, SequenceBatch

Mask = Bool[Tensor, "batch items"] | None
Measured = dict[str, Float[Tensor, " batch"]]
_REMEMBERING = (*WITH_MEMORY.values(), *WITH_OWN_MEMORY.values())


def has_memory(model: nn.Module) -> bool:
    """Whether there is anything to measure: a layer that hands on a memory, or packs into one of its own.

    Example:
        >>> has_memory(nn.Linear(1, 1))
        False
    """
    return any(_remembers(layer) for layer in _layers(model))


def measure_memory(model: Model, batches: Iterable[SequenceBatch | PairBatch]) -> MemoryReport:
    """What is in the memory of each layer, and how attention uses it.

    Every sequence counts the same; both sequences of a pair count, and so does each segment of a layer that goes
    through a sequence in segments. What a sequence does not have (choices with one key or one cell; anything with no
    real item), or what is not finite, does not count; a number that no sequence has is None. Attention weights are
    computed again, a block at a time: memory does not grow with length times cells.

    Args:
        model: measured in evaluation mode, on its own device; left as it was.
        batches: a fixed set, so that reports of different steps can be compared.

    Returns:
        A report of all its layers.

    Raises:
        ValueError: for a model without a memory, or no examples.

    Example:
        >>> from synopsis.models import SequenceClassifier
        >>> model = SequenceClassifier(9, 2, 20, layers=2, dim=8, heads=2, feedforward=8, memory=4)
        >>> batch = SequenceBatch(torch.zeros(3).long(), torch.randint(1, 9, (3, 20)))
        >>> report = measure_memory(model, [batch])
        >>> len(report.layers), 0.9 < report.layers[0].pack.entropy < 1
        (2, True)
    """
    if not has_memory(model):
        kinds = ", ".join(sorted({type(layer).__name__ for layer in _layers(model)}))
        raise ValueError(f"{type(model).__name__} has no memory: {kinds or 'it'} keeps none")
    probes = [_Probe(layer) for layer in _layers(model)]
    device, training, examples = next(model.parameters()).device, model.training, 0
    model.eval()
    try:
        with torch.no_grad(), _attached(probes):
            for batch in batches:
                model(batch.to(device))
                examples += len(batch.labels)
    finally:
        model.train(training)
    if not examples:
        raise ValueError("there are no examples to measure a memory on")
    return MemoryReport(tuple(p.report(i) for i, p in enumerate(probes, start=1)), examples)


class _Call(NamedTuple):
    """What an attention was asked, and what it answered."""

    attention: MemoryAttention
    query_input: Tensor
    context: Tensor
    mask: Mask
    answer: Tensor

    def scores(self) -> Scores:
        key, _, seen = self.attention.keys_values(self.context, self.mask)
        query = self.attention.query(self.query_input).expand(len(key), -1, -1, -1)
        wide = torch.promote_types(key.dtype, torch.float32)
        return Scores(query.to(wide), key.to(wide), seen)


class _Means:
    """Running means of numbers by name; those that are not finite do not count."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, numbers: Measured) -> None:
        for name, values in numbers.items():
            finite = values[values.isfinite()].double()
            self._sums[name] = self._sums.get(name, 0.0) + float(finite.sum())
            self._counts[name] = self._counts.get(name, 0) + len(finite)

    def read(self) -> dict[str, Number] | None:
        """The means; None if nothing was ever added."""
        if not self._counts:
            return None
        return {name: self._sums[name] / n if n else None for name, n in self._counts.items()}


class _Probe:
    """One layer: its attentions' calls while it runs, and the statistics of all passes."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self._packs: list[_Call] = []
        self._unpacks: list[_Call] = []
        self._into, self._out = _Means(), _Means()
        self._pack, self._unpack = _Means(), _Means()

    def hooks(self) -> Iterator[tuple[nn.Module, Callable[..., None]]]:
        """What to register where."""
        for name, calls in (("pack", self._packs), ("unpack", self._unpacks)):
            attention = getattr(self.layer, name, None)
            if isinstance(attention, MemoryAttention):
                yield attention, _keeping(calls)
        yield self.layer, self._digest

    def report(self, number: int) -> LayerReport:
        """What was found."""
        parts = (self._into, self._out, self._pack, self._unpack)
        into, out, pack, unpack = (part.read() for part in parts)
        return LayerReport(
            number,
            None if into is None else Cells(**into),
            None if out is None else Cells(**out),
            None if pack is None else Pack(**pack, temperature=_temperature(self.layer, "pack")),
            None
            if unpack is None
            else Unpack(**unpack, temperature=_temperature(self.layer, "unpack")),
        )

    def _digest(self, _: nn.Module, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Measure one pass of the layer, whose calls are all known now."""
        x, memory, mask = (*inputs, None, None)[:3]
        into = memory if memory is not None or not self._packs else self._packs[0].query_input
        out = outputs[1]
        if out is None and self._unpacks:
            out = self._unpacks[-1].context
        for means, vectors in ((self._into, into), (self._out, out)):
            if vectors is not None and vectors.shape[1]:
                means.add(_of_cells(vectors.expand(len(x), -1, -1)))
        for pack, unpack in zip_longest(self._packs, self._unpacks):
            if pack is not None:
                self._pack.add(_of_pack(pack))
            if unpack is not None:
                self._unpack.add(_of_unpack(unpack, pack, mask))
        self._packs.clear()
        self._unpacks.clear()


def _of_cells(vectors: Tensor) -> Measured:
    return {
        "cosine": mean_cosine(vectors),
        "centred_cosine": mean_cosine(vectors, centred=True),
        "effective_rank": effective_rank(vectors),
        "norm": mean_norm(vectors),
    }


def _of_pack(call: _Call) -> Measured:
    entropy, variation = of_packing(call.scores())
    norm = mean_norm(call.answer)
    if call.mask is not None:  # without a real item nothing was packed
        norm = torch.where(call.mask.any(1), norm, torch.nan)
    return {"entropy": entropy, "total_variation": variation, "norm": norm}


def _of_unpack(call: _Call, pack: _Call | None, mask: Mask) -> Measured:
    """With the mask of the same items: a segment's is its pack's, but a pack may also see more than items."""
    masks = (None if pack is None else pack.mask, mask)
    fitting = (m for m in masks if m is not None and m.shape == call.query_input.shape[:2])
    entropy, cells = of_unpacking(call.scores(), next(fitting, None))
    return {"entropy": entropy, "cells_for_90": cells}


def _temperature(layer: nn.Module, name: str) -> float:
    with torch.no_grad():
        return float(getattr(layer, name).temperature())


def _keeping(calls: list[_Call]) -> Callable[..., None]:
    def keep(module: MemoryAttention, inputs: tuple[Any, ...], answer: Tensor) -> None:
        query_input, context, mask = (*inputs, None)[:3]
        calls.append(_Call(module, query_input, context, mask, answer))

    return keep


@contextmanager
def _attached(probes: Iterable[_Probe]) -> Iterator[None]:
    """Hooks for as long as the block runs, whatever happens in it."""
    with ExitStack() as stack:
        for probe in probes:
            for module, hook in probe.hooks():
                stack.callback(module.register_forward_hook(hook).remove)
        yield


def _layers(model: nn.Module) -> list[nn.Module]:
    encoders = [part for part in model.modules() if isinstance(part, Encoder)]
    return [layer for encoder in encoders for layer in encoder.layers]


def _remembers(layer: nn.Module) -> bool:
    return isinstance(layer, _REMEMBERING) or isinstance(
        getattr(layer, "pack", None), MemoryAttention
    )


__all__ = ["has_memory", "measure_memory"]
