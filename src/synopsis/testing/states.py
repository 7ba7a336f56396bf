"""What every state owes: checks that hold whether or not states merge."""

import copy

import torch

from synopsis.states import State
from synopsis.testing.subject import LENGTH, STREAMS, TOLERANCE, Subject, refuses, require, same


def answers_depend_on_what_was_seen(subject: Subject) -> None:
    """Other points, other answers: otherwise no law below could fail."""
    one, other = (subject.answer(subject.after(subject.points(seed))) for seed in (1, 2))
    effect = float((one - other).abs().max())
    require(effect > 5 * TOLERANCE, f"answers to different points differ by only {effect:.3g}")


def empty_context(subject: Subject) -> None:
    """Nothing seen: finite answers, count 0, and an update with no points is no update."""
    empty = subject.after(subject.points(1, length=0))
    fresh = subject.module.init((STREAMS,))
    require(empty.count.tolist() == [0] * STREAMS, f"nothing counts as {empty.count.tolist()}")
    same(subject.answer(empty), subject.answer(fresh), "an update with no points changes answers")


def counts_points(subject: Subject) -> None:
    """One point is enough, and ``count`` tells how many real ones each stream has seen."""
    one = subject.after(subject.points(1, length=1))
    answer = subject.answer(one)
    require(
        bool(answer.isfinite().all()),
        f"{int((~answer.isfinite()).sum())} answers are not finite after one point",
    )
    mask = subject.ragged_mask()
    state = subject.after(subject.points(1), state=one, mask=mask)
    expected = (1 + mask.sum(1)).tolist()
    require(state.count.tolist() == expected, f"count is {state.count.tolist()}, not {expected}")


def any_split(subject: Subject) -> None:
    """A stream, one by one or in pieces, leaves what its points at once leave."""
    points = subject.points(1)
    expected = subject.answer(subject.after(points))
    for lengths in ([1] * LENGTH, [7, LENGTH - 7], [1, 0, 2, LENGTH - 3]):
        pieces = zip(*(part.split(lengths, dim=1) for part in points), strict=True)
        claim = f"pieces of {lengths} points give other answers than all at once"
        same(subject.answer(subject.after(*pieces)), expected, claim)


def any_order(subject: Subject) -> None:
    """Where merges is "any order", so may the points come."""
    if subject.module.merges != "any order":
        return
    points = subject.points(1)
    turned = tuple(part.flip(1) for part in points)
    found, expected = (subject.answer(subject.after(order)) for order in (turned, points))
    same(found, expected, "points in another order give other answers")


def mask_drops_points(subject: Subject) -> None:
    """Masked points might as well not be there, whatever stands in their places."""
    points, mask = subject.points(1), subject.ragged_mask()
    for filler in (0.0, 1e30, torch.nan):
        padded = tuple(part.masked_fill(~mask.unsqueeze(-1), filler) for part in points)
        found = subject.answer(subject.after(padded, mask=mask))
        for stream, real in enumerate(mask):
            alone = tuple(part[stream : stream + 1, real] for part in points)
            claim = (
                f"with {filler} in {int((~real).sum())} masked places answers are not those without"
            )
            same(found[stream : stream + 1], subject.answer(subject.after(alone)), claim)


def streams_are_independent(subject: Subject) -> None:
    """Many streams in a batch are as each alone."""
    points = subject.points(1)
    together = subject.answer(subject.after(points))
    for stream in range(STREAMS):
        piece = slice(stream, stream + 1)
        alone = subject.answer(subject.after(tuple(part[piece] for part in points)))
        same(together[piece], alone, f"stream {stream} of {STREAMS} answers unlike alone")


def streams_must_agree(subject: Subject) -> None:
    """Points for another number of streams than the state has: ValueError, not broadcasting."""
    state = subject.module.init((1,))
    refuses(
        "points of 3 streams for a state of 1",
        lambda: subject.after(subject.points(1), state=state),
    )
    if subject.module.merges is not None:
        other = subject.module.init((STREAMS,))
        refuses("states of 1 and 3 streams", lambda: subject.module.merge(state, other))


def answering_changes_nothing(subject: Subject) -> None:
    """A state is the same bytes after being asked, and gives the same answer again."""
    state = subject.after(subject.points(1))
    before = state.serialize()
    first, second = subject.answer(state), subject.answer(state)
    require(state.serialize() == before, "answering changed the state's bytes")
    require(torch.equal(first, second), "the same state answers differently when asked again")


def states_share_nothing(subject: Subject) -> None:
    """Neither updating a state nor writing to the tensors it was made of changes it."""
    points, more = subject.points(1), subject.points(2)
    state = subject.after(points)
    before = state.serialize()
    subject.after(more, state=state)
    if subject.module.merges is not None:
        subject.module.merge(state, subject.after(more))
    require(state.serialize() == before, "a state changed when another was made from it")
    for part in points:
        part.fill_(9.0)
    require(state.serialize() == before, "a state changed with the tensors it was given")


def constant_bytes(subject: Subject) -> None:
    """As many bytes after 1,000 points as before any; not asked where ``bounded`` is False."""
    if not subject.bounded:
        return
    sizes = {n: subject.after(subject.points(1, length=n)).nbytes for n in (0, 10, 1000)}
    require(
        len(set(sizes.values())) == 1,
        f"state bytes by points seen are {sizes}; declare bounded = False",
    )


def resumes_from_bytes(subject: Subject) -> None:
    """Written and read back, a state goes on as if nothing had happened, bit for bit."""
    state, more = subject.after(subject.points(1)), subject.points(2)
    data = state.serialize()
    again = State.deserialize(data)
    require(
        type(again) is type(state), f"{type(state).__name__} came back as {type(again).__name__}"
    )
    require(again.serialize() == data, "a state read back has other bytes")
    resumed, straight = (subject.after(more, state=s).serialize() for s in (again, state))
    require(resumed == straight, "a state read back goes on differently")


def other_weights_refuse(subject: Subject) -> None:
    """A change of any weight makes the module refuse states of before."""
    state, points = subject.after(subject.points(1)), subject.points(2)
    other = Subject(copy.deepcopy(subject.module), subject.widths, subject.question)
    for name, weight in other.module.named_parameters():
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.add_(1.0)
        refuses(f"update after {name} changed", lambda: other.after(points, state=state))
        refuses(f"an answer after {name} changed", lambda: other.answer(state))
        if other.module.merges is not None:
            refuses(f"merge after {name} changed", lambda: other.module.merge(state, state))
        with torch.no_grad():
            weight.copy_(kept)
