"""Sets of different expressions; answers that compose nothing, against loops over words."""

import collections

import numpy as np
import pytest

from synopsis.tasks.listops_sets import different_expressions, trivial_answers
from synopsis.tasks.listops_trees import Law, spelled
from tests.tasks.test_listops_trees import CALLS


def words(tokens):
    return [spelled(tokens.sequences[row]).split() for row in range(len(tokens))]


def test_a_seed_names_the_set_and_its_beginning():
    some = different_expressions(Law(4, 30), 300, (5, 1))
    assert len(some) == 300
    assert some.checksum == different_expressions(Law(4, 30), 300, (5, 1)).checksum
    assert some.first(40).checksum == different_expressions(Law(4, 30), 40, (5, 1)).checksum
    assert some.checksum != different_expressions(Law(4, 30), 300, (5, 2)).checksum


def test_no_two_are_alike_nor_like_those_taken():
    taken = set()
    one = different_expressions(Law(3, 7), 2000, (0,), taken)
    other = different_expressions(Law(3, 7), 2000, (1,), taken)
    assert len({" ".join(w) for w in words(one) + words(other)}) == 4000


def test_too_many_are_refused():
    # 4 operators over two digits: 400 expressions of 4 tokens.
    assert len(different_expressions(Law(3, 5), 400, (0,))) == 400
    with pytest.raises(
        ValueError, match=r"found 400 different expressions of 4 … 4 tokens, not 401"
    ):
        different_expressions(Law(3, 5), 401, (0,))


def test_progress_is_told():
    told = []
    different_expressions(Law(32, 128), 300, (0,), progress=told.append)
    assert told[-1] == 300
    assert told == sorted(told)


def direct_answer(expression, table):
    depth, digits = 0, []
    for word in expression:
        depth += (word in CALLS) - (word == "X")
        if depth == 1 and word.isdigit():
            digits.append(int(word))
    return CALLS[expression[0]](digits) if digits else table[expression[0]]


def test_trivial_answers_by_loops():
    train = different_expressions(Law(4, 40), 800, (0, 0))
    test = different_expressions(Law(4, 40), 300, (0, 1))
    counts = collections.defaultdict(collections.Counter)
    for expression, label in zip(words(train), train.labels.tolist(), strict=True):
        counts[expression[0]][label] += 1
    # Of equally frequent labels the smallest.
    table = {root: min(c, key=lambda label: (-c[label], label)) for root, c in counts.items()}
    labels = test.labels.tolist()
    root = [table[w[0]] == label for w, label in zip(words(test), labels, strict=True)]
    direct = [
        direct_answer(w, table) == label for w, label in zip(words(test), labels, strict=True)
    ]
    answers = trivial_answers(train, test)
    assert answers == {"root operator": np.mean(root), "root over digits": np.mean(direct)}


def test_levels_of_the_benchmark_at_32_to_128_tokens():
    """Measured with an independent generator: 16.2 %, 34.2 %, 51.7 %."""
    train = different_expressions(Law(32, 128), 2000, (0, 0))
    answers = trivial_answers(train, train)
    error = 4 * np.sqrt(0.25 / 2000)
    assert abs(answers["root operator"] - 0.342) < error
    assert abs(answers["root over digits"] - 0.517) < error
    assert abs(train.sequences.lengths.mean() - 67) < 3
