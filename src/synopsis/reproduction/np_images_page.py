"""The page of the image completion table."""

from collections.abc import Sequence
from pathlib import Path

from synopsis.reproduction.contenders import RECIPE_IN_WORDS
from synopsis.reproduction.family import TITLES as MODEL_TITLES
from synopsis.reproduction.np_images import (
    BATCH_SIZE,
    FEWER_BLOCKS,
    LATENTS,
    SHIPPED,
    Row,
    Settings,
    available,
    train_targets,
    without_context,
)
from synopsis.reproduction.pages import (
    UNKNOWN,
    UNPUBLISHED,
    made_by,
    mebibytes,
    number,
    plus_minus,
    table,
)
from synopsis.tasks.image_files import IMAGE_SETS
from synopsis.tasks.images import ImageCompletion
from synopsis.training import Estimate

TITLES = {
    "fashion-mnist": "Fashion-MNIST",
    "digits": "scikit-learn's digits",
    "emnist": "EMNIST (balanced)",
    "celeba32": "CelebA 32×32",
    "celeba64": "CelebA 64×64",
    "celeba128": "CelebA 128×128",
}
_CLASSES = {"fashion-mnist": ("0–4", "5–9"), "digits": ("0–4", "5–9"), "emnist": ("0–9", "10–46")}
_BOUND = (
    "Standard deviations are at least 0.05, those of CNP's family 0.1, as published for EMNIST: no density above 2.08 "
    "(1.38) nats per pixel is possible."
)
_NO_BOUND = "Standard deviations of CNP's family are at least 0.1, others have no bound, as published for CelebA."


def markdown(
    rows: Sequence[Row], settings: Settings, command: str, pictures: Sequence[Path]
) -> str:
    """The table as a page of Markdown.

    Args:
        rows: of the table, measured.
        settings: of the table.
        command: that writes this page.
        pictures: beside it; the first is of completed images.
    """
    return _PAGE.format(
        dataset=TITLES[settings.dataset],
        protocol=_protocol(settings),
        budget=_budget(settings),
        table=_table(rows, settings),
        pictures="".join(f"\n![completed images]({path.name})\n" for path in pictures),
        notes=_notes(rows, settings),
        command=made_by(command),
    )


def _protocol(settings: Settings) -> str:
    known = IMAGE_SETS[settings.dataset]
    seen, unseen = _CLASSES.get(settings.dataset, ("", ""))
    trained_on = f"classes {seen} of the training images" if seen else "the training images"
    sizes = ", ".join(
        f"{available(ImageCompletion(settings.dataset, split), settings.batches)} batches of "
        f"{BATCH_SIZE} ({split})"
        for split in settings.splits
    )
    return (
        f"Trained on {trained_on}; measured on other images of the same classes"
        + (f" (*seen*) and on images of classes {unseen} (*unseen*)" if seen else " (*seen*)")
        + f". A random {known.side}×{known.side} image shows 3 to {known.max_points - 4} random pixels, and 3 or more "
        f"others, up to {known.max_points} in all, are predicted: the published law. Values are −0.5 to 0.5. The score "
        "is the log-density of a pixel in nats, the mean over batches of each batch's mean; ± is one standard error "
        f"over batches. {sizes[0].upper()}{sizes[1:]}, in the order of the files."
    )


def _budget(settings: Settings) -> str:
    if settings.budget_seconds <= 0:
        return "Nothing was trained for this page: rows are processes that were there already."
    return (
        f"**{settings.budget_seconds / 60:g} CPU-minutes of training for each model** and seed, where a row does not "
        "say that it is shipped; the papers train 48,000 steps of 100 images (EMNIST) or 365,400 (CelebA), so these "
        "rows say what a budget buys, not where models end."
    )


