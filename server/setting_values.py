"""What one setting takes: its names, and from text to a value.

In: the text of an environment variable or a flag. Out: the value, or `BadSetting`, one line that says the
name, the value (secrets apart) and what is allowed.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Literal

from server.upstream_settings import BadEntry

# What a caller's address may lie in; "unix" is the unix socket's other end.
Network = IPv4Network | IPv6Network | Literal["unix"]


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
            is_secret = self.attribute in SECRETS or ("://" in text and "@" in text)
            shown = "(hidden)" if is_secret else repr(text)
            raise BadSetting(f"{source} is {shown}; allowed is {self.allowed}") from None


SECRETS = frozenset({"token", "api_keys", "operator_keys", "ray_auth_token", "store", "accel_key"})


def whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


def seconds(low: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value < 1e9:
            raise ValueError
        return value

    return parse


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError
        return text.lower()

    return parse


def log_level(text: str) -> str:
    return one_of("debug", "info", "warning", "error", "critical")(text).upper()


def switch(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[
        one_of("1", "true", "yes", "0", "false", "no")(text)
    ]


def plain_text(text: str) -> str:
    if not text.strip():
        raise ValueError
    return text.strip()


def tag_names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in text.split(","))
    if not all(re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name) for name in names):
        raise ValueError
    return names


def origins(text: str) -> tuple[str, ...]:
    """Origins by commas, or `*`."""
    found = tuple(part.strip().rstrip("/") for part in text.split(",") if part.strip())
    pattern = r"[a-z][a-z0-9+.-]*://[^\s/@?#,]+"
    if not found or (found != ("*",) and not all(re.fullmatch(pattern, one) for one in found)):
        raise ValueError
    return found


def secret_file(text: str) -> str:
    """The secret that a file holds. Raises BadEntry."""
    try:
        secret = Path(text).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        raise BadEntry(f" is {text!r}, which cannot be read; allowed is a file") from None
    if not re.fullmatch(r"[!-~]+", secret):
        raise BadEntry(f" is {text!r}; allowed is a file of one line, printable ASCII")
    return secret


def networks(text: str) -> tuple[Network, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    return tuple("unix" if name == "unix" else ip_network(name) for name in names)


def location_names(text: str) -> tuple[str, ...]:
    """Names by commas that may be part of a location's name in nginx."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names):
        raise ValueError
    return names


def proof(text: str) -> str:
    """A secret that needs no quotes in a configuration file."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,}", text):
        raise ValueError
    return text


def agents(text: str) -> dict[str, str]:
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
    return seconds(0)(text)


LEAVE_POLICIES = {"cancel": 0.0, "finish": float("inf")}
