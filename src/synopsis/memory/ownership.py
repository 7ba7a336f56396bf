"""States belong to the weights that made them: other weights refuse them, and so does another number of streams."""

from typing import Any, ClassVar, Self

from torch import nn

from synopsis.memory.base import Merges
from synopsis.states import check_streams
from synopsis.weights import Weights, fingerprint


class Owner(nn.Module):
    """Base of memories whose states carry a ``fingerprint`` of the weights, known again without hashing at every call.

    Subclasses call ``super().__init__`` with whatever else decides their answers, as JSON.

    Args:
        **configuration: what the shapes of the weights do not tell, such as the number of heads.
    """

    merges: ClassVar[Merges]

    def __init__(self, **configuration: Any) -> None:
        super().__init__()
        self._configuration = configuration
        self._weights: Weights | None = None
        self._fingerprint_of: tuple[object, str] | None = None

    @property
    def owned(self) -> nn.Module:
        """The module whose weights count."""
        return self

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that only these weights in this configuration have."""
        version = self.version()
        if self._fingerprint_of is None or self._fingerprint_of[0] != version:
            self._fingerprint_of = (version, fingerprint(self.owned, self._configuration))
        return self._fingerprint_of[1]

    def version(self) -> object:
        """Of the weights, for caches of what was derived from them: see :meth:`synopsis.weights.Weights.version`."""
        if self._weights is None:
            self._weights = Weights(self.owned)
        return self._weights.version()

    def check_belongs(self, state: Any, streams: int) -> None:
        """Raise ValueError unless the state was made by these weights and is of so many streams."""
        if state.fingerprint != self.fingerprint:
            raise ValueError(
                f"the state was made by weights {state.fingerprint}, not by these ({self.fingerprint})"
            )
        check_streams(state, streams)

    def train(self, mode: bool = True) -> Self:
        """Change mode, and forget what was derived from the weights: fused optimisers change them unseen."""
        self.forget()
        return super().train(mode)

    def forget(self) -> None:
        """Drop what was derived from the weights."""
        self._fingerprint_of = None
