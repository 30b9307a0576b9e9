"""The head of a request or a reply, as HTTP/1 writes it."""

from collections.abc import Iterable

from streaming.failures import InvalidRequest

Pairs = Iterable[tuple[str, str]]


def head_of(line: str, headers: Pairs, end: str = "\r\n") -> bytes:
    """An HTTP head. Raises InvalidRequest for headers in which a line ends."""
    lines = [f"{name}: {value}\r\n" for name, value in headers]
    text = "".join(lines)
    if text.count("\n") != len(lines) or text.count("\r") != len(lines) or "\0" in text:
        raise InvalidRequest("A header holds a line break.")
    return f"{line}{text}{end}".encode("utf-8", "surrogateescape")
