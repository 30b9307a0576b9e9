"""Images by address: what is public is fetched, and nothing else is so much as connected to."""

import asyncio
import io
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from conftest import FakeUpstream, MakeGateway
from PIL import Image as PillowImage

from server import image_fetch
from server.image_fetch import MAX_IMAGES, ImageFetch, OwnThreadsResolver, is_public
from streaming.failures import InvalidRequest

HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"  # both are this machine; tests allow the first alone


def png() -> bytes:
    buffer = io.BytesIO()
    PillowImage.new("RGB", (2, 2), "red").save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()


class Site:
    """A web site on one address, which counts who connects."""

    def __init__(self, address: str, handler: Callable[[web.BaseRequest], Any]) -> None:
        self.address = address
        self.handler = handler
        self.requests: list[web.BaseRequest] = []
        self.port = 0

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        response: web.StreamResponse = await self.handler(request)
        return response

    def url(self, path: str = "/a.png", host: str = "") -> str:
        return f"http://{host or self.address}:{self.port}{path}"


@asynccontextmanager
async def site(address: str, handler: Callable[[web.BaseRequest], Any]) -> AsyncIterator[Site]:
    made = Site(address, handler)
    runner = web.ServerRunner(
        web.Server(made.serve), handler_cancellation=True, shutdown_timeout=0.1
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, address, 0).start()
        made.port = runner.addresses[0][1]
        yield made
    finally:
        await runner.cleanup()


async def picture(request: web.BaseRequest) -> web.Response:
    return web.Response(body=PNG, content_type="image/png")


@pytest.fixture
async def make_fetch() -> AsyncIterator[Callable[..., ImageFetch]]:
    async with AsyncExitStack() as stack:

        def make(**options: Any) -> ImageFetch:
            defaults: dict[str, Any] = {
                "is_allowed": HERE.__eq__,
                "max_bytes": 1 << 20,
                "resolver": OwnThreadsResolver(),
            }
            fetch = ImageFetch(**defaults | options)
            stack.push_async_callback(fetch.close)
            return fetch

        yield make


class Names(aiohttp.abc.AbstractResolver):
    """A name server of the attacker's: each name leads to the next of its addresses."""

    def __init__(self, **names: list[str]) -> None:
        self._names = names
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        self.asked += 1
        addresses = self._names[host.partition(".")[0]]
        address = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
                "proto": 0,
                "flags": 0,
            }
        ]

    async def close(self) -> None:
        pass


async def refused(fetch: ImageFetch, url: str) -> str:
    with pytest.raises(InvalidRequest) as raised:
        await fetch.fetch_all({url: "messages.0.content.1"})
    assert raised.value.param == "messages.0.content.1"
    return raised.value.message


async def test_a_public_image_is_fetched(make_fetch: Callable[..., ImageFetch]) -> None:
    async with site(HERE, picture) as there:
        fetched = await make_fetch().fetch_all({there.url(): "x"})
    assert fetched[there.url()].data == PNG
    assert fetched[there.url()].media_type == "image/png"
    headers = there.requests[0].headers
    assert "Cookie" not in headers
    assert "Authorization" not in headers


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.2", "2130706434", "0x7f000002", "127.2", "0177.0.0.2"),
        "[::ffff:127.0.0.2]",
    ],
)
async def test_no_spelling_of_an_address_gets_past(
    make_fetch: Callable[..., ImageFetch], host: str
) -> None:
    async with site(ELSEWHERE, picture) as there:
        assert "could not be fetched" in await refused(make_fetch(), there.url(host=host))
        assert there.requests == []


async def test_a_name_that_leads_inside_is_refused(make_fetch: Callable[..., ImageFetch]) -> None:
    async with site(ELSEWHERE, picture) as there:
        fetch = make_fetch(resolver=Names(inside=[ELSEWHERE]))
        assert "could not be fetched" in await refused(fetch, there.url(host="inside.example"))
        assert there.requests == []


async def test_a_name_is_resolved_once_and_its_second_answer_is_not_asked_for(
    make_fetch: Callable[..., ImageFetch],
) -> None:
    names = Names(rebind=[HERE, ELSEWHERE])
    async with site(HERE, picture) as there:
        url = there.url(host="rebind.example")
        fetched = await make_fetch(resolver=names).fetch_all({url: "x"})
    assert fetched[url].data == PNG
    assert names.asked == 1


