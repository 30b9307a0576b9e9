"""The page's files over HTTP: headers, caching, keys, and what they must not hold."""

import re
from pathlib import Path

import pytest
from conftest import MakeGateway

from server.page_files import POLICY

FOLDER = Path(__file__).parent.parent / "server" / "page"
FILES = sorted(FOLDER.iterdir())
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


async def test_the_page_and_all_that_it_loads_are_served(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    for path in ["/", *(f"/page/{file.name}" for file in FILES if file.suffix in TYPES)]:
        async with gateway.session.get(gateway.base + path) as response:
            body = await response.read()
            assert response.status == 200, path
            kind = TYPES.get(Path(path).suffix, "text/html")
            assert response.headers["Content-Type"] == f"{kind}; charset=utf-8"
            assert response.headers["Content-Security-Policy"] == POLICY
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Cache-Control"] == "no-cache"
            etag, size = response.headers["ETag"], response.headers["Content-Length"]
        body = re.sub(rb'"page/[0-9a-f]{16}/', b'"page/', body)
        assert (
            body == (FOLDER / (path.removeprefix("/page/").strip("/") or "index.html")).read_bytes()
        )
        async with gateway.session.head(gateway.base + path) as response:
            assert (response.status, await response.read()) == (200, b"")
            assert response.headers["ETag"] == etag
            assert response.headers["Content-Length"] == size
        for known, status in ((etag, 304), (f'"x", W/{etag}', 304), ("*", 304), ('"x"', 200)):
            headers = {"If-None-Match": known}
            async with gateway.session.get(gateway.base + path, headers=headers) as response:
                assert response.status == status, known
                assert response.headers["ETag"] == etag


async def test_the_policy_lets_nothing_in_but_what_is_served_here() -> None:
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules.pop("img-src") == "'self' data: blob:"
    assert {rules.pop(name) for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert rules.pop("require-trusted-types-for") == "'script'"
    assert set(rules.values()) == {"'none'"}
    assert {"default-src", "base-uri", "frame-ancestors", "form-action"} <= set(rules)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_no_file_makes_html_of_text_nor_leads_elsewhere(file: Path) -> None:
    text = file.read_text()
    for barred in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert barred not in text
    assert "new Function" not in text
    assert re.findall(r"https?://[\w.]+", text.replace("http://www.w3.org/2000/svg", "")) == []
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", text)


async def test_with_keys_the_files_are_open_and_nothing_beside_them(
    make_gateway: MakeGateway,
) -> None:
    gateway = await make_gateway(api_keys=("k",))
    asked = {
        "/": 200,
        "/page/chat.js": 200,
        "/page/none.js": 401,
        "/page/%2e%2e/chat.py": 401,
        "/page/index.html": 401,
        "/v1/models": 401,
        "/v1/runs": 401,
    }
    for path, status in asked.items():
        async with gateway.session.get(gateway.base + path) as response:
            assert response.status == status, path
    async with gateway.session.post(gateway.base + "/") as response:
        assert response.status == 401


async def test_without_the_setting_there_is_no_page(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway(page=False)
    for path in ("/", "/page/chat.js"):
        async with gateway.session.get(gateway.base + path) as response:
            assert response.status == 404
    locked = await make_gateway(page=False, api_keys=("k",))
    async with gateway.session.get(locked.base + "/") as response:
        assert response.status == 401


async def test_a_reload_is_one_request_and_an_upgrade_reaches_it(make_gateway: MakeGateway) -> None:
    """What a page loads has the version in its path, and is kept; another version's is not."""
    gateway = await make_gateway(api_keys=("k",))
    async with gateway.session.get(gateway.base + "/") as response:
        page = await response.text()
    paths = re.findall(r'(?:src|href)="(page/[^"]+)"', page)
    (version,) = {path.split("/")[1] for path in paths}
    assert len(paths) == 5
    for path in (*paths, f"page/{version}/markdown.js"):
        async with gateway.session.get(f"{gateway.base}/{path}") as response:
            assert response.status == 200
            assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    async with gateway.session.get(f"{gateway.base}/page/{'0' * 16}/chat.js") as response:
        assert (response.status, response.headers["Cache-Control"]) == (200, "no-store")
    for path in (f"page/{version}/none.js", f"page/{version}/", "page/x/chat.js"):
        async with gateway.session.get(f"{gateway.base}/{path}") as response:
            assert response.status == 401
