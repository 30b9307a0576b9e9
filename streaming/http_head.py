"""The head of a request or a reply, as HTTP/1 writes it."""

from collections.abc import Iterable

from streaming.failures import InvalidRequest

Pairs = Iterable[tuple[str, str]]

_line = ": ".join


def head_of(line: str, headers: Pairs, end: str = "\r\n") -> bytes:
    """An HTTP head. Raises InvalidRequest for headers in which a line ends."""
    lines = [*map(_line, headers), ""]
    text = "".join(lines)
    if "\n" in text or "\r" in text or "\0" in text:
        raise InvalidRequest("A header holds a line break.")
    text = "\r\n".join(lines)
    return f"{line}{text}{end}".encode("utf-8", "surrogateescape")
