"""The protocol of a model of labelled sequences: logits of a batch, a loss, and weights on disk without pickle."""

from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from synopsis.tasks.sequences import PairBatch, SequenceBatch
from synopsis.weight_files import read_folder, write_folder

MODELS: dict[str, type["Model"]] = {}


@runtime_checkable
class Penalised(Protocol):
    """A layer whose passes in training mode add something to the loss."""

    def take_penalty(self) -> Float[Tensor, ""]:
        """What the last pass adds, once."""
        ...


class Model(nn.Module):
    """Base of every model; subclasses implement :meth:`logits` and hand their arguments to ``super().__init__``.

    They are found under their name in ``MODELS``.
    """

    classes: int
    takes: ClassVar[type]  # SequenceBatch or PairBatch

    def __init_subclass__(cls) -> None:
        MODELS[cls.__name__] = cls

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config: dict[str, Any] = config
        self.classes = config["classes"]

    def logits(self, batch: Any) -> Float[Tensor, "batch classes"]:
        """Unnormalised log-probabilities of the classes."""
        raise NotImplementedError

    def forward(self, batch: SequenceBatch | PairBatch) -> Float[Tensor, "batch classes"]:
        """Logits of a batch.

        Raises:
            ValueError: when the batch is not of the kind that the model takes, or has labels beyond its classes.
        """
        if not isinstance(batch, self.takes):
            raise ValueError(
                f"{type(self).__name__} takes a {self.takes.__name__}, not a {type(batch).__name__}"
            )
        return self.logits(batch)

    def loss(self, batch: SequenceBatch | PairBatch) -> Tensor:
        """Mean cross-entropy of the labels, nats; in training with the penalties of layers that have some."""
        loss = F.cross_entropy(self(batch), batch.labels)
        if not self.training:
            return loss
        penalised = [part for part in self.modules() if isinstance(part, Penalised)]
        return loss + sum((part.take_penalty() for part in penalised), loss.new_zeros(()))

    def save_pretrained(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors``; see :func:`load_model`."""
        config = {"model": type(self).__name__, "arguments": self.config}
        write_folder(Path(folder), self, config, dtype)


def load_model(folder: Path | str) -> Model:
    """A model in evaluation mode from a folder that :meth:`Model.save_pretrained` wrote.

    Raises:
        ValueError: when there is no such folder, or its files do not fit together.
    """
    folder = Path(folder)
    config, weights = read_folder(folder)
    name = config.get("model")
    if name not in MODELS:
        raise ValueError(f"{folder}: unknown model {name!r}; there are {', '.join(sorted(MODELS))}")
    try:
        model = MODELS[name](**config.get("arguments", {}))
        model.load_state_dict(weights)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{folder} does not hold a whole {name}: {error}") from error
    return model.eval()


__all__ = ["MODELS", "Model", "load_model"]
