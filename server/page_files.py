"""The pages' files: read once from the package, served with an ETag and a policy that allows only them.

In: the files of `server/page/`. Out: routes for them. They hold no secrets and are open also where keys are
set; what a page then asks for needs a key like any other request. Their links are relative, so that they
work below a path of a proxy's, too.
"""

import hashlib
from importlib import resources

from aiohttp import web

from server.keys import OPEN_FILES

INDEX = "index.html"
FOLDER = "/page/"
CONTENT_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
# Nothing but what is served here, no inline script, no place in another site's frame. Trusted types: a
# script that would make HTML of text fails instead.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Asked for anew each time, answered 304: after an upgrade nobody runs half of each.
    "Cache-Control": "no-cache",
}


class PageFile:
    """One file, ready; `send` is the handler of its GET and HEAD."""

    def __init__(self, name: str, body: bytes) -> None:
        self._body = body
        self._etag = hashlib.sha256(body).hexdigest()[:32]
        self._content_type = CONTENT_TYPES[name.rpartition(".")[2]]

    async def send(self, request: web.Request) -> web.Response:
        known = request.if_none_match or ()
        if any(tag.value in {self._etag, "*"} for tag in known):
            response = web.Response(status=304, headers=HEADERS)
        else:
            response = web.Response(
                body=self._body,
                content_type=self._content_type,
                charset="utf-8",
                headers=HEADERS,
            )
        response.etag = self._etag
        return response


def page_file(name: str) -> PageFile:
    """A file of `server/page/`."""
    return PageFile(name, resources.files("server").joinpath("page", name).read_bytes())


def serve_page(app: web.Application) -> None:
    """Serve the page at `/`, and below `/page/` all that it and other pages load."""
    files = resources.files("server").joinpath("page").iterdir()
    assets = {FOLDER + file.name: file.name for file in files if not file.name.endswith(".html")}
    for path, name in {"/": INDEX, **assets}.items():
        app.router.add_get(path, page_file(name).send)  # HEAD, too
        app[OPEN_FILES].add(path)