@pytest.mark.parametrize("target", ["address", "name", "scheme"])
async def test_a_redirect_is_looked_at_anew(
    make_fetch: Callable[..., ImageFetch], target: str
) -> None:
    async with site(ELSEWHERE, picture) as inside:
        to = {
            "address": inside.url(),
            "name": inside.url(host="inside.example"),
            "scheme": "file:///etc/passwd",
        }[target]

        async def redirect(request: web.BaseRequest) -> web.Response:
            raise web.HTTPFound(to)

        async with site(HERE, redirect) as outside:
            fetch = make_fetch(resolver=Names(inside=[ELSEWHERE]))
            assert "could not be fetched" in await refused(fetch, outside.url())
            assert len(outside.requests) == 1
            assert inside.requests == []


async def test_redirects_end(make_fetch: Callable[..., ImageFetch]) -> None:
    async def around(request: web.BaseRequest) -> web.Response:
        raise web.HTTPFound("/again")

    async with site(HERE, around) as there:
        assert "could not be fetched" in await refused(make_fetch(), there.url())
        assert len(there.requests) <= 4


async def test_an_image_that_is_too_large_is_given_up_at_the_limit(
    make_fetch: Callable[..., ImageFetch],
) -> None:
    written = 0

    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse(headers={"Content-Type": "image/png"})
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)
            written += 65536

    async with site(HERE, endless) as there:
        assert "too large" in await refused(make_fetch(max_bytes=100_000), there.url())
    assert written < 50 << 20


async def test_many_images_are_too_large_together(make_fetch: Callable[..., ImageFetch]) -> None:
    async with site(HERE, picture) as there:
        urls = {there.url(f"/{number}"): "x" for number in range(4)}
        assert len(await make_fetch(max_bytes=4 * len(PNG)).fetch_all(urls)) == 4
        with pytest.raises(InvalidRequest, match="too large"):
            await make_fetch(max_bytes=4 * len(PNG) - 1).fetch_all(urls)


async def test_an_image_that_takes_too_long_is_given_up(
    make_fetch: Callable[..., ImageFetch],
) -> None:
    async def drip(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "image/png"})
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.02)

    async with site(HERE, drip) as there:
        async with asyncio.timeout(20):
            assert "could not be fetched" in await refused(make_fetch(seconds=0.3), there.url())


@pytest.mark.parametrize(
    ("headers", "status", "said"),
    [
        ({"Content-Type": "text/html"}, 200, "no PNG"),
        ({"Content-Type": "image/svg+xml"}, 200, "no PNG"),
        ({"Content-Type": "image/png", "Content-Encoding": "gzip"}, 200, "compressed"),
        ({"Content-Type": "image/png"}, 404, "status 404"),
    ],
)
async def test_what_is_no_image_is_refused(
    make_fetch: Callable[..., ImageFetch], headers: dict[str, str], status: int, said: str
) -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(body=PNG, headers=headers, status=status)

    async with site(HERE, answer) as there:
        assert said in await refused(make_fetch(), there.url())


@pytest.mark.parametrize(
    "url", ["http://user:pass@127.0.0.1/x", "ftp://127.0.0.1/x", "http://", "http://[::1/x"]
)
async def test_odd_urls_are_refused(make_fetch: Callable[..., ImageFetch], url: str) -> None:
    await refused(make_fetch(), url)


async def test_the_number_of_images_is_limited(make_fetch: Callable[..., ImageFetch]) -> None:
    urls = {f"http://127.0.0.1/{number}": "x" for number in range(MAX_IMAGES + 1)}
    with pytest.raises(InvalidRequest, match="At most"):
        await make_fetch().fetch_all(urls)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0"),
        *("100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
        *("2001:db8::1", "2001:0:7f00:1::", "100::1", "not an address", ""),
    ],
)
def test_what_is_not_public_is_not_connected_to(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_what_is_public_is(address: str) -> None:
    assert is_public(address)


def ask(url: str) -> dict[str, Any]:
    content = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    return {"messages": [{"role": "user", "content": content}]}


async def test_by_default_no_address_is_fetched(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    async with site(HERE, picture) as there:
        status, _, body = await gateway.post(ask(there.url()))
        assert (status, body["error"]["param"]) == (400, "messages.0.content.1")
        assert there.requests == []


async def test_where_allowed_a_server_s_own_network_stays_closed(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway(image_urls=True)
    async with site(HERE, picture) as there:
        status, _, body = await gateway.post(ask(there.url()))
        assert (status, body["error"]["code"]) == (400, None)
        assert "could not be fetched" in body["error"]["message"]
        assert HERE not in body["error"]["message"]
        assert there.requests == []


async def test_an_image_by_address_reaches_the_agent_s_model(
    make_gateway: MakeGateway, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_fetch, "is_public", HERE.__eq__)
    gateway = await make_gateway(image_urls=True)
    async with site(HERE, picture) as there:
        status, _, _ = await gateway.post(ask(there.url()))
    assert status == 200
    sent = str(upstream.bodies()[0]["messages"])
    assert "data:image/png;base64," in sent
    assert there.url() not in sent
