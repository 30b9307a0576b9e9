"""The least that can be asked by X-Accel-Redirect: a server that answers every request with the same bytes.

    python -m bench.accel_floor

Prints its port. It reads no request: it knows neither key nor model, and counts nothing. What nginx and this cost
together is what no server behind nginx goes below, be it as fast as it likes.
"""

import asyncio
from typing import cast

import uvloop

from bench.relay_work import CHAT_PATH

_ANSWER = (
    "HTTP/1.1 200 OK\r\nX-Accel-Redirect: @smolgate_default\r\n"
    f"X-Smolgate-Uri: {CHAT_PATH}\r\nX-Request-Id: 1\r\nContent-Length: 0\r\n\r\n"
).encode()


class Constant(asyncio.Protocol):
    """A request comes in one read here: nginx writes it at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = cast(asyncio.WriteTransport, transport).write

    def data_received(self, data: bytes) -> None:
        self._write(_ANSWER)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Constant, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
