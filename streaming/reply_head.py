"""The head of an ordinary reply, read without a parser.

In: what came of a reply. Out: its status, headers and how its body goes on; or None, where anything about it is
not as nearly every server writes it, or it is not whole. Then a whole parser has to say what it is, and whether
it is HTTP. What is read here, aiohttp's parser reads the same way: tests/test_streaming_reply_head.py compares.
"""

import re
from functools import lru_cache

from aiohttp import hdrs
from multidict import CIMultiDict, CIMultiDictProxy, istr

# What is longer, in bytes or lines, is not ordinary.
MAX_BYTES = 4096
MAX_LINES = 64
# Most lines come again: all but two or three of each reply.
KNOWN_LINES = 512

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9]) [ -~]*")
_HEADER_LINE = re.compile(rb"([\w!#$%&'*+.^`|~-]+):[ \t]*((?:[!-~](?:[ -~\t]*[!-~])?)?)[ \t]*")
_WITHOUT_BODY = (204, 304)
# Names as aiohttp's parser writes them.
_NAMES = {str(name).lower(): name for name in vars(hdrs).values() if isinstance(name, istr)}

# What a header says of the reply's framing: none may say what another does.
_BODY, _HAS_LENGTH, _CONNECTION, _CLOSES, _NOT_ORDINARY = 1, 2, 4, 8, 16
_SAYS = {
    "content-length": ((re.compile("[0-9]{1,15}"), _BODY | _HAS_LENGTH),),
    "transfer-encoding": ((re.compile("(?i:chunked)"), _BODY),),
    "connection": (
        (re.compile("(?i:keep-alive)"), _CONNECTION),
        (re.compile("(?i:close)"), _CONNECTION | _CLOSES),
    ),
    # With any value.
    "content-encoding": (),
    "proxy-connection": (),
    "sec-websocket-key1": (),
    "upgrade": (),
}


# The status; the headers; the body's length, None where it is chunked; whether the connection stays open behind
# it; where it begins.
ReplyHead = tuple[int, CIMultiDictProxy[str], int | None, bool, int]


def ordinary_head(data: bytes) -> ReplyHead | None:
    """The head that `data` begins with."""
    end = data.find(b"\r\n\r\n", 0, MAX_BYTES)
    if end == -1:
        return None
    first, *lines = data[:end].split(b"\r\n")
    status = _status_of(first)
    if status is None or len(lines) > MAX_LINES:
        return None
    pairs = []
    said = _NOT_ORDINARY
    for line in lines:
        pair, says = _header_of(line)
        if says:
            if said & says:
                return None
            said |= says
        pairs.append(pair)
    if not said & _BODY:
        return None
    headers = CIMultiDictProxy(CIMultiDict(pairs))
    length = int(headers["Content-Length"]) if said & _HAS_LENGTH else None
    return status, headers, length, not said & _CLOSES, end + 4


@lru_cache(64)
def _status_of(line: bytes) -> int | None:
    found = _STATUS_LINE.fullmatch(line)
    if found is None or int(found[1]) in _WITHOUT_BODY:
        return None
    return int(found[1])


@lru_cache(KNOWN_LINES)
def _header_of(line: bytes) -> tuple[tuple[str, str], int]:
    """Name and value, and what it says of the framing."""
    found = _HEADER_LINE.fullmatch(line)
    if found is None:
        return ("", ""), _NOT_ORDINARY
    name, value = found[1].decode(), found[2].decode()
    key = name.lower()
    says = 0
    if key in _SAYS:
        meanings = [meaning for pattern, meaning in _SAYS[key] if pattern.fullmatch(value)]
        says = meanings[0] if meanings else _NOT_ORDINARY
    return (_NAMES.get(key, name), value), says
