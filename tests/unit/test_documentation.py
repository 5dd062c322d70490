"""What the documentation points at is there."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    ".",
    "docs",
    "docs/adr",
    "docs/how-to",
    "docs/reference",
    "benchmarks",
    "flows",
    "flows/scripts",
)
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md"))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def without_code(page: Path) -> str:
    """Return the prose of a page."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the names under which a page's headings can be linked to."""
    titles = re.findall(r"^#+ (.*)$", without_code(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def readme_blocks(language: str) -> list[str]:
    """Return the code blocks of the README in one language."""
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_relative_link_is_broken(page: Path) -> None:
    """Every relative link in a Markdown file leads to a file, and to a heading where it names one."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_page_names_a_place_on_somebodys_machine(page: Path) -> None:
    """Documentation names no absolute path of a machine, since nobody else has it."""
    assert re.findall(r"(?<![\w.])/(?:root|home|work|opt|tmp|Users)/\S*", page.read_text()) == []


def test_every_page_is_listed_in_the_index() -> None:
    """A page that the index does not link to is found by nobody."""
    index = (ROOT / "docs" / "index.md").read_text()
    pages = [page for page in (ROOT / "docs").rglob("*.md") if page.name != "index.md"]

    assert [
        p.name for p in pages if f"({p.relative_to(ROOT / 'docs').as_posix()})" not in index
    ] == []


def test_commands_of_the_readme_exist() -> None:
    """Each command of the README's shell blocks installs extras that are declared, runs a script
    that is there, or calls pytest."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    lines = "\n".join(readme_blocks("bash")).splitlines()
    commands = [
        c for line in lines for c in " ".join(shlex.split(line, comments=True)).split(" && ")
    ]

    assert len(commands) == 4
    for command in commands:
        words = command.split()
        if words[:3] == ["pip", "install", "-e"]:
            assert set(re.findall(r"\w+", words[3])) <= extras.keys(), command
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), command
        else:
            assert words == ["pytest"], command


def test_python_of_the_readme_uses_public_names_only() -> None:
    """What the README imports from the package is in its public list."""
    import prefect_parallelrun

    imported = {
        name.name
        for block in readme_blocks("python")
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and node.module == "prefect_parallelrun"
        for name in node.names
    }

    assert imported
    assert imported <= set(prefect_parallelrun.__all__)


def test_make_targets_that_are_named_exist() -> None:
    """Each `make …` that a page names is a target of the Makefile."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {t for page in PAGES for t in re.findall(r"`make (\w+)`", page.read_text())}

    assert named
    assert named <= targets


def test_architecture_names_what_is_in_the_tree() -> None:
    """Each module or folder that the architecture page names is in the package."""
    package = ROOT / "prefect_parallelrun"
    parts = [f"/{part.relative_to(package).as_posix()}" for part in package.rglob("*")]
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`((?:\w+/)*\w+(?:\.py|/))`", page))

    assert len(named) > 20
    assert [
        n for n in sorted(named) if not any(part.endswith(f"/{n.rstrip('/')}") for part in parts)
    ] == []
