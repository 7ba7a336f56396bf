"""Missing outputs: NaN in y means "not observed", and is seen to before a process meets it.

A point without any output is masked out. A point with some of them goes in with 0, the mean of standardised data, for
the others (:meth:`synopsis.processes.Process.observed`). Both happen at the door: the methods below are guarded in
every subclass of :class:`synopsis.processes.Process`, whoever wrote it, so that none can forget. Data without NaN pass
through untouched, without a mask where they came without one.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from synopsis.tasks import Batch
from synopsis.tasks.base import observed_points

_Method = Callable[..., Any]


def filled(y: Float[Tensor, "*points dim_y"]) -> Float[Tensor, "*points dim_y"]:
    """Outputs with 0 for those that are not observed; infinity stays what it is."""
    return y.masked_fill(y.isnan(), 0.0)


def scored(
    log_prob: Callable[[Tensor], Tensor],
    value: Float[Tensor, "*points dim_y"],
    instead: Float[Tensor, "*points dim_y"],
) -> tuple[Tensor, Bool[Tensor, "*points dim_y"]]:
    """Log-densities of outputs one by one, and which outputs are not observed.

    Args:
        log_prob: of every output.
        value: outputs, NaN where not observed.
        instead: stands in for those, so that neither their densities nor gradients are NaN.
    """
    missing = value.isnan()
    return log_prob(value.where(~missing, instead.detach())), missing


def guard(process: type, base: type) -> None:
    """Let the methods that a class brings, itself or from a mixin, see no NaN that means "not observed".

    Args:
        process: the class, complete.
        base: the class whose other subclasses are guarded already.
    """
    for name, guarded in _GUARDS.items():
        owner = next((c for c in process.__mro__ if name in vars(c)), None)
        if owner is process or (owner is not None and not issubclass(owner, base)):
            setattr(process, name, guarded(getattr(process, name)))


def _update(method: _Method) -> _Method:
    @wraps(method)
    def update(
        self: Any, state: Any, xc: Tensor, yc: Tensor, mask: Tensor | None = None, **options: Any
    ) -> Any:
        yc, mask = self.observed(yc, mask)
        return method(self, state, xc, yc, mask, **options)

    return update


def _forward(method: _Method) -> _Method:
    @wraps(method)
    def forward(
        self: Any, xc: Tensor, yc: Tensor, xt: Tensor, mask: Tensor | None = None, **options: Any
    ) -> Any:
        yc, mask = self.observed(yc, mask)
        return method(self, xc, yc, xt, mask, **options)

    return forward


def _of_batch(method: _Method) -> _Method:
    @wraps(method)
    def of_batch(self: Any, batch: Batch, **options: Any) -> Any:
        return method(self, batch.observed(), **options)

    return of_batch


def _teacher_forced(method: _Method) -> _Method:
    @wraps(method)
    def teacher_forced(
        self: Any,
        state: Any,
        xt: Tensor,
        yt: Tensor,
        real: Tensor | None = None,
        *rest: Any,
        **options: Any,
    ) -> Any:
        return method(self, state, xt, yt, observed_points(yt, real), *rest, **options)

    return teacher_forced


_GUARDS: dict[str, Callable[[_Method], _Method]] = {
    "update": _update,
    "forward": _forward,
    "loss": _of_batch,
    "joint": _of_batch,
    "score": _of_batch,
    "log_likelihood": _of_batch,
    "target_log_likelihood": _of_batch,
    "teacher_forced": _teacher_forced,
}
