"""The `UPSTREAMS` setting: a JSON list, or a path to one → what is known of each upstream.

In: text. Out: `UpstreamEntry`s, as the operator wrote them, checked. Raises `BadEntry`, which says where,
what value and what is allowed; a token is never shown. `UpstreamOptions` are entries with the defaults
of the other settings filled in.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from sanitize.think import Mode
from streaming.responses_route import ResponsesOption

NOTHINK = "-nothink"


class BadEntry(ValueError):
    """An entry that cannot work; the text goes on from the setting's name."""


class UpstreamEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One element of the list. A model is an exact id, or a prefix followed by `*`."""

    models: list[str]
    base: str
    name: str | None = None
    token: str | None = None
    token_env: str | None = None
    token_file: str | None = None
    strip_prefix: str = ""
    nothink_directive: str | None = None
    nothink_body: dict[str, Any] = {}
    scrub: Mode | None = None
    starts_open: bool | None = None
    responses: ResponsesOption | None = None

    def __repr__(self) -> str:
        return f"UpstreamEntry(models={self.models}, base={self.base!r})"


@dataclass(frozen=True)
class UpstreamOptions:
    """What is known of one upstream. `base` is None for the embedded model."""

    name: str
    models: tuple[str, ...]
    base: str | None
    token: str | None = field(repr=False)
    strip_prefix: str
    nothink_directive: str
    nothink_body: Mapping[str, Any]
    scrub: Mode
    starts_open: bool
    responses: ResponsesOption = "auto"

    @property
    def has_prefixes(self) -> bool:
        return any(model.endswith("*") for model in self.models)

    def serves(self, model: str) -> bool:
        return any(matches(pattern, model) for pattern in self.models)


def matches(pattern: str, model: str) -> bool:
    if pattern.endswith("*"):
        return len(model) >= len(pattern) and model.startswith(pattern[:-1])
    return model == pattern


def base_url(text: str) -> str:
    """Raises ValueError for what is no URL of an upstream."""
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError
    _ = parts.port  # raises ValueError for what is no port
    return text.rstrip("/")


def parse_upstreams(text: str) -> tuple[UpstreamEntry, ...]:
    """Raises BadEntry."""
    if not text.lstrip().startswith(("[", "{")):
        if "://" in text:  # there may be a password in it
            raise BadEntry(" is an address; allowed is a JSON list or the path of one")
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, ValueError):
            raise BadEntry(
                f" is {text!r}, which cannot be read; allowed is a JSON list or the path of one"
            ) from None
    try:
        entries = msgspec.json.decode(text, type=list[UpstreamEntry])
    except msgspec.ValidationError as error:
        said, _, where = str(error).partition(" - at `$")
        raise BadEntry(
            f"{where.rstrip('`')} does not fit: {said[:1].lower()}{said[1:]}; allowed is what "
            "docs/upstreams.md lists"
        ) from None
    except (msgspec.DecodeError, RecursionError):
        raise BadEntry(" is no valid JSON; allowed is a JSON list or the path of one") from None
    if not entries:
        raise BadEntry(" is an empty list; allowed are one or more upstreams")
    names = [name_of(entry, index) for index, entry in enumerate(entries)]
    for index, entry in enumerate(entries):
        _check(entry, f"[{index}]")
        if names[index] in (*names[:index], DEFAULT_NAME):
            raise BadEntry(
                f"[{index}].name is {names[index]!r}; allowed is a name of its own, "
                f"not {DEFAULT_NAME!r}"
            )
    return tuple(entries)


# What the upstream of UPSTREAM_OPENAI_BASE, or the embedded model, is called.
DEFAULT_NAME = "default"


def name_of(entry: UpstreamEntry, index: int) -> str:
    return entry.name or f"upstream-{index + 1}"


def _check(entry: UpstreamEntry, where: str) -> None:
    try:
        base_url(entry.base)
    except ValueError:
        shown = "(hidden)" if "@" in entry.base else repr(entry.base)
        raise BadEntry(
            f"{where}.base is {shown}; allowed is an http or https URL, with the upstream's /v1"
        ) from None
    if not entry.models:
        raise BadEntry(f"{where}.models is empty; allowed are ids, and prefixes as 'prefix/*'")
    for model in entry.models:
        if not re.fullmatch(r"[^\s*]*\*|[^\s*]+", model):
            raise BadEntry(
                f"{where}.models has {model!r}; allowed are ids, and prefixes as 'prefix/*'"
            )
        if not model.startswith(entry.strip_prefix):
            raise BadEntry(
                f"{where}.strip_prefix is {entry.strip_prefix!r}; allowed is what all its models "
                f"begin with, and {model!r} does not"
            )
        if model == entry.strip_prefix:
            raise BadEntry(f"{where}.strip_prefix is {model!r}; allowed is less than a whole id")
    if entry.name is not None and not re.fullmatch(r"[\w.:/-]{1,64}", entry.name):
        raise BadEntry(f"{where}.name is {entry.name!r}; allowed are letters, digits and . _ : / -")
    given = [entry.token, entry.token_env, entry.token_file]
    if sum(one is not None for one in given) > 1:
        raise BadEntry(
            f"{where} has more than one of token, token_env and token_file; allowed is one of them"
        )
    if entry.token is not None and not _can_be_sent(entry.token):
        raise BadEntry(f"{where}.token is (hidden); allowed is printable ASCII without blanks")


def _can_be_sent(token: str) -> bool:
    return re.fullmatch(r"[!-~]+", token) is not None


def with_token(entry: UpstreamEntry, index: int, environment: Mapping[str, str]) -> UpstreamEntry:
    """The entry with the token that it only names. Raises BadEntry where there is none."""
    if entry.token_file is not None:
        try:
            token = Path(entry.token_file).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            token = ""
        if not _can_be_sent(token):
            raise BadEntry(
                f"[{index}].token_file is {entry.token_file!r}; allowed is a file that holds a token"
            )
        return msgspec.structs.replace(entry, token=token, token_file=None)
    if entry.token_env is None:
        return entry
    token = environment.get(entry.token_env, "").strip()
    if not _can_be_sent(token):
        raise BadEntry(
            f"[{index}].token_env is {entry.token_env!r}; allowed is an environment variable that "
            "holds a token"
        )
    return msgspec.structs.replace(entry, token=token, token_env=None)


def parse_object(text: str) -> dict[str, Any]:
    """A JSON object. Raises ValueError."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise ValueError from None
    if not isinstance(value, dict):
        raise ValueError
    return value
