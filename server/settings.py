"""What an operator may set: environment variables and flags, checked before anything starts.

In: the environment and the command line; flags win. Out: one frozen `Settings`. A value that cannot
work raises `BadSetting`, which says the name, the value and what is allowed. The table `SETTINGS` is
the single list of them all: flags, `--help` and the README's table come from it.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sanitize.think import Mode
from server.upstream_settings import (
    DEFAULT_NAME,
    NOTHINK,
    BadEntry,
    UpstreamEntry,
    UpstreamOptions,
    base_url,
    name_of,
    parse_object,
    parse_upstreams,
    with_token,
)

EMBEDDED_MODEL = "SmolLM2-135M-Instruct"
DEFAULT_MODEL = "Qwen/Qwen3-1.7B"
DEFAULT_AGENT = "code-writing-agent"


class BadSetting(ValueError):
    """A setting that cannot work, as one line."""


@dataclass(frozen=True)
class Setting:
    """One row of the table. `names` are its environment variables, the first that is set counts.

    `parse` takes the text and raises ValueError; `allowed` says what it takes.
    """

    attribute: str
    names: tuple[str, ...]
    default: Any
    parse: Callable[[str], Any]
    allowed: str
    meaning: str
    shown_default: str | None = None

    @property
    def flag(self) -> str:
        return "--" + self.names[0].lower().replace("_", "-")

    def read(self, text: str, source: str) -> Any:
        try:
            return self.parse(text)
        except BadEntry as error:
            raise BadSetting(f"{source}{error}") from None
        except ValueError:
            shown = "(hidden)" if self.attribute in SECRETS else repr(text)
            raise BadSetting(f"{source} is {shown}; allowed is {self.allowed}") from None


SECRETS = frozenset({"token", "api_keys"})


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


def _seconds(low: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value < 1e9:
            raise ValueError
        return value

    return parse


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError
        return text.lower()

    return parse


def _log_level(text: str) -> str:
    return _one_of("debug", "info", "warning", "error", "critical")(text).upper()


def _switch(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[
        _one_of("1", "true", "yes", "0", "false", "no")(text)
    ]


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError
    return text.strip()


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in text.split(","))
    if not all(re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name) for name in names):
        raise ValueError
    return names


def _keys(text: str) -> tuple[str, ...]:
    keys = tuple(key.strip() for key in text.split(",") if key.strip())
    if not keys or not all(key.isascii() and key.isprintable() for key in keys):
        raise ValueError
    return keys


def _agents(text: str) -> dict[str, str]:
    agents: dict[str, str] = {}
    for entry in text.split(","):
        name, equals, source = (part.strip() for part in entry.partition("="))
        if not equals or not source or not re.fullmatch(r"[A-Za-z0-9][\w./:-]*", name):
            raise ValueError
        if name in agents:
            raise ValueError
        agents[name] = source
    return agents


def leave_policy(text: str) -> float:
    """Seconds that a run may go on after its client left: 0 for cancel, infinity for finish."""
    if text in LEAVE_POLICIES:
        return LEAVE_POLICIES[text]
    return _seconds(0)(text)


LEAVE_POLICIES = {"cancel": 0.0, "finish": float("inf")}

SETTINGS = (
    Setting(
        "upstream_base",
        ("UPSTREAM_OPENAI_BASE",),
        None,
        base_url,
        "an http or https URL, with the upstream's /v1",
        "base URL of the upstream, with its `/v1`",
        "none: the embedded model",
    ),
    Setting(
        "token",
        ("HF_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "API_TOKEN"),
        None,
        _text,
        "a non-empty text",
        "bearer token for the upstream",
        "none",
    ),
    Setting(
        "model",
        ("AGENT_MODEL",),
        None,
        _text,
        "a model id",
        "the upstream model, for agents and relay",
        f"{DEFAULT_MODEL}; embedded: {EMBEDDED_MODEL}",
    ),
    Setting(
        "upstreams",
        ("UPSTREAMS",),
        (),
        parse_upstreams,
        "a JSON list, or the path of one",
        "more upstreams: a JSON list, or the path of one (see docs/upstreams.md)",
        "none",
    ),
    Setting("port", ("PORT",), 8000, _whole(0, 65535), "0 to 65535", "port it listens on"),
    Setting("host", ("HOST",), "127.0.0.1", _text, "an address", "address it listens on"),
    Setting(
        "unix_socket",
        ("UNIX_SOCKET",),
        None,
        _text,
        "a path",
        "listen on this unix socket instead of host and port",
        "none",
    ),
    Setting(
        "log_level",
        ("LOG_LEVEL",),
        "INFO",
        _log_level,
        "DEBUG, INFO, WARNING, ERROR or CRITICAL",
        "what is logged",
    ),
    Setting(
        "agents",
        ("AGENTS",),
        {},
        _agents,
        "id=module:attribute or id=path/to/saved/folder, by commas, each id once",
        f"more agents beside `{DEFAULT_AGENT}`: `id=module:attr` or `id=path/to/saved/folder`, by commas",
        f"`{DEFAULT_AGENT}` alone",
    ),
    Setting(
        "unknown_model",
        ("UNKNOWN_MODEL",),
        "agent",
        _one_of("agent", "reject"),
        "agent or reject",
        "a model id that nobody has: the default agent answers, or 404",
    ),
    Setting(
        "nothink_directive",
        ("NOTHINK_DIRECTIVE",),
        "/nothink",
        str,
        "any text",
        "line added to user messages of `…-nothink`",
    ),
    Setting(
        "nothink_body",
        ("NOTHINK_BODY",),
        {},
        parse_object,
        "a JSON object",
        'merged into the bodies of `…-nothink`: the switch at the source, as `{"reasoning_effort": "none"}`',
        "none",
    ),
    Setting(
        "nothink_scrub",
        ("NOTHINK_SCRUB",),
        "tags",
        _one_of("tags", "block", "reasoning"),
        "tags, block or reasoning",
        "what is scrubbed from replies of `…-nothink`: the tags, the tags and what they enclose, or the tags, what they enclose being moved to the reasoning fields",
    ),
    Setting(
        "think_tags",
        ("THINK_TAGS",),
        ("think", "thank"),
        _names,
        "names of letters, digits and underscores, by commas",
        "names of think tags",
        "think,thank",
    ),
    Setting(
        "think_starts_open",
        ("THINK_STARTS_OPEN",),
        False,
        _switch,
        "0 or 1",
        "1: the upstream's replies begin inside a think block",
        "0",
    ),
    Setting(
        "reasoning_format",
        ("REASONING_FORMAT",),
        "deepseek-legacy",
        _one_of("deepseek-legacy", "deepseek", "think_tags", "none"),
        "deepseek-legacy, deepseek, think_tags or none",
        "where an agent's reasoning goes (see Reasoning)",
    ),
    Setting(
        "heartbeat_seconds",
        ("HEARTBEAT_SECONDS",),
        15.0,
        _seconds(0.01),
        "a number of seconds above 0",
        "a silent stream gets a comment this often",
        "15",
    ),
    Setting(
        "max_running",
        ("MAX_RUNNING",),
        32,
        _whole(1, 100_000),
        "1 to 100000",
        "agent runs at one time",
    ),
    Setting(
        "max_queued",
        ("MAX_QUEUED",),
        128,
        _whole(0, 1_000_000),
        "0 to 1000000",
        "runs that wait for a place; more are refused with 429",
    ),
    Setting(
        "queue_seconds",
        ("QUEUE_SECONDS",),
        30.0,
        _seconds(0),
        "a number of seconds",
        "how long a run may wait for a place",
        "30",
    ),
    Setting(
        "run_seconds",
        ("RUN_SECONDS",),
        600.0,
        _seconds(0.01),
        "a number of seconds above 0",
        "deadline of a run",
        "600",
    ),
    Setting(
        "step_seconds",
        ("STEP_SECONDS",),
        60.0,
        _seconds(0.01),
        "a number of seconds above 0",
        "deadline of the code of one step",
        "60",
    ),
    Setting(
        "first_token_seconds",
        ("FIRST_TOKEN_SECONDS",),
        300.0,
        _seconds(0.01),
        "a number of seconds above 0",
        "how long the upstream may take to an agent's first token",
        "300",
    ),
    Setting(
        "token_idle_seconds",
        ("TOKEN_IDLE_SECONDS",),
        60.0,
        _seconds(0.01),
        "a number of seconds above 0",
        "how long the upstream may be silent between an agent's tokens",
        "60",
    ),
    Setting(
        "connect_seconds",
        ("CONNECT_SECONDS",),
        10.0,
        _seconds(0.01),
        "a number of seconds above 0",
        "how long a connection to an upstream may take to be made",
        "10",
    ),
    Setting(
        "relay_first_byte_seconds",
        ("RELAY_FIRST_BYTE_SECONDS",),
        600.0,
        _seconds(0.01),
        "a number of seconds above 0",
        "how long an upstream may take to the first byte of a relayed reply",
        "600",
    ),
    Setting(
        "relay_idle_seconds",
        ("RELAY_IDLE_SECONDS",),
        300.0,
        _seconds(0.01),
        "a number of seconds above 0",
        "how long an upstream may be silent within a relayed reply",
        "300",
    ),
    Setting(
        "retries",
        ("RETRIES",),
        1,
        _whole(0, 10),
        "0 to 10",
        "how often an upstream that took nothing of a request is asked again, once the others of the id were",
    ),
    Setting(
        "retry_seconds",
        ("RETRY_SECONDS",),
        5.0,
        _seconds(0),
        "a number of seconds",
        "how long after a request came an upstream may be asked again",
        "5",
    ),
    Setting(
        "breaker_failures",
        ("BREAKER_FAILURES",),
        5,
        _whole(0, 1_000_000),
        "0 to 1000000",
        "an upstream that failed this often in a row is left alone for a while; 0: never",
    ),
    Setting(
        "breaker_seconds",
        ("BREAKER_SECONDS",),
        10.0,
        _seconds(0.01),
        "a number of seconds above 0",
        "how long it is left alone",
        "10",
    ),
    Setting(
        "stall_seconds",
        ("STALL_SECONDS",),
        60.0,
        _seconds(0.01),
        "a number of seconds above 0",
        "how long a client may take nothing of its stream before it is given up",
        "60",
    ),
    Setting(
        "max_per_key",
        ("MAX_PER_KEY",),
        0,
        _whole(0, 1_000_000),
        "0 to 1000000",
        "runs of one API key at one time, the waiting ones included; 0: no limit",
    ),
    Setting(
        "idempotency_seconds",
        ("IDEMPOTENCY_SECONDS",),
        600.0,
        _seconds(0),
        "a number of seconds",
        "how long a finished run is replayed to its `Idempotency-Key`",
        "600",
    ),
    Setting(
        "jail",
        ("JAIL",),
        "auto",
        _one_of("auto", "required", "off"),
        "auto, required or off",
        "where model-written code runs: in a confined process if possible, always (or no start), or in the server itself",
    ),
    Setting(
        "warm_jails",
        ("WARM_JAILS",),
        2,
        _whole(0, 1000),
        "0 to 1000",
        "jails kept ready ahead of demand",
    ),
    Setting(
        "jail_memory_bytes",
        ("JAIL_MEMORY_BYTES",),
        2 << 30,
        _whole(1 << 28, 1 << 50),
        "268435456 or more",
        "address space of one jail, of which Python takes a few hundred MB",
        "2 GiB",
    ),
    Setting(
        "on_disconnect",
        ("ON_DISCONNECT",),
        0.0,
        leave_policy,
        "cancel, finish or a number of grace seconds",
        "what becomes of a run whose client leaves: `cancel`, `finish`, or seconds of grace; header `X-On-Disconnect` per request",
        "cancel",
    ),
    Setting(
        "drain_seconds",
        ("DRAIN_SECONDS",),
        10.0,
        _seconds(0),
        "a number of seconds",
        "how long runs may still take after SIGTERM",
        "10",
    ),
    Setting(
        "max_body_bytes",
        ("MAX_BODY_BYTES",),
        16 << 20,
        _whole(1024, 1 << 40),
        "1024 or more",
        "largest request body",
        "16 MiB",
    ),
    Setting(
        "api_keys",
        ("API_KEYS",),
        (),
        _keys,
        "keys by commas",
        "callers must send one of these as a bearer token",
        "none: open",
    ),
)


@dataclass(frozen=True)
class Settings:
    """All settings, parsed. Seconds are floats; `on_disconnect` is in seconds, infinity for finish."""

    upstream_base: str | None
    token: str | None = field(repr=False)
    model: str
    upstreams: tuple[UpstreamEntry, ...]
    port: int
    host: str
    unix_socket: str | None
    log_level: str
    agents: Mapping[str, str]
    unknown_model: str
    nothink_directive: str
    nothink_body: Mapping[str, Any]
    nothink_scrub: Mode
    think_tags: tuple[str, ...]
    think_starts_open: bool
    reasoning_format: str
    heartbeat_seconds: float
    max_running: int
    max_queued: int
    queue_seconds: float
    run_seconds: float
    step_seconds: float
    first_token_seconds: float
    token_idle_seconds: float
    connect_seconds: float
    relay_first_byte_seconds: float
    relay_idle_seconds: float
    retries: int
    retry_seconds: float
    breaker_failures: int
    breaker_seconds: float
    stall_seconds: float
    max_per_key: int
    idempotency_seconds: float
    jail: str
    warm_jails: int
    jail_memory_bytes: int
    on_disconnect: float
    drain_seconds: float
    max_body_bytes: int
    api_keys: tuple[str, ...] = field(repr=False)

    @property
    def embedded(self) -> bool:
        """No upstream is set for the agents: the embedded model serves as one."""
        return (
            self.upstream_base is None
            and self.model == EMBEDDED_MODEL
            and not any(EMBEDDED_MODEL in entry.models for entry in self.upstreams)
        )

    def upstream_options(self) -> tuple[UpstreamOptions, ...]:
        """All upstreams in order: first that of UPSTREAM_OPENAI_BASE, or the embedded model."""
        default = UpstreamOptions(
            name=DEFAULT_NAME,
            models=(self.model,),
            base=self.upstream_base,
            token=self.token,
            strip_prefix="",
            nothink_directive=self.nothink_directive,
            nothink_body=self.nothink_body,
            scrub=self.nothink_scrub,
            starts_open=self.think_starts_open,
        )
        others = tuple(self._options_of(entry, i) for i, entry in enumerate(self.upstreams))
        return others if self.upstream_base is None and not self.embedded else (default, *others)

    def _options_of(self, entry: UpstreamEntry, index: int) -> UpstreamOptions:
        directive, scrub, starts_open = entry.nothink_directive, entry.scrub, entry.starts_open
        return UpstreamOptions(
            name=name_of(entry, index),
            models=tuple(entry.models),
            base=base_url(entry.base),
            token=entry.token,
            strip_prefix=entry.strip_prefix,
            nothink_directive=self.nothink_directive if directive is None else directive,
            nothink_body=entry.nothink_body,
            scrub=self.nothink_scrub if scrub is None else scrub,
            starts_open=self.think_starts_open if starts_open is None else starts_open,
        )


def make_settings(**values: Any) -> Settings:
    """Settings with the table's defaults where `values` has none. Raises BadSetting."""
    settings = Settings(**{setting.attribute: setting.default for setting in SETTINGS} | values)
    if settings.model is None:
        model = EMBEDDED_MODEL if settings.upstream_base is None else DEFAULT_MODEL
        settings = replace(settings, model=model)
    served = {model for entry in settings.upstreams for model in entry.models}
    if not any(options.serves(settings.model) for options in settings.upstream_options()):
        allowed = ", ".join([EMBEDDED_MODEL, *sorted(served)])
        raise BadSetting(
            f"AGENT_MODEL is {settings.model!r} but UPSTREAM_OPENAI_BASE is not set; "
            f"allowed is {allowed}, or set UPSTREAM_OPENAI_BASE"
        )
    for agent in (DEFAULT_AGENT, *settings.agents):
        if {agent, agent.removesuffix(NOTHINK)} & served:
            raise BadSetting(f"UPSTREAMS has {agent!r}; allowed are ids that no agent has")
    return settings


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """The settings of a command line and an environment. Raises BadSetting; `--help` exits."""
    flags = vars(_parser().parse_args(arguments))
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        if (text := flags[setting.attribute]) is not None:
            values[setting.attribute] = setting.read(text, setting.flag)
            continue
        for name in setting.names:
            # An empty variable is an unset one, as deployment files tend to have it.
            if text := environment.get(name, ""):
                values[setting.attribute] = setting.read(text, name)
                break
    entries: tuple[UpstreamEntry, ...] = values.get("upstreams", ())
    try:
        values["upstreams"] = tuple(
            with_token(entry, index, environment) for index, entry in enumerate(entries)
        )
    except BadEntry as error:
        raise BadSetting(f"UPSTREAMS{error}") from None
    return make_settings(**values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Serves smolagents agents, and an upstream's models, as OpenAI models.",
        epilog="Each setting is also read from the environment variable in brackets; flags win.",
        allow_abbrev=False,
    )
    for setting in SETTINGS:
        default = setting.shown_default or setting.default
        parser.add_argument(
            setting.flag,
            dest=setting.attribute,
            metavar="VALUE",
            help=f"{setting.meaning} [{', '.join(setting.names)}] (default: {default})".replace(
                "%", "%%"
            ),
        )
    return parser
