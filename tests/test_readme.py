"""What the README says is so: its settings table, its routes, its commands."""

import re
from pathlib import Path

from server.settings_table import SETTINGS

ROOT = Path(__file__).parent.parent


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


def test_relative_links_lead_somewhere(readme: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (ROOT / target).exists(), target
