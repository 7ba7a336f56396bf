"""A sound toy process, and one broken in every way that a contract check is there to notice."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from synopsis.processes import (
    Gaussian,
)
from synopsis.processes.base import Process
from synopsis.states import State


@dataclass(frozen=True)
class ToyState(State):
    kind: ClassVar[str] = "toy"
    total: Tensor
    count: Tensor
    fingerprint: str


class Toy(Process):
    """Predicts the mean of y, times a weight; sound, and the trunk of everything broken below."""

    merges = "any order"
    sums = torch.float64

    def __init__(self, dim_x: int = 1, dim_y: int = 1) -> None:
        super().__init__(dim_x=dim_x, dim_y=dim_y)
        self.weight = nn.Parameter(torch.full((dim_y,), 2.0))

    def belongs(self, *states: ToyState) -> None:
        for state in states:
            if state.fingerprint != self.fingerprint:
                raise ValueError("made by other weights")
        if len({len(state.count) for state in states}) > 1:
            raise ValueError("other numbers of streams")

    def init(self, batch_shape=(1,)):
        total = torch.zeros(*batch_shape, self.dim_y, dtype=self.sums)
        count = torch.zeros(batch_shape, dtype=torch.int64)
        return ToyState(total, count, self.fingerprint)

    def update(self, state, xc, yc, mask=None):
        self.belongs(state)
        if len(yc) != len(state.count):
            raise ValueError("other numbers of streams")
        if mask is None:
            mask = torch.ones(yc.shape[:2], dtype=torch.bool)
        added = yc.masked_fill(~mask.unsqueeze(-1), 0.0).sum(1)
        return replace(state, total=state.total + added, count=state.count + mask.sum(1))

    def merge(self, a, b):
        self.belongs(a, b)
        return replace(a, total=a.total + b.total, count=a.count + b.count)

    def predict(self, state, xt):
        self.belongs(state)
        mean = self.weight * state.total / (1 + state.count.unsqueeze(-1))
        mean = mean.float().unsqueeze(1).expand(-1, xt.shape[1], -1)
        return Gaussian(mean, torch.ones_like(mean))


class Deaf(Toy):
    def predict(self, state, xt):
        return Gaussian(0.0 * super().predict(state, xt).mean, torch.ones(*xt.shape[:2], 1))


class EmptyIsNaN(Toy):
    def predict(self, state, xt):
        mean = super().predict(state, xt).mean
        empty = (state.count == 0).view(-1, 1, 1)
        return Gaussian(mean.masked_fill(empty, torch.nan), torch.ones_like(mean))


class Miscounts(Toy):
    def update(self, state, xc, yc, mask=None):
        after = super().update(state, xc, yc, mask)
        return replace(after, count=state.count + yc.shape[1])


class MeanOfMeans(Toy):
    def update(self, state, xc, yc, mask=None):
        after = super().update(state, xc, yc, mask)
        return replace(after, total=state.total + (after.total - state.total) / max(1, yc.shape[1]))


class Recent(Toy):
    """Forgets: an exponentially weighted sum that still claims any order."""

    def update(self, state, xc, yc, mask=None):
        for i in range(yc.shape[1]):
            one = None if mask is None else mask[:, i : i + 1]
            state = replace(state, total=state.total * 0.99)
            state = super().update(state, xc[:, i : i + 1], yc[:, i : i + 1], one)
        return state


class MultipliesByMask(Toy):
    def update(self, state, xc, yc, mask=None):
        if mask is not None:
            count = state.count + mask.sum(1)
            added = ((yc + 0.0 * xc) * mask.unsqueeze(-1)).sum(1)
            return replace(state, total=state.total + added, count=count)
        return super().update(state, xc, yc)


class MixesStreams(Toy):
    def predict(self, state, xt):
        predicted = super().predict(state, xt)
        return Gaussian(predicted.mean - predicted.mean.mean(0), predicted.stddev)


class Broadcasts(Toy):
    def update(self, state, xc, yc, mask=None):
        if len(state.count) == 1 and len(yc) > 1:
            state = self.init((len(yc),))
        return super().update(state, xc, yc, mask)


class LearnsFromQuestions(Toy):
    def predict(self, state, xt):
        predicted = super().predict(state, xt)
        state.total.add_(1.0)
        return predicted


class WritesInPlace(Toy):
    def update(self, state, xc, yc, mask=None):
        after = super().update(state, xc, yc, mask)
        state.total.copy_(after.total)
        state.count.copy_(after.count)
        return state


@dataclass(frozen=True)
class RowsState(State):
    kind: ClassVar[str] = "toy-rows"
    rows: Tensor
    count: Tensor


class KeepsEverything(Process):
    """Sound when it says so: the mean of rows that are all kept, in the tensors they came in."""

    merges = None

    def __init__(self, dim_x: int = 1, dim_y: int = 1) -> None:
        super().__init__(dim_x=dim_x, dim_y=dim_y)

    def init(self, batch_shape=(1,)):
        return RowsState(torch.zeros(*batch_shape, 0, 1), torch.zeros(batch_shape).long())

    def update(self, state, xc, yc, mask=None):
        if len(yc) != len(state.count):
            raise ValueError("other numbers of streams")
        count = state.count + (yc.shape[1] if mask is None else mask.sum(1))
        if mask is not None:
            yc = yc.masked_fill(~mask.unsqueeze(-1), 0.0)
        return RowsState(torch.cat([state.rows, yc], 1), count)

    def predict(self, state, xt):
        mean = state.rows.sum(1, keepdim=True) / (1 + state.count.view(-1, 1, 1))
        return Gaussian(mean.expand(-1, xt.shape[1], -1), torch.ones(*xt.shape[:2], 1))


class SaysSo(KeepsEverything):
    bounded = False


class Aliases(SaysSo):
    def update(self, state, xc, yc, mask=None):
        if state.rows.shape[1] == 0 and mask is None:
            return RowsState(yc, state.count + yc.shape[1])
        return super().update(state, xc, yc, mask)


class HalfPrecisionOnDisk(Toy):
    """Its state loses digits on the way to bytes."""

    def init(self, batch_shape=(1,)):
        state = super().init(batch_shape)
        return RoundedState(state.total, state.count, state.fingerprint)


@dataclass(frozen=True)
class RoundedState(ToyState):
    kind: ClassVar[str] = "toy-rounded"

    def serialize(self):
        return State.serialize(replace(self, total=self.total.bfloat16().double()))


class TakesAnyState(Toy):
    def belongs(self, *states):
        if len({len(state.count) for state in states}) > 1:
            raise ValueError("other numbers of streams")


class MergesAnyway(SaysSo):
    def merge(self, a, b):
        return a


class Unknown(Toy):
    merges = "sometimes"


class CountsMergesTwice(Toy):
    def merge(self, a, b):
        merged = super().merge(a, b)
        return replace(merged, total=merged.total + 1e-2)


class Averages(Toy):
    """Commutative, but not associative."""

    def merge(self, a, b):
        merged = super().merge(a, b)
        if not bool(a.count.any()) or not bool(b.count.any()):
            return merged
        return replace(merged, total=merged.total * 0.9)


class LastWins(Toy):
    def merge(self, a, b):
        merged = super().merge(a, b)
        if not bool(a.count.any()) or not bool(b.count.any()):
            return merged
        return replace(merged, total=merged.total + 1e-2 * (a.total - b.total))


class Float32Sums(Toy):
    sums = torch.float32


class UnusedWeight(Toy):
    def __init__(self, dim_x: int = 1, dim_y: int = 1) -> None:
        super().__init__(dim_x, dim_y)
        self.idle = nn.Parameter(torch.ones(1))


class NaNGradients(Toy):
    def forward(self, xc, yc, xt, mask=None):
        mask = torch.ones(yc.shape[:2], dtype=torch.bool) if mask is None else mask
        total = torch.where(mask.unsqueeze(-1), self.weight * (yc + 0.0 * xc), 0.0).sum(1)
        mean = (total / (1 + mask.sum(1, keepdim=True))).unsqueeze(1).expand(-1, xt.shape[1], -1)
        return Gaussian(mean, torch.ones_like(mean))


class ForgetsMaskInForward(Toy):
    def forward(self, xc, yc, xt, mask=None):
        return super().forward(xc, yc, xt, mask if self.training else None)


class KeepsGraph(Toy):
    def update(self, state, xc, yc, mask=None):
        return super().update(state, xc, self.weight * yc / 2.0, mask)


class ForgetsItsConfig(Toy):
    def __init__(self, dim_x: int = 1, dim_y: int = 1, factor: float = 1.0) -> None:
        super().__init__(dim_x, dim_y)
        self.factor = factor

    def predict(self, state, xt):
        return super().predict(state, xt).affine(0.0, self.factor)


class TakesMissingForZero(Toy):
    """Opens the door that every process has been given."""

    def observed(self, yc, mask=None):
        return yc.nan_to_num(), mask


class PassesGapsOn(Toy):
    """Claims to know what to do with them."""

    keeps_gaps = True

    def __init__(self) -> None:
        super().__init__(dim_y=2)


class ReadsPaddedTargets(Toy):
    """Measures its loss in units of all targets, real or not."""

    def loss(self, batch):
        return super().loss(batch) / batch.yt.nan_to_num().square().mean()


BROKEN = [
    (Deaf(), "answers_depend_on_what_was_seen"),
    (EmptyIsNaN(), "empty_context"),
    (Miscounts(), "counts_points"),
    (MeanOfMeans(), "any_split"),
    (Recent(), "any_order"),
    (MultipliesByMask(), "mask_drops_points"),
    (MixesStreams(), "streams_are_independent"),
    (Broadcasts(), "streams_must_agree"),
    (LearnsFromQuestions(), "answering_changes_nothing"),
    (WritesInPlace(), "states_share_nothing"),
    (Aliases(), "states_share_nothing"),
    (KeepsEverything(), "constant_bytes"),
    (HalfPrecisionOnDisk(), "resumes_from_bytes"),
    (TakesAnyState(), "other_weights_refuse"),
    (MergesAnyway(), "merge_only_where_exact"),
    (Unknown(), "merge_only_where_exact"),
    (CountsMergesTwice(), "merge_has_an_identity"),
    (Averages(), "merge_is_associative"),
    (LastWins(), "merge_commutes"),
    (Float32Sums(), "learns_without_end"),
    (UnusedWeight(), "gradients_reach_every_parameter"),
    (NaNGradients(), "padding_reaches_no_gradient"),
    (ForgetsMaskInForward(), "training_answers_as_conditioning"),
    (KeepsGraph(), "evaluation_keeps_no_graph"),
    (ForgetsItsConfig(factor=3.0), "weights_survive_the_disk"),
    (TakesMissingForZero(), "points_without_outputs_change_nothing"),
    (PassesGapsOn(), "half_observed_points_are_accepted"),
    (ReadsPaddedTargets(), "loss_leaves_out_missing_targets"),
]
