"""What merge owes, where a module claims to have it."""

from torch.utils._pytree import tree_leaves

from synopsis.testing.subject import STREAMS, Subject, refuses, require, same

_DOUBLINGS = 26  # 16 points merged with themselves until 10⁹: float32 sums no longer notice one
_REPEATS = 32  # single updates after that, 16 times
_LOST = 0.25  # share of what a batch changes that the same points, one by one, may fail to change
_ROUNDING = 1e-9  # relative: what is summed may round differently alone and in a batch


def merge_only_where_exact(subject: Subject) -> None:
    """``merges`` is one of three claims, and None means that merging raises."""
    claim = subject.module.merges
    require(claim in ("any order", "in order", None), f"merges is {claim!r}")
    if claim is None and hasattr(subject.module, "merge"):
        state = subject.module.init((1,))
        refuses("merge, for merges is None", lambda: subject.module.merge(state, state), Exception)


def merge_has_an_identity(subject: Subject) -> None:
    """Merging with a state that has seen nothing changes no answer."""
    if subject.module.merges is None:
        return
    state, empty = subject.after(subject.points(1)), subject.module.init((STREAMS,))
    for name, pair in {"left": (empty, state), "right": (state, empty)}.items():
        merged = subject.module.merge(*pair)
        same(subject.answer(merged), subject.answer(state), f"empty is no {name} identity of merge")
    twice = subject.module.merge(empty, empty)
    same(subject.answer(twice), subject.answer(empty), "two empty states merge into something else")


def merge_is_associative(subject: Subject) -> None:
    """Parts merge to the whole, in any tree, and counts add up."""
    if subject.module.merges is None:
        return
    merge, parts = subject.module.merge, [subject.points(seed, length=8) for seed in (1, 2, 3)]
    a, b, c = (subject.after(part) for part in parts)
    whole, left, right = subject.after(*parts), merge(merge(a, b), c), merge(a, merge(b, c))
    same(subject.answer(left), subject.answer(right), "merge is not associative")
    same(subject.answer(left), subject.answer(whole), "merged parts answer unlike the whole stream")
    require(left.count.tolist() == whole.count.tolist(), f"merged count is {left.count.tolist()}")


def merge_commutes(subject: Subject) -> None:
    """Where merges is "any order", parts may be swapped."""
    if subject.module.merges != "any order":
        return
    a, b = (subject.after(subject.points(seed)) for seed in (1, 2))
    found, expected = (subject.answer(subject.module.merge(*pair)) for pair in ((b, a), (a, b)))
    same(found, expected, "merge does not commute")


def learns_without_end(subject: Subject) -> None:
    """After a billion points, single points still count: sums that never end are float64."""
    if subject.module.merges is None or not subject.bounded:
        return
    state = subject.after(subject.points(1, length=16, streams=1))
    for _ in range(_DOUBLINGS):
        state = subject.module.merge(state, state)
    fresh = subject.points(2, length=16, streams=1)
    points = tuple(part.repeat(1, _REPEATS, 1) for part in fresh)
    singles = zip(*(part.split(1, dim=1) for part in points), strict=True)
    streamed, at_once = subject.after(*singles, state=state), subject.after(points, state=state)
    # One summary can be written with many pivots; merged into the same one, all have the same.
    pivot = subject.module.merge(streamed, at_once)
    three = (tree_leaves(subject.module.merge(s, pivot)) for s in (state, streamed, at_once))
    for leaves in zip(*three, strict=True):
        before, one, other = (leaf.double() for leaf in leaves)
        allowed = _LOST * (other - before).abs() + _ROUNDING * before.abs()
        lost = ((other - one).abs() > allowed).double().mean().item()
        claim = f"after {int(state.count)} points, {lost:.0%} of a tensor's sums lose single points"
        require(not lost, claim)
