"""The Text task: reviews in their folders, e-mails that stand in for them."""

import numpy as np
import pytest

from synopsis.tasks.byte_texts import ByteTexts, byte_counts, naive_bayes
from synopsis.tasks.sequences import SPLITS
from synopsis.tasks.text_packages import SPAM_ASSASSIN
from synopsis.tasks.token_sets import Sequences, TokenSet
from tests.tasks.sequence_checks import check_task, rows
from tests.tasks.test_documents import write_tar


@pytest.fixture
def reviews(tmp_path):
    for split, count in (("train", 10), ("test", 4)):
        for label in ("pos", "neg"):
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(count):
                path = tmp_path / split / label / f"{number}_7.txt"
                path.write_text(f"{split} {label} {number} é<br />")
    return tmp_path


@pytest.fixture
def mails(tmp_path, monkeypatch):
    members = {
        f"package/data/{group}/{number:05}.txt": f"H: x\n\n{group} {number}\n".encode()
        for group in ("easy-ham-1", "spam-1")
        for number in range(20)
    }
    (tmp_path / SPAM_ASSASSIN.name).mkdir()
    write_tar(tmp_path / SPAM_ASSASSIN.name / SPAM_ASSASSIN.file, members)
    monkeypatch.setenv("SYNOPSIS_DATA", str(tmp_path))


def texts(task, split):
    """Texts of a part with their labels, read back from the ids."""
    found = []
    for batch in task.batches(split, 5):
        for ids, label in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
            found.append((bytes(i - 1 for i in ids if i).decode(), label))
    return found


def test_reviews_are_a_sequence_task(reviews):
    check_task(ByteTexts(str(reviews), length=30, held_out=3), stand_in="")


def test_reviews_are_held_out_from_training(reviews):
    task = ByteTexts(str(reviews), length=50, held_out=3)
    parts = {split: texts(task, split) for split in SPLITS}
    assert [len(parts[split]) for split in SPLITS] == [17, 3, 8]
    assert all(text.startswith("train") for text, _ in parts["train"] + parts["validation"])
    assert len({text for part in parts.values() for text, _ in part}) == 28
    assert all((" pos " in text) == label for part in parts.values() for text, label in part)
    assert "é<br />" in parts["test"][0][0]


def test_validation_on_the_test_reviews_as_published(reviews):
    task = ByteTexts(str(reviews), length=50, held_out=0)
    assert texts(task, "validation") == texts(task, "test")
    assert len(texts(task, "train")) == 20


def test_mails_stand_in(mails):
    task = ByteTexts(length=16)
    check_task(task, stand_in="IMDb's reviews")
    parts = {split: texts(task, split) for split in SPLITS}
    assert [len(parts[split]) for split in SPLITS] == [32, 4, 4]
    found = [text for part in parts.values() for text in part]
    assert len({row for split in SPLITS for b in task.batches(split, 9) for row in rows(b)}) == 40
    assert all(text.startswith("spam") == label for text, label in found)


def test_naive_bayes_by_loops():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60).astype(np.uint8)
    pieces = [
        rng.integers(97, 100 + 2 * k, rng.integers(1, 9)).astype(np.uint8).tobytes() for k in labels
    ]
    train = TokenSet(Sequences.joined(pieces[:40]), labels[:40], 8)
    test = TokenSet(Sequences.joined(pieces[40:]), labels[40:], 8)
    right = 0
    for piece, label in zip(pieces[40:], labels[40:], strict=True):
        scores = []
        for k in (0, 1):
            seen = b"".join(
                p for p, other in zip(pieces[:40], labels[:40], strict=True) if other == k
            )
            score = np.log((labels[:40] == k).mean())
            scores.append(
                score + sum(np.log((seen.count(b) + 1) / (len(seen) + 256)) for b in piece)
            )
        right += int(scores[1] > scores[0]) == label
    assert naive_bayes(train, test) == right / 20
    assert byte_counts(test.sequences).sum() == sum(map(len, pieces[40:]))


def test_what_is_wrong_is_named(tmp_path, reviews, monkeypatch):
    for changes, message in (({"length": 0}, "length is 0"), ({"held_out": -1}, "held_out is -1")):
        with pytest.raises(ValueError, match=message):
            ByteTexts(**changes)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ByteTexts(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="held_out is 20, but there are only 20 reviews"):
        ByteTexts(str(reviews), held_out=20).examples("train")
    with pytest.raises(FileNotFoundError, match=r"neg: there are no texts"):
        ByteTexts(str(reviews / "train")).examples("test")