def _table(rows: Sequence[Row], settings: Settings) -> str:
    head = ["model", "published"]
    head += [f"{split}, nats per pixel" for split in settings.splits]
    head += [f"{split}: inside 90 % interval" for split in settings.splits]
    head += ["seeds", "parameters", "steps", "CPU-hours"]
    head += ["kept of 10 pixels, bytes", "kept of all pixels, bytes", "peak memory, MiB"]
    lines = [_line(row, settings) for row in rows]
    reference = [without_context(settings, split) for split in settings.splits]
    if None not in reference:
        cells = ["*no context*", UNKNOWN, *(_estimate(e) for e in reference if e is not None)]
        lines.append(cells + [UNKNOWN] * (len(head) - len(cells)))
    return table(head, lines)


def _line(row: Row, settings: Settings) -> list[str]:
    width = 2 * len(settings.splits) + 4 + 3
    if row.failure:
        return [title(row.name), UNPUBLISHED, *[UNKNOWN] * width]
    ledger = row.ledgers[0]
    cells = [title(row.name), UNPUBLISHED, *(_score(row, split) for split in settings.splits)]
    for split in settings.splits:
        inside = [score["coverage"]["0.9"]["value"] for score in row.scores[split]]
        cells.append(f"{100 * sum(inside) / len(inside):.1f} %")
    hours = [one.cpu_hours for one in row.ledgers if one.cpu_hours is not None]
    steps = UNKNOWN if ledger.steps is None else f"{ledger.steps:,}"
    cells += [str(len(row.ledgers)), f"{ledger.parameters:,}", steps]
    cells.append(number(sum(hours) if hours else None, 2))
    return [*cells, *(f"{size:,}" for size in row.kept), mebibytes(row.peak)]


def _score(row: Row, split: str) -> str:
    spread = row.spread(split)
    over = "" if spread is None else f" (seeds: sd {spread:.3f})"
    return _estimate(row.log_likelihood(split)) + over


def _estimate(estimate: Estimate) -> str:
    return plus_minus(estimate.value, estimate.standard_error)


def title(name: str) -> str:
    """A model as the literature writes it."""
    if name == SHIPPED:
        return f"CMANP (`{SHIPPED}`, shipped)"
    model, _, blocks = name.partition("-")
    return f"{MODEL_TITLES[model]}, {blocks} blocks" if blocks else MODEL_TITLES[model]


def _notes(rows: Sequence[Row], settings: Settings) -> str:
    images = IMAGE_SETS[settings.dataset]
    grey = images.channels == 1
    notes = [
        "*published*: the tables of the papers could not be read; there is no exact answer for images either.",
        f"One recipe for all models that are trained here, ours: {RECIPE_IN_WORDS}; "
        f"{train_targets(settings.dataset)} targets per image.",
        f"CMANP, CMANP-AND, LBANP and LBANP-ND have {LATENTS} latents, a quarter of the published number: they take "
        "more steps within a budget. All other sizes are the published ones for "
        + ("EMNIST." if grey else "CelebA."),
        *_fewer(rows),
        "CMANP-AND and the other models with a joint head are scored by the joint density of an image's targets, "
        "divided by their number; the others predict each target by itself, so the two kinds do not compete.",
        _BOUND if grey else _NO_BOUND,
        "*no context*: each pixel's own mean and standard deviation over the training images.",
        "*kept*: what a process holds of one image, to be asked and updated later; *peak memory*: to condition on "
        f"{images.max_points} pixels and predict all, beyond weights and inputs. Images are small; "
        "`synopsis reproduce np-memory` measures long contexts.",
        *(f"{title(row.name)}: {row.failure}" for row in rows if row.failure),
    ]
    return "\n".join(f"- {note}" for note in notes)


def _fewer(rows: Sequence[Row]) -> list[str]:
    names = [row.name for row in rows if row.name in FEWER_BLOCKS]
    return [
        f"*{title(name)}*: instead of the published 6 of CMANP. Six layers of LBANP have as many weights as about four "
        "of CMANP's blocks, and a step of training costs as much."
        for name in names
    ]


_PAGE = """# Image completion: {dataset}

{protocol}

{budget}

{table}
{pictures}
{notes}

{command}"""
