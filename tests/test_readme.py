"""What the README says is so: its settings table, its routes, its commands."""

import re
from pathlib import Path

import pytest

from server.settings_table import SETTINGS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def settings_table() -> str:
    rows = ["| name | default | meaning |", "|---|---|---|"]
    for setting in SETTINGS:
        names = ", else ".join(f"`{name}`" for name in setting.names)
        default = setting.shown_default or setting.default
        rows.append(f"| {names} | {default} | {setting.meaning} |")
    return "\n".join(rows)


def test_the_settings_table_is_the_one_of_the_code(readme: str) -> None:
    assert settings_table() in readme, f"put this into README.md:\n\n{settings_table()}"


def test_the_commands_are_those_of_the_makefile(readme: str) -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(targets) > 5
    for target in targets:
        assert f"`make {target}`" in readme, target


def test_ci_runs_nothing_that_the_readme_does_not_name(readme: str) -> None:
    commands = re.findall(r"make ([a-z ]+)", (ROOT / ".ci" / "run").read_text())
    assert commands == ["check test"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
        led = page.parent / target if target else page
        assert led.exists(), target
        if anchor:
            assert anchor in anchors_of(led), f"{target}#{anchor}"


def anchors_of(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_can_be_reached_from_the_readme(readme: str) -> None:
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert f"docs/{page.name}" in readme, page.name
