"""Who gets a page at an address that is the API's, too: `GET /runs`.

In: what a request accepts. Out: whether it names `text/html`, as browsers do that follow a link; SDKs, curl and scripts
name JSON, or anything. Such a request needs no key, since a page holds no data: what it asks for does.
"""

from aiohttp import hdrs, web

from server.keys import SETTINGS

PAGES = frozenset({"/runs"})
_NOT_WANTED = frozenset({"q=0", "q=0.0", "q=0.00", "q=0.000"})


def asks_for_page(request: web.Request) -> bool:
    """Whether this request is answered with a page."""
    return (
        request.path in PAGES
        and request.method in {hdrs.METH_GET, hdrs.METH_HEAD}
        and request.app[SETTINGS].page
        and _names_html(request.headers.get(hdrs.ACCEPT, ""))
    )


def _names_html(accept: str) -> bool:
    for media_range in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in media_range.split(";"))
        if media_type == "text/html":
            return _NOT_WANTED.isdisjoint(parameters)
    return False
