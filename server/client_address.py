"""Who is calling: the address that counts, behind any number of trusted proxies.

In: the connection's peer and `X-Forwarded-For`. Out: the last address that no trusted proxy has written
about itself: read from the right, the first that is not one of `TRUSTED_PROXIES`. A header from anybody
else is not looked at, since everybody can write one.
"""

import re
from collections.abc import Sequence
from ipaddress import ip_address

from aiohttp import web

from server.keys import SETTINGS
from server.setting_values import Network

# Longer chains than this are nobody's.
_MOST_HOPS = 16
# The zone of an address may be anything, blanks and all.
_PRINTABLE = re.compile(r"[!-~]{1,64}")


def client_address(request: web.Request) -> str:
    """An IP address, or `unix` for the other end of a unix socket."""
    address = _peer(request)
    trusted = request.app[SETTINGS].trusted_proxies
    if not trusted:
        return address
    return behind(address, request.headers.getall("X-Forwarded-For", ()), trusted)


def is_trusted_peer(request: web.Request) -> bool:
    """What the connection's other end says of its own client is believed."""
    return _is_trusted(_peer(request), request.app[SETTINGS].trusted_proxies)


def _peer(request: web.Request) -> str:
    peer = request._transport_peername  # found out once a connection
    return str(peer[0]) if isinstance(peer, tuple) else "unix"


def behind(peer: str, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """The client of a connection from `peer` with these `X-Forwarded-For` headers."""
    hops = [hop.strip() for header in forwarded for hop in header.split(",")]
    address = peer
    for hop in reversed(hops[-_MOST_HOPS:]):
        if not _is_trusted(address, trusted):
            break
        try:
            parsed = str(ip_address(hop))
        except ValueError:
            break
        if _PRINTABLE.fullmatch(parsed) is None:
            break
        address = parsed
    return address


def _is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    if address == "unix":
        return "unix" in trusted
    parsed = ip_address(address.partition("%")[0])
    return any(network != "unix" and parsed in network for network in trusted)
