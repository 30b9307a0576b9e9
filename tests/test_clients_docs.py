"""The snippets of docs/clients.md run as they stand there, but for the port."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from client_model import ANSWER, CITY, model, node, python_of, run_program
from conftest import FakeUpstream, MakeGateway

from server.settings_table import SETTINGS

PAGE = (Path(__file__).parent.parent / "docs" / "clients.md").read_text()
BASE = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Snippet:
    heading: str
    environment: str
    source: str


def snippets() -> list[Snippet]:
    found = []
    for section in PAGE.split("\n## ")[1:]:
        heading = section.partition("\n")[0]
        for marks, language, source in re.findall(
            r"(?:<!-- runs in: (.*?) -->\n)?```(python|js|sh)\n(.*?)```", section, re.DOTALL
        ):
            environments = ["shell"] if language == "sh" else marks.split()
            assert environments, f"a snippet under {heading} does not say where it runs"
            found += [Snippet(heading, environment, source) for environment in environments]
    return found


@pytest.mark.parametrize("snippet", snippets(), ids=lambda s: f"{s.heading} ({s.environment})")
async def test_a_snippet_prints_the_answer(
    upstream: FakeUpstream, make_gateway: MakeGateway, snippet: Snippet
) -> None:
    upstream.handler = model
    gateway = await make_gateway()
    assert BASE in snippet.source
    command = {"shell": ["bash", "-s"], "node": None}.get(snippet.environment, [])
    if command is None:
        command = node()
    elif not command:
        command = [*python_of(snippet.environment), "-"]
    said = await run_program(command, snippet.source.replace(BASE, gateway.base), gateway)
    assert (CITY["name"] if "parse(" in snippet.source else ANSWER) in said


def test_every_client_has_its_snippet() -> None:
    headings = {snippet.heading for snippet in snippets()}
    assert headings == {
        *("curl", "openai for Python", "openai for Node", "Vercel AI SDK", "LangChain"),
        *("LiteLLM", "pydantic-ai", "smolagents"),
    }


def test_the_settings_that_the_page_names_exist() -> None:
    names = {name for setting in SETTINGS for name in setting.names}
    assert set(re.findall(r"\b[A-Z]+_SECONDS\b|\bAPI_KEYS\b", PAGE)) <= names
