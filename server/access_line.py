"""A request's line in the log, as text or as JSON members.

In: what is known at a request's end. Out: one line without a line break, whatever the caller sent; never a
prompt, a header or a key. About a microsecond.
"""

import msgspec


class RequestEnd(msgspec.Struct):
    """What a line says; `address` is the caller's, `path` as `plain` makes it, the ids known to be harmless.

    `code` is of what ended the request, where its outcome does not say all.
    """

    address: str
    method: str
    path: str
    status: int
    seconds: float
    outcome: str
    request_id: str
    run_id: str | None = None
    key_id: str | None = None
    code: str | None = None


def access_text(end: RequestEnd) -> str:
    line = (
        f"{end.address} {end.method} {end.path} {end.status} {end.seconds:.3f}s "
        f"{end.outcome} {end.request_id}"
    )
    if end.run_id is not None:
        line += f" run={end.run_id}"
    if end.key_id is not None:
        line += f" key={end.key_id}"
    if end.code is not None and end.code != end.outcome:
        line += f" code={end.code}"
    return line


def access_json(end: RequestEnd) -> str:
    """The members of a JSON object, from the first name to the last value."""
    end.seconds = round(end.seconds, 6)
    return msgspec.json.encode(end)[1:-1].decode()


def plain(path: str) -> str:
    """A path as printable ASCII: clients send what should have been percent-encoded."""
    if path.isascii() and path.isprintable():
        return path
    return "".join(
        character if character.isascii() and character.isprintable() else f"\\u{ord(character):04x}"
        for character in path
    )


ACCESS_LINES = {"text": access_text, "json": access_json}
