"""A request's line in the log, as text or as JSON members.

In: what is known at a request's end. Out: one line without a line break, whatever the caller sent; never a
prompt, a header or a key. A few microseconds.
"""

import msgspec


def access_text(
    method: str,
    path: str,
    status: int,
    seconds: float,
    outcome: str,
    request_id: str,
    run_id: str | None,
    key_id: str | None,
    code: str | None,
) -> str:
    """The ids are known to be harmless."""
    line = f"{method} {plain(path)} {status} {seconds:.3f}s {outcome} {request_id}"
    if run_id is not None:
        line += f" run={run_id}"
    if key_id is not None:
        line += f" key={key_id}"
    if code is not None and code != outcome:
        line += f" code={code}"
    return line


def access_json(
    method: str,
    path: str,
    status: int,
    seconds: float,
    outcome: str,
    request_id: str,
    run_id: str | None,
    key_id: str | None,
    code: str | None,
) -> str:
    """The members of a JSON object, from the first name to the last value."""
    members = {
        "method": method,
        "path": plain(path),
        "status": status,
        "seconds": round(seconds, 6),
        "outcome": outcome,
        "request_id": request_id,
        "run_id": run_id,
        "key_id": key_id,
        "code": code,
    }
    return msgspec.json.encode(members)[1:-1].decode()


def plain(path: str) -> str:
    """A path as printable ASCII: clients send what should have been percent-encoded."""
    if path.isascii() and path.isprintable():
        return path
    return "".join(
        character if character.isascii() and character.isprintable() else f"\\u{ord(character):04x}"
        for character in path
    )


ACCESS_LINES = {"text": access_text, "json": access_json}
