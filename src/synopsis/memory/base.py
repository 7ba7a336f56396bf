"""The protocol of a memory: a module of weights only, and a state that holds what was seen."""

from typing import Any, ClassVar, Literal, Protocol

from jaxtyping import Bool, Float
from torch import Tensor

Merges = Literal["any order", "in order"] | None


class Memory(Protocol):
    """A sequence memory of constant size.

    ``merges`` declares the algebra of its state: ``"any order"`` (associative and commutative), ``"in order"``
    (associative), or None (``merge`` does not exist). ``synopsis.testing.check_memory`` holds it to its word.
    """

    merges: ClassVar[Merges]

    def init(self, batch_shape: tuple[int, ...] = (1,)) -> Any:
        """A state that has seen nothing, for each of the streams in ``batch_shape``."""
        ...

    def update(
        self,
        state: Any,
        x: Float[Tensor, "batch length dim"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> Any:
        """The state after it has also seen x; mask is True where an item is real."""
        ...

    def read(
        self, state: Any, latents: Float[Tensor, "batch latents dim"]
    ) -> Float[Tensor, "batch latents dim"]:
        """What the memory answers to these latents; reading changes nothing."""
        ...
