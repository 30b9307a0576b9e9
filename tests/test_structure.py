"""The structure holds: imports point one way, file names are unique, files stay short."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("sanitize", "streaming", "server")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imports_of(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, node.module or ""))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    above = PACKAGES[PACKAGES.index(package) + 1 :]
    barred = {
        "sanitize": ("aiohttp", "asyncio", "threading", "smolagents"),
        "streaming": ("aiohttp.web",),
    }
    for line, module in imports_of(path):
        wrong = (*above, *barred.get(package, ()))
        assert not module.startswith(wrong), f"{path.relative_to(ROOT)}:{line} imports {module}"


def test_a_traceback_needs_no_folder() -> None:
    names = Counter(path.name for path in FILES if path.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_every_file_says_what_it_is_for() -> None:
    assert [str(path) for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_the_top_level_is_what_was_agreed() -> None:
    agreed = {
        *("setup.cfg", "pyproject.toml", "Makefile", "README.md", "CHANGELOG.md", "LICENSE"),
        *("sanitize", "streaming", "server", "tests", "docs", "deploy", "bench", ".ci"),
        *(".gitignore", "constraints.txt"),
    }
    there = {path.name for path in ROOT.iterdir() if path.name != ".git"}
    ignored = {name.strip("/") for name in (ROOT / ".gitignore").read_text().split()}
    assert {name for name in there - agreed - ignored if not name.endswith(".egg-info")} == set()
