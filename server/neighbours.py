"""Other processes that serve the same clients, as this one sees them: workers of one parent, or front ends over one store.

In: a question about runs that are elsewhere, or a wish. Out: what the others have; whose the wish's run is; where that
process takes a request that belongs to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from server.worker_wire import Inquiry

# "Answer this only if you have its run": believed from other processes alone.
JOIN_HEADER = "X-Smolgate-Join"


@dataclass(frozen=True)
class Road:
    """To another process: by its socket where it has one here, else by its address.

    `certain`: where nobody answers there, the process is gone.
    """

    headers: Mapping[str, str]
    socket: str = ""
    url: str = ""
    certain: bool = True


class Neighbours(Protocol):
    async def found_elsewhere(self, inquiry: Inquiry) -> list[bytes]:
        """Runs as JSON; of a tool's call, the owner whose run made it."""

    async def owner_of(
        self, wish: bytes, *, instead_of: str | None = None, by_force: bool = False
    ) -> str | None:
        """Who has this wish's run; None: it is this process's now."""

    async def road_to(self, owner: str) -> Road | None:
        """None where it is gone. Raises Unavailable where it cannot be reached from here."""

    def passes_on(self, request: web.Request) -> bool:
        """The request comes from another process, which looks for its run here."""
