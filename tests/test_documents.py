"""What the documents say is so: examples print what they claim, links lead somewhere, commands have their options."""

import contextlib
import doctest
import importlib
import io
import pkgutil
import re
import shlex
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer

import synopsis
from synopsis.cli import app

ROOT = Path(__file__).parent.parent
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [
    *GUIDES,
    *sorted((ROOT / "docs" / "tables").glob("*.md")),
    *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    ROOT / "examples" / "README.md",
]
# Tables whose benchmark needs the shipped weights: linked already, and to be taken out of here when they are made.
PENDING: set[str] = set()

FENCE = re.compile(r"^```(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PRINTED = re.compile(r"# → (.*)$", re.MULTILINE)
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)

MODULES = [
    module.name
    for module in pkgutil.walk_packages(synopsis.__path__, "synopsis.")
    if not module.name.endswith("__main__")
]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(text: str, language: str) -> Iterator[str]:
    return (body for info, body in FENCE.findall(text) if info.strip() == language)


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Where links may lead within a page, as GitHub derives them from headings."""
    kept = (
        "".join(c for c in title.lower() if c in " -_" or unicodedata.category(c)[0] in "LN")
        for title in HEADING.findall(prose(page))
    )
    return {title.replace(" ", "-") for title in kept}


@pytest.mark.parametrize("page", GUIDES, ids=named)
def test_python_blocks_run_and_print_what_they_claim(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("examples", "experiments"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": f"documents.{page.stem}"}
    for code in blocks(page.read_text(encoding="utf-8"), "python"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, named(page), "exec"), namespace)
        if expected := PRINTED.findall(code):
            assert printed.getvalue().splitlines() == [line.strip() for line in expected]


@pytest.mark.parametrize("page", GUIDES, ids=named)
def test_blocks_left_out_say_why(page: Path) -> None:
    for info, code in FENCE.findall(page.read_text(encoding="utf-8")):
        if "no-run" in info:
            assert info == "python no-run"
            assert code.startswith("# "), code


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists() or named(found) in PENDING, f"{target} leads nowhere"
        if anchor:
            assert anchor in anchors(found), f"{target}: no such heading"


def test_nothing_is_pending_that_is_there() -> None:
    assert not [path for path in PENDING if (ROOT / path).exists()]


def test_the_index_lists_every_page() -> None:
    linked = set(LINK.findall((ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert not pages - {"index.md"} - linked


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_have_the_options_that_are_written(page: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8"), "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("synopsis "):
                check_command(shlex.split(line, comments=True)[1:])


def check_command(words: list[str]) -> None:
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    known = {name for option in command.params for name in option.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"needs the extra that brings {error.name}")
    torch.manual_seed(0)
    outcome = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert outcome.failed == 0
