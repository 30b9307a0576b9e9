"""What an operator may set: environment variables and flags, checked before anything starts.

In: the environment and the command line; flags win. Out: one frozen `Settings`. A value that cannot
work raises `BadSetting`. `settings_table.py` lists them all.
"""

import argparse
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from sanitize.think import Mode
from server.api_keys import hashed, load_keys
from server.setting_values import BadSetting, Network
from server.settings_table import DEFAULT_AGENT, DEFAULT_MODEL, EMBEDDED_MODEL, SETTINGS
from server.store_address import default_address, is_shared_by_nature, missing_extra
from server.upstream_settings import (
    DEFAULT_NAME,
    NOTHINK,
    BadEntry,
    UpstreamEntry,
    UpstreamOptions,
    base_url,
    name_of,
    with_token,
)
from streaming.responses_route import ResponsesOption


@dataclass(frozen=True)
class Settings:
    """All settings, parsed. Seconds are floats; `on_disconnect` is in seconds, infinity for finish."""

    upstream_base: str | None
    token: str | None = field(repr=False)
    token_file: str | None = field(repr=False)  # what it holds
    model: str
    upstreams: tuple[UpstreamEntry, ...]
    port: int
    host: str
    unix_socket: str | None
    workers: int
    trusted_proxies: tuple[Network, ...]
    accel_redirect: tuple[str, ...]
    accel_key: str | None = field(repr=False)
    log_level: str
    agents: Mapping[str, str]
    unknown_model: str
    nothink_directive: str
    nothink_body: Mapping[str, Any]
    nothink_scrub: Mode
    upstream_responses: ResponsesOption
    think_tags: tuple[str, ...]
    think_starts_open: bool
    reasoning_format: str
    heartbeat_seconds: float
    padding_seconds: float
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
    max_paused: int
    tool_result_seconds: float
    plain_ui_tasks: bool
    idempotency_seconds: float
    runner: str
    process_memory_bytes: int
    process_cpu_seconds: int
    ray_address: str | None
    ray_auth_token: str | None = field(repr=False)
    ray_options: Mapping[str, Mapping[str, Any]]
    ray_listen: tuple[str | None, int]
    jail: str
    warm_jails: int
    jail_memory_bytes: int
    on_disconnect: float
    drain_seconds: float
    reload_seconds: float
    max_body_bytes: int
    api_keys: tuple[str, ...] = field(repr=False)  # their hashes
    api_keys_file: str | None
    operator_keys: tuple[str, ...] = field(repr=False)  # their hashes
    metrics_public: bool
    page: bool
    cors_origins: tuple[str, ...]
    image_urls: bool
    store: str = field(repr=False)  # may hold a password
    store_shared: bool | None
    store_days: float
    store_max_bytes: int
    resume_seconds: float
    front_end_seconds: float
    advertise_url: str | None
    head_seconds: float
    log_format: str
    otlp_endpoint: str | None
    trace_content: bool

    @property
    def embedded(self) -> bool:
        """No upstream is set for the agents: the embedded model serves as one."""
        return (
            self.upstream_base is None
            and self.model == EMBEDDED_MODEL
            and not any(EMBEDDED_MODEL in entry.models for entry in self.upstreams)
        )

    @property
    def is_store_shared(self) -> bool:
        """The servers over one store act as one."""
        shared = self.store_shared
        return is_shared_by_nature(self.store) if shared is None else shared

    @property
    def agents_elsewhere(self) -> frozenset[str]:
        """Agents whose package only their workers need to have, which Ray brings there."""
        if self.runner != "ray":
            return frozenset()
        return frozenset(
            agent
            for agent in self.agents
            if any("runtime_env" in self.ray_options.get(name, {}) for name in ("*", agent))
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
            responses=self.upstream_responses,
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
            responses=entry.responses or self.upstream_responses,
        )


def secrets_of(settings: Settings) -> tuple[str, ...]:
    """What must appear in no log."""
    known = settings.upstream_options()
    tokens = [options.token for options in known]
    passwords = [urlsplit(options.base).password for options in known if options.base]
    store = urlsplit(settings.store or "").password
    others = (settings.ray_auth_token, settings.accel_key, store)
    return tuple(secret for secret in (*tokens, *passwords, *others) if secret)


def make_settings(**values: Any) -> Settings:
    """Settings with the table's defaults where `values` has none. Raises BadSetting."""
    settings = Settings(**{setting.attribute: setting.default for setting in SETTINGS} | values)
    if settings.token is None and settings.token_file is not None:
        settings = replace(settings, token=settings.token_file)
    settings = replace(
        settings,
        api_keys=hashed(settings.api_keys),
        operator_keys=hashed(settings.operator_keys),
    )
    try:
        load_keys(settings.api_keys, settings.api_keys_file, settings.operator_keys)
    except BadEntry as error:
        raise BadSetting(f"API_KEYS_FILE{error}") from None
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
    if settings.accel_redirect:
        _check_accel(settings)
    if settings.runner == "ray":
        _check_ray(settings)
    if settings.store is not None and (extra := missing_extra(settings.store)) is not None:
        scheme = settings.store.partition(":")[0]
        raise BadSetting(
            f"STORE is {scheme}:… and its client is not installed: pip install 'smolgate[{extra}]'"
        )
    return settings


def _check_accel(settings: Settings) -> None:
    """Raises BadSetting where nginx cannot be handed requests."""
    known = [options.name for options in settings.upstream_options() if options.base is not None]
    for name in settings.accel_redirect:
        if name not in known:
            allowed = ", ".join(known) or "nothing: no upstream is set"
            raise BadSetting(f"ACCEL_REDIRECT has {name!r}; allowed is {allowed}")
    if settings.accel_key is None or not settings.trusted_proxies:
        raise BadSetting(
            "ACCEL_REDIRECT is set, and ACCEL_KEY or TRUSTED_PROXIES is not: who is no nginx of yours would "
            "be told the upstream's token"
        )


def _check_ray(settings: Settings) -> None:
    """Raises BadSetting where runs cannot be had from a cluster."""
    if importlib.util.find_spec("ray") is None:
        raise BadSetting("RUNNER is 'ray' and Ray is not installed: pip install 'smolgate[ray]'")
    if settings.ray_address is None:
        raise BadSetting("RUNNER is 'ray' and RAY_ADDRESS is not set; allowed is host:port")
    if settings.workers > 1 and settings.ray_listen[1]:
        raise BadSetting(
            f"RAY_LISTEN has port {settings.ray_listen[1]}, and each of {settings.workers} workers needs one "
            "of its own; allowed with WORKERS is port 0"
        )
    if settings.ray_auth_token is None:
        raise BadSetting(
            "RUNNER is 'ray' and RAY_AUTH_TOKEN is not set; a cluster without a token runs "
            "anybody's code"
        )
    for agent in settings.ray_options:
        if agent not in ("*", DEFAULT_AGENT, *settings.agents):
            raise BadSetting(f"RAY_OPTIONS has {agent!r}; allowed are agents' ids and *")


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
    values.setdefault("store", default_address(environment))
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
        epilog="Each setting is also read from the environment variable in brackets; flags win. Other commands, each with --help: smolgate chat, smolgate doctor, smolgate new-key.",
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
