"""`GET /healthz`: does the process live. `GET /readyz`: can it take work, and if not, why not."""

from aiohttp import web

from server.keys import EMBEDDED, SUPERVISOR


async def healthz(request: web.Request) -> web.Response:
    return web.json_response({"ok": True})


async def readyz(request: web.Request) -> web.Response:
    """200 or 503, with the reasons against."""
    reasons = {"runs": request.app[SUPERVISOR].why_not_ready()}
    if (embedded := request.app.get(EMBEDDED)) is not None:
        reasons["embedded model"] = embedded.why_not_ready()
    against = {name: reason for name, reason in reasons.items() if reason is not None}
    return web.json_response(
        {"ready": not against, "reasons": against}, status=503 if against else 200
    )
