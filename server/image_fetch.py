"""Images given by address → their bytes, from public addresses alone.

In: http and https URLs that a caller sent. Out: images, or `InvalidRequest`. Where a connection goes is
looked at as it is made, the first and after each redirect: the name was resolved, and to that address and no
other it is connected, so that a second look-up cannot lead elsewhere.
"""

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from server.keys import IMAGE_FETCH, SETTINGS
from streaming.failures import InvalidRequest
from streaming.run_spec import Image
from streaming.runners.daemon_pool import DaemonThreadPool

MAX_IMAGES = 16
MAX_REDIRECTS = 3
FETCH_SECONDS = 15.0
RESOLVING_THREADS = 4
MEDIA_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# Addresses that carry an IPv4 address within: NAT64, 6to4, and IPv4-compatible ones.
_WRAPPED = tuple(
    map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "::/96"))
)


def is_public(text: str) -> bool:
    """Whether an address is one that anybody on the internet could reach."""
    try:
        address: Address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address.teredo is not None or any(address in network for network in _WRAPPED):
            return False
    return address.is_global and not address.is_multicast


class AddressRefused(OSError):
    """A connection would have led to an address that is not public."""


@dataclass
class _Budget:
    """What the images of one request may still take."""

    bytes_left: int


class ImageFetch:
    """Fetches images. `is_allowed` says of an IP address, as text, whether it may be connected to.

    `max_bytes` bounds all images of one request together.
    """

    def __init__(
        self,
        *,
        is_allowed: Callable[[str], bool],
        max_bytes: int,
        resolver: aiohttp.abc.AbstractResolver,
        seconds: float = FETCH_SECONDS,
    ) -> None:
        self._is_allowed = is_allowed
        self._max_bytes = max_bytes
        self._resolver = resolver
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                socket_factory=self._socket, resolver=resolver, force_close=True, limit=MAX_IMAGES
            ),
            timeout=aiohttp.ClientTimeout(total=seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept": ", ".join(sorted(MEDIA_TYPES)), "Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=False,
        )

    async def close(self) -> None:
        await self._session.close()
        await self._resolver.close()

    async def fetch_all(self, urls: Mapping[str, str]) -> dict[str, Image]:
        """The images of these URLs; each comes with the field that holds it. Raises InvalidRequest."""
        if len(urls) > MAX_IMAGES:
            raise InvalidRequest(f"At most {MAX_IMAGES} images may be given by address.")
        budget = _Budget(self._max_bytes)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    url: group.create_task(self._fetch(url, where, budget))
                    for url, where in urls.items()
                }
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return {url: task.result() for url, task in tasks.items()}

    async def _fetch(self, url: str, where: str, budget: _Budget) -> Image:
        address = _checked(url, where)
        try:
            async with self._session.get(address, max_redirects=MAX_REDIRECTS) as response:
                if response.status != 200:
                    raise _refused(f"was answered with status {response.status}", where)
                if response.content_type not in MEDIA_TYPES:
                    raise _refused("is no PNG, JPEG, WebP or GIF image", where)
                if "Content-Encoding" in response.headers:
                    raise _refused("came compressed, though it was not asked to", where)
                return Image(response.content_type, await _read(response, where, budget))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            # One message for all: what is behind this server is not the caller's to explore.
            raise _refused("could not be fetched", where) from None

    def _socket(self, info: Sequence[Any]) -> socket.socket:
        """aiohttp asks for a socket per address that it is about to connect to."""
        family, kind, protocol, _, address = info
        if not self._is_allowed(address[0]):
            raise AddressRefused(f"{address[0]} is not a public address")
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made


async def _read(response: aiohttp.ClientResponse, where: str, budget: _Budget) -> bytes:
    body = bytearray()
    async for data in response.content.iter_any():
        body += data
        budget.bytes_left -= len(data)
        if budget.bytes_left < 0:
            raise _refused("makes the images of this request too large", where)
    return bytes(body)


def _checked(url: str, where: str) -> URL:
    try:
        address = URL(url)
    except ValueError:
        raise _refused("is no URL", where) from None
    if address.scheme not in {"http", "https"} or not address.host:
        raise _refused("is no http or https URL", where)
    if address.user or address.password:
        raise _refused("holds credentials, which are not sent", where)
    return address


def _refused(why: str, where: str) -> InvalidRequest:
    return InvalidRequest(f"An image's address {why}.", param=where)


class OwnThreadsResolver(aiohttp.abc.AbstractResolver):
    """Resolves names in threads of its own: names that callers made up may be slow, and the loop's own
    threads resolve the upstreams'."""

    def __init__(self) -> None:
        self._threads = DaemonThreadPool(RESOLVING_THREADS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[aiohttp.abc.ResolveResult]:
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads,
            partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM),
        )
        return [
            {
                "hostname": host,
                "host": str(address[0]),
                "port": port,
                "family": kind,
                "proto": protocol,
                "flags": socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            }
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False)


async def image_fetch(app: web.Application) -> AsyncIterator[None]:
    """The means to fetch images, where the settings allow it."""
    if not app[SETTINGS].image_urls:
        yield
        return
    app[IMAGE_FETCH] = ImageFetch(
        is_allowed=is_public,
        resolver=OwnThreadsResolver(),
        max_bytes=app[SETTINGS].max_body_bytes,
    )
    yield
    await app[IMAGE_FETCH].close()
