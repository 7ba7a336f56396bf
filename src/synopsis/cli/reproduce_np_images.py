"""``synopsis reproduce np-images``: completing images of classes that were trained on, and of others."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synopsis.cli.reproduction import (
    Budget,
    Out,
    Runs,
    Seeds,
    chosen,
    drawn,
    making,
    say_where,
)

if TYPE_CHECKING:
    from synopsis.reproduction.np_images import Row, Settings
    from synopsis.tasks.image_files import SetName

PAGE, RUNS = Path("docs/tables/np-images.md"), Path("runs/np-images")


class Dataset(StrEnum):
    """Image sets that can be completed."""

    FASHION = "fashion-mnist"
    DIGITS = "digits"
    EMNIST = "emnist"
    CELEBA32 = "celeba32"
    CELEBA64 = "celeba64"
    CELEBA128 = "celeba128"


def np_images(
    dataset: Annotated[
        Dataset, typer.Option(help="Which images; Fashion-MNIST is downloaded where it is missing.")
    ] = Dataset.FASHION,
    budget: Budget = 20.0,
    seeds: Seeds = 1,
    models: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Which models, by name.", show_default="five of them"),
    ] = None,
    batches: Annotated[
        int, typer.Option(min=2, help="Batches of 16 images of each evaluation, at most.")
    ] = 313,
    out: Out = PAGE,
    runs: Runs = RUNS,
) -> None:
    """Images completed from some of their pixels: classes that were trained on, and others.

    Twenty minutes for each of five models, and a few minutes of evaluation.
    """
    with making(out) as watch:
        from synopsis.reproduction.np_images import Settings, ensure_images, rows
        from synopsis.reproduction.np_images_page import markdown

        name: SetName = dataset.value
        ensure_images(name, lambda line: typer.echo(line, err=True))
        names = _names(models, name)
        settings = Settings(name, names, 60 * budget, seeds, batches, runs)
        found = rows(settings, watch)
        command = f"synopsis reproduce np-images --dataset {name} --budget {budget:g} "
        command += f"--seeds {seeds} --batches {batches}"
        command += f" --models {','.join(names)}" if models else ""
        made = drawn(lambda: _pictures(found, settings, out))
        out.write_text(markdown(found, settings, command, made), encoding="utf-8")
    say_where(out, *made)


def _names(models: str | None, dataset: str) -> list[str]:
    """Those asked for, or five and the one that is shipped, where there is one for these images."""
    from synopsis.processes.base import shipped
    from synopsis.reproduction.np_images import ALL, MODELS, SHIPPED

    known = [SHIPPED] if SHIPPED in shipped() and dataset == Dataset.FASHION else []
    if models is None:
        return [*known, *MODELS]
    return chosen(models, [*known, *ALL])


def _pictures(found: list["Row"], settings: "Settings", out: Path) -> list[Path]:
    """Of two models: the first, and one of another kind."""
    from synopsis.reproduction.np_images_page import title
    from synopsis.reproduction.np_images_pictures import draw

    there = {row.name: row.process for row in found if row.process is not None}
    first = next(iter(there), "")
    second = "CNP" if "CNP" in there else next((name for name in there if name != first), "")
    shown = {title(name): process for name, process in there.items() if name in (first, second)}
    return draw(shown, settings.dataset, settings.splits, out)
