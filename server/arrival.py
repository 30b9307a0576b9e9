"""What `GET /v1/stream-check` sends, and the doctor reads: how a request arrived at the server."""

import msgspec

EVENTS, GAP_SECONDS = 4, 0.2


class Arrival(msgspec.Struct):
    """`is_forwarded`: a proxy said for whom it asks; `is_believed`: it may (TRUSTED_PROXIES)."""

    version: str
    http: str
    is_kept: bool
    address: str
    is_forwarded: bool
    is_believed: bool
