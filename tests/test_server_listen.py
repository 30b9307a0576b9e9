"""What the listener gives to each connection."""

import socket

import aiohttp
import pytest
from aiohttp import web

from server.listen import give_up_dead_peers


@pytest.mark.parametrize(("seconds", "milliseconds"), [(12.5, 12_500), (999_999_999.0, 2**31 - 1)])
async def test_accepted_connections_inherit_the_time_out_for_dead_peers(
    seconds: float, milliseconds: int
) -> None:
    found: list[int] = []

    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        accepted = request.transport.get_extra_info("socket")
        found.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
        return web.Response()

    app = web.Application()
    app.router.add_get("/", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    give_up_dead_peers(site, seconds)
    port = runner.addresses[0][1]
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/"):
        pass
    await runner.cleanup()
    assert found == [milliseconds]
