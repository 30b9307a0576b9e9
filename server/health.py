"""`GET /healthz`: does the process live. `GET /readyz`: can it take work, and if not, why not."""

from aiohttp import web

from server.keys import EMBEDDED, RUNNER, SETTINGS, SUPERVISOR, UPSTREAM, UPSTREAMS


async def healthz(request: web.Request) -> web.Response:
    return web.json_response({"ok": True})


async def readyz(request: web.Request) -> web.Response:
    """200 or 503, with the reasons against, how each upstream is (ok, open or half-open), and the cluster."""
    app = request.app
    reasons = {
        "runs": app[SUPERVISOR].why_not_ready(),
        "runner": app[RUNNER].why_not_ready(),
        "upstream": app[UPSTREAM].why_not_ready(),
    }
    if (embedded := app.get(EMBEDDED)) is not None:
        reasons["embedded model"] = embedded.why_not_ready()
    against = {name: reason for name, reason in reasons.items() if reason is not None}
    told = {"ready": not against, "reasons": against, "upstreams": app[UPSTREAMS].states()}
    if app[SETTINGS].runner == "ray":
        told["cluster"] = app[RUNNER].numbers
    return web.json_response(told, status=503 if against else 200)
