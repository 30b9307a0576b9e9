"""The head of a request or a reply, as HTTP/1 writes it."""

import re
from collections.abc import Iterable, Mapping

from streaming.failures import InvalidRequest

Pairs = Iterable[tuple[str, str]]

# RFC 9110, 6.4.1: a response of these statuses has no body, whatever its headers say.
NO_BODY = frozenset({204, 205, 304})

_line = ": ".join
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def head_of(line: str, headers: Pairs, end: str = "\r\n") -> bytes:
    """An HTTP head. Raises InvalidRequest for headers in which a line ends."""
    lines = [*map(_line, headers), ""]
    text = "".join(lines)
    if "\n" in text or "\r" in text or "\0" in text:
        raise InvalidRequest("A header holds a line break.")
    text = "\r\n".join(lines)
    return f"{line}{text}{end}".encode("utf-8", "surrogateescape")


def has_control(headers: Mapping[str, str]) -> bool:
    """Whether a value holds a character that none may hold: aiohttp reads it, and writes it to nobody."""
    return any(map(_CONTROL.search, headers.values()))
