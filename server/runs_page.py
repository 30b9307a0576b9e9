"""`GET /runs`: the operator's page for a browser, the list as JSON for everybody else, as at `/v1/runs` always.

In: a request. Out: `runs.html`, whose scripts ask for everybody's runs with the key that is typed in there; or JSON.
"""

from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web

from server.page_files import page_file
from server.page_negotiation import asks_for_page
from server.runs import list_runs

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def page_or_list() -> Handler:
    """A handler of GET and HEAD."""
    page = page_file("runs.html").send

    async def answer(request: web.Request) -> web.StreamResponse:
        response = await (page if asks_for_page(request) else list_runs)(request)
        response.headers.add(hdrs.VARY, hdrs.ACCEPT)
        return response

    return answer
