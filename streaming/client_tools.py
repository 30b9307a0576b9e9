"""Tools that the client executes → tools of the agent.

In: their specs and a way to ask the client. Out: smolagents tools whose call blocks the run's thread until
the client sent the result. Arguments are checked before anybody is asked: names and their number always,
the whole schema where it is `strict`.
"""

import builtins
import json
import keyword
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from smolagents import CodeAgent, MultiStepAgent, Tool, ToolCallingAgent
from smolagents.tools import AUTHORIZED_TYPES

from streaming.cancellation import StopSignal
from streaming.failures import InvalidRequest
from streaming.run_spec import CalledTool, ClientToolSpec
from streaming.schema_check import check_schema, misfit

# Blocks the calling thread until the client sent the result of a call.
AskClient = Callable[[CalledTool], str]

# Calls of one step that a ToolCallingAgent makes at once, where its author set no number.
MAX_AT_ONCE = 64
SECTION = "You also have these functions; use them where they help:"


class ClientTool(Tool):  # type: ignore[misc]  # smolagents is untyped
    """One tool. `name` is the client's, made a Python name; `function_schema` the client's own words."""

    skip_forward_signature_validation = True
    name = "client_tool"
    description = ""
    inputs: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - smolagents' own shape of a tool
    output_type = "any"

    def __init__(
        self, spec: ClientToolSpec, ask: AskClient, stop: StopSignal, *, parses: bool
    ) -> None:
        self.name = python_name(spec.name)
        self.description = spec.description or f"Calls {spec.name}."
        self.inputs = _inputs(spec)
        self.function_schema = {
            "name": self.name,
            "description": self.description,
            "parameters": spec.parameters or {"type": "object", "properties": {}},
        }
        super().__init__()
        self._spec = spec
        self._ask = ask
        self._stop = stop
        self._parses = parses

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The result: text; for code what is a JSON object or list as such.

        Raises TypeError and ValueError for arguments that cannot be sent, for the agent to mend.
        """
        arguments = self._bound(args, kwargs)
        try:
            encoded = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.name}() takes only what JSON can say: {error}") from None
        if self._spec.strict:
            wrong = misfit(json.loads(encoded), self._spec.parameters, self._stop)
            if wrong is not None:
                raise ValueError(f"the arguments of {self.name}() do not fit: {wrong}")
        call_id = f"call_{secrets.token_hex(12)}"
        result = self._ask(CalledTool(call_id, self._spec.name, encoded))
        return _parsed(result) if self._parses else result

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        names = list(self.inputs)
        if len(args) > len(names):
            raise TypeError(f"{self.name}() takes at most {len(names)} arguments")
        given = dict(zip(names, args, strict=False))
        if doubled := given.keys() & kwargs.keys():
            raise TypeError(f"{self.name}() got {', '.join(sorted(doubled))} twice")
        given |= kwargs
        open_ended = self._spec.parameters.get("additionalProperties", False) is not False
        if not open_ended and (unknown := given.keys() - set(names)):
            raise TypeError(f"{self.name}() has no argument {', '.join(sorted(unknown))}")
        missing = [name for name in _required(self._spec) if name not in given]
        if missing:
            raise TypeError(f"{self.name}() needs {', '.join(missing)}")
        return given


def offer_tools(
    agent: MultiStepAgent, specs: Sequence[ClientToolSpec], ask: AskClient, stop: StopSignal
) -> None:
    """Give them to a fresh agent, beside its own. Raises InvalidRequest where that cannot be."""
    for spec in specs:
        if spec.strict:
            check_schema(spec.parameters, f"tools.{spec.name}.parameters", stop)
        tool = ClientTool(spec, ask, stop, parses=isinstance(agent, CodeAgent))
        if tool.name in agent.tools or tool.name in agent.managed_agents:
            raise InvalidRequest(
                f"'tools' has {spec.name!r}, and the agent has a tool of that name itself.",
                param="tools",
            )
        agent.tools[tool.name] = tool
    if isinstance(agent, ToolCallingAgent) and agent.max_tool_threads is None:
        agent.max_tool_threads = MAX_AT_ONCE  # each of a step's calls waits in a thread
    _tell_of_tools(agent, [agent.tools[python_name(spec.name)] for spec in specs])


def _tell_of_tools(agent: MultiStepAgent, tools: Sequence[ClientTool]) -> None:
    """An agent whose system prompt was made beforehand does not list them. They are added to the prompt
    and not to its template: a client's words are no template.
    """
    if not isinstance(agent, CodeAgent):
        return  # its model gets them as tools
    make_prompt = agent.initialize_system_prompt
    prompts = [tool.to_code_prompt() for tool in tools]
    prompt = make_prompt()
    if all(told in prompt for told in prompts):
        return
    opening, closing = agent.code_block_tags
    section = "\n\n".join([f"{SECTION}\n{opening}", *prompts, closing])
    agent.initialize_system_prompt = lambda: f"{make_prompt()}\n\n{section}"


def python_name(name: str) -> str:
    """A name that code can call, and that hides nothing."""
    name = re.sub(r"\W", "_", name)
    if name[0].isdigit():
        name = f"_{name}"
    return f"{name}_" if keyword.iskeyword(name) or hasattr(builtins, name) else name


def _inputs(spec: ClientToolSpec) -> dict[str, dict[str, Any]]:
    required = _required(spec)
    return {
        name: {
            "type": _type(schema),
            "description": _description(schema),
            **({} if name in required else {"nullable": True}),
        }
        for name, schema in spec.parameters.get("properties", {}).items()
    }


def _required(spec: ClientToolSpec) -> list[str]:
    required = spec.parameters.get("required")
    return (
        [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    )


def _type(schema: Any) -> str | list[str]:
    kind = schema.get("type") if isinstance(schema, dict) else None
    kinds = [str(one) for one in (kind if isinstance(kind, list) else [kind])]
    if not kinds or any(one not in AUTHORIZED_TYPES for one in kinds):
        return "any"
    return kinds if len(kinds) > 1 else kinds[0]


def _description(schema: Any) -> str:
    """Its own words, and as much of the schema as these leave open."""
    if not isinstance(schema, dict):
        return ""
    said = str(schema.get("description", ""))
    rest = {
        key: value for key, value in schema.items() if key not in {"type", "description", "title"}
    }
    return f"{said} {json.dumps(rest)}".strip() if rest else said


def _parsed(result: str) -> Any:
    if result.lstrip()[:1] not in {"{", "["}:
        return result
    try:
        return json.loads(result)
    except (ValueError, RecursionError):
        return result
