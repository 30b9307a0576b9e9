"""The agents that this server has: ids → factories, checked before anything is served.

In: the `AGENTS` setting, `id=module:attribute`, `id=path/to/saved/folder` or `id=path/to/agent.json`. Out:
factories, the default agent among them. Raises `BadSetting`, which says which entry cannot work and why.
"""

import importlib
import inspect
import json
import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from smolagents import CodeAgent, Model, MultiStepAgent, ToolCallingAgent
from smolagents.models import MODEL_REGISTRY

from server import code_writing_agent
from server.agent_settings import SUFFIXES, AgentSettings, factory_with, read_agent_settings
from server.setting_values import BadSetting
from server.settings_table import DEFAULT_AGENT
from streaming.agent_context import AgentContext, AgentFactory, call_factory, family_of
from streaming.mcp_server import McpServer

log = logging.getLogger("server")

AGENT_CLASSES = {agent.__name__: agent for agent in (CodeAgent, ToolCallingAgent)}
PLACEHOLDER = "smolgate.ModelOfTheRun"


class Agents(dict[str, AgentFactory]):
    """Ids and their factories. `code_imports`: what their code may import beyond smolagents' own;
    `mcp_servers`: of each agent that has some, by their names.
    """

    code_imports: frozenset[str] = frozenset()

    def __init__(
        self, factories: Mapping[str, AgentFactory] | None = None, **more: AgentFactory
    ) -> None:
        super().__init__(factories or {}, **more)
        self.mcp_servers: dict[str, Mapping[str, McpServer]] = {}


def load_agents(
    agents: Mapping[str, str], *, embedded: bool, elsewhere: frozenset[str] = frozenset()
) -> Agents:
    """Every agent's factory. Each is called twice, to see that it works. Raises BadSetting.

    Those `elsewhere` are loaded by the workers alone.
    """
    factories = Agents({DEFAULT_AGENT: code_writing_agent.create_agent})
    for name, source in agents.items():
        if name in elsewhere:
            factories[name] = partial(_fail, RuntimeError(f"{name} is loaded by workers alone"))
            continue
        try:
            if (settings := _settings_of(source)) is not None:
                factory = factory_with(settings, _factory_of)
                factories.mcp_servers[name] = settings.mcp_servers
            else:
                factory = _factory_of(source)
            factories.code_imports |= _check(factory, _check_context(embedded))
        except Exception as error:
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise BadSetting(f"AGENTS has {name}={source}, which cannot work: {said}") from error
        factories[name] = factory
    return factories


def factories_of(agents: Mapping[str, str]) -> dict[str, AgentFactory]:
    """The same factories for a worker, unchecked: one that cannot be loaded fails its own runs alone."""
    factories: dict[str, AgentFactory] = {DEFAULT_AGENT: code_writing_agent.create_agent}
    code_writing_agent.prepare()
    for name, source in agents.items():
        try:
            factories[name] = _factory_of(source)
        except Exception as error:
            log.exception("the agent %s=%s cannot be loaded", name, source)
            factories[name] = partial(_fail, error)
    return factories


def _fail(error: Exception) -> MultiStepAgent:
    raise error


def _check(factory: AgentFactory, context: AgentContext) -> frozenset[str]:
    """Make two agents, which must not be one; returns what their code may import.

    Raises whatever the factory does, and TypeError.
    """
    first, second = (call_factory(factory, context) for _ in range(2))
    for agent in (first, second):
        getattr(agent, "cleanup", lambda: None)()
    if first is second:
        raise TypeError("it returned the same agent twice, and every run needs its own")
    imports = (getattr(agent, "additional_authorized_imports", ()) for agent in family_of(first))
    return frozenset(name.removesuffix(".*") for names in imports for name in names if name != "*")


def _settings_of(source: str) -> AgentSettings | None:
    path = Path(source)
    if path.suffix not in SUFFIXES:
        return None
    return read_agent_settings(path, os.environ)


def _factory_of(source: str) -> AgentFactory:
    folder = Path(source)
    if folder.is_dir():
        return lambda context: agent_from_folder(folder, context.model)
    module_name, colon, attribute = source.partition(":")
    if not colon or not attribute:
        raise ValueError("it is neither a folder nor of the form module:attribute")
    factory: Any = importlib.import_module(module_name)
    for part in attribute.split("."):
        factory = getattr(factory, part)
    if isinstance(factory, MultiStepAgent):
        raise TypeError(
            "it is an agent; give a function that makes one, since every run needs its own"
        )
    if not callable(factory):
        raise TypeError("it cannot be called")
    required = [
        parameter
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) > 1:
        raise TypeError("it takes more than one argument; it is called with the run's context")
    made: AgentFactory = factory
    return made


def agent_from_folder(folder: Path, model: Any) -> MultiStepAgent:
    """An agent that `agent.save()` wrote, with the run's model in place of its own.

    smolagents' own loader first makes the saved model, which fails without that model's key.
    """
    saved = json.loads((folder / "agent.json").read_text())
    agent_class = AGENT_CLASSES[saved["class"]]
    saved["model"] = {"class": PLACEHOLDER, "data": {}}
    saved["tools"] = [
        {"name": name, "code": (folder / "tools" / f"{name}.py").read_text()}
        for name in saved["tools"]
    ]
    managed = [
        agent_from_folder(folder / "managed_agents" / name, model)
        for name in saved["managed_agents"]
    ]
    saved["managed_agents"] = []
    return agent_class.from_dict(saved, model=model, managed_agents=managed)


class _Placeholder(Model):  # type: ignore[misc]
    """Stands for the saved model until the run's own takes its place."""


# The registry is smolagents' own way to make a model class known to its loader.
MODEL_REGISTRY.setdefault(PLACEHOLDER, _Placeholder)


def _check_context(embedded: bool) -> AgentContext:
    def make_model(**_options: Any) -> Any:
        return _Placeholder(model_id="check")

    return AgentContext(run_id="check", make_model=make_model, embedded=embedded)
