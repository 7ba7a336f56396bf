"""Fashion-MNIST from Debian's archive, without root: download the package, take the four files out.

A Debian package is an ``ar`` archive whose member ``data.tar.*`` holds the files; Python reads both,
so that a package downloaded elsewhere can be unpacked on any machine.
"""

import lzma
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path, PurePosixPath

from synopsis.tasks.image_files import default_folders

PACKAGE = "dataset-fashion-mnist"
FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
DOWNLOAD_SECONDS = 1800.0
AR_MAGIC = b"!<arch>\n"
AR_HEADER = 60  # bytes: name 16, dates and owners 32, size 10, end 2


def fetch_fashion_mnist(
    folder: Path | str | None = None, say: Callable[[str], object] | None = None
) -> Path:
    """Download Debian's package of Fashion-MNIST (31 MB) and unpack it; no root needed.

    Args:
        folder: where ``fashion-mnist/`` is made; None is the first of ``default_folders()``,
            where tasks look by themselves.
        say: called with a line of progress before each step.

    Returns:
        The folder that holds the four files; if they are there already, nothing is downloaded.

    Raises:
        OSError: there is no apt-get, or it fails; the message holds its last words.
        ValueError: the package does not hold the files.

    Example:
        >>> fetch_fashion_mnist("data", say=print)    # doctest: +SKIP
        PosixPath('data/fashion-mnist')

    Source: Xiao, Rasul & Vollgraf, 2017 (Fashion-MNIST), under the MIT licence.
    """
    target = (default_folders()[0] if folder is None else Path(folder)) / "fashion-mnist"
    if all((target / name).is_file() for name in FILES):
        return target
    say = say or (lambda _: None)
    with tempfile.TemporaryDirectory() as scratch:
        say(f"downloading {PACKAGE} from Debian (31 MB)")
        package = _download(Path(scratch))
        say(f"unpacking {package.name} into {target}")
        unpack_fashion_mnist(package, target)
    return target


def _download(scratch: Path) -> Path:
    if shutil.which("apt-get") is None:
        raise FileNotFoundError(
            f"there is no apt-get here; download {PACKAGE}_*.deb from packages.debian.org and "
            "give it to unpack_fashion_mnist, or use torchvision's FashionMNIST(download=True)"
        )
    command = ["apt-get", "download", PACKAGE]
    result = subprocess.run(
        command, cwd=scratch, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
    )
    packages = sorted(scratch.glob(f"{PACKAGE}_*.deb"))
    if result.returncode != 0 or not packages:
        words = " ".join((result.stderr or result.stdout).split())[-400:]
        raise OSError(
            f"`{' '.join(command)}` failed ({words}); if the package is unknown, run "
            "`apt-get update` as root first"
        )
    return packages[0]


def unpack_fashion_mnist(package: Path, folder: Path) -> None:
    """Take the four files of Fashion-MNIST out of a Debian package.

    Args:
        package: ``dataset-fashion-mnist_*.deb``.
        folder: made if it is not there; only complete files appear in it.

    Raises:
        ValueError: the file is no Debian package, or holds something else.
    """
    try:
        with tarfile.open(fileobj=BytesIO(_data_tar(package))) as archive:
            found = {PurePosixPath(m.name).name: m for m in archive.getmembers() if m.isfile()}
            if missing := [name for name in FILES if name not in found]:
                raise ValueError(f"{package}: there is no {', '.join(missing)} in it")
            folder.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                content = archive.extractfile(found[name])
                assert content is not None  # a regular file
                unfinished = folder / f"{name}.unfinished"
                unfinished.write_bytes(content.read())
                unfinished.replace(folder / name)
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{package}: damaged: {error}") from error


def _data_tar(package: Path) -> bytes:
    """The tar archive of the package's files, compressed or not."""
    name, content = _ar_member(package, "data.tar")
    if not name.endswith(".zst"):
        return content
    # Ubuntu's packages; Python reads zstd from 3.14 on, and whoever has them has dpkg.
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    result = subprocess.run(command, capture_output=True, check=False)
    if result.returncode != 0:
        raise OSError(f"`{' '.join(command)}` failed ({result.stderr.decode(errors='replace')})")
    return result.stdout


def _ar_member(path: Path, prefix: str) -> tuple[str, bytes]:
    """Name and content of the first member whose name starts with ``prefix``."""
    content = path.read_bytes()
    if not content.startswith(AR_MAGIC):
        raise ValueError(f"{path}: not a Debian package: it starts with {content[:8]!r}")
    start = len(AR_MAGIC)
    while start + AR_HEADER <= len(content):
        header = content[start : start + AR_HEADER]
        name, size = (
            header[:16].decode("ascii", "replace"),
            header[48:58].decode("ascii", "replace"),
        )
        if header[58:] != b"`\n" or not size.strip().isdigit():
            raise ValueError(f"{path}: damaged: no header at byte {start}")
        body = start + AR_HEADER
        if body + int(size) > len(content):
            raise ValueError(f"{path}: damaged: it ends inside {name.strip()}")
        if name.startswith(prefix):
            return name.strip(" /"), content[body : body + int(size)]
        start = body + int(size) + int(size) % 2  # members start at even bytes
    raise ValueError(f"{path}: damaged: there is no {prefix}.* in it")
