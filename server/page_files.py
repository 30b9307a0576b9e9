"""The pages' files: read once from the package, served with an ETag and a policy that allows only them.

In: the files of `server/page/`. Out: routes for them. They hold no secrets and are open also where keys are
set; what a page then asks for needs a key like any other request. Their links are relative, so that they
work below a path of a proxy's, too.

A page is asked for each time, and names the version of what it loads in their paths: that is kept for good, so
that a reload is one request (a proxy may count them) and nobody runs half of an upgrade.
"""

import hashlib
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

from aiohttp import hdrs, web

from server.keys import OPEN_FILES

INDEX = "index.html"
FOLDER = "/page/"
VERSION_DIGITS = 16
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
}
KEPT = "public, max-age=31536000, immutable"
ASKED_ANEW = "no-cache"
# Another version, while workers of two are there: it must not be kept under its name.
NOT_KEPT = "no-store"


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
        response.headers["Cache-Control"] = _caching(request.match_info.get("version"))
        response.etag = self._etag
        return response


def page_file(name: str) -> PageFile:
    """A file of `server/page/`; a page leads to this version of what it loads."""
    body = _folder().joinpath(name).read_bytes()
    if name.endswith(".html"):
        body = body.replace(b'"page/', b'"page/%s/' % _version().encode())
    return PageFile(name, body)


def serve_page(app: web.Application) -> None:
    """Serve the page at `/`, and below `/page/` all that it and other pages load."""
    _serve(app, "/", page_file(INDEX))
    for name in sorted(file.name for file in _folder().iterdir()):
        if not name.endswith(".html"):
            file = page_file(name)
            _serve(app, FOLDER + name, file)
            _serve(app, f"{FOLDER}{{version:[0-9a-f]{{{VERSION_DIGITS}}}}}/{name}", file)


def _serve(app: web.Application, path: str, file: PageFile) -> None:
    resource = app.router.add_resource(path)
    resource.add_route(hdrs.METH_GET, file.send)
    resource.add_route(hdrs.METH_HEAD, file.send)
    app[OPEN_FILES].add(resource.canonical)


def _caching(version: str | None) -> str:
    if version is None:
        return ASKED_ANEW
    return KEPT if version == _version() else NOT_KEPT


@cache
def _version() -> str:
    """Changes with any of the files."""
    digest = hashlib.sha256()
    for file in sorted(_folder().iterdir(), key=lambda file: file.name):
        body = file.read_bytes()
        digest.update(f"{file.name} {len(body)} ".encode() + body)
    return digest.hexdigest()[:VERSION_DIGITS]


def _folder() -> Traversable:
    return resources.files("server").joinpath("page")
