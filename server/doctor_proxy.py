"""A proxy before the server, seen from outside: does it pass events on as they come, and what else does it change.

In: its public address. Out: findings. The running server sends a short stream, whose first event says how the request
arrived there.
"""

import secrets
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

import server
from server.arrival import EVENTS, GAP_SECONDS, Arrival
from server.doctor_report import Finding, Patient, failed, ok, warning
from server.listening_sockets import is_loopback
from streaming.sse_parser import SseParser

ASK_SECONDS = 15.0
BUFFERED = (
    "all events came at once, {seconds:.1f} s after the request: something on the way buffers"
)
UNBUFFER = "proxy_buffering off; gzip off; in every nginx on the way (nginx -T | grep -nE 'buffering|gzip|X-Accel'); see deploy/nginx/smolgate.conf"


async def check_through(patient: Patient) -> AsyncIterator[Finding]:
    """All of it, as far as it is reached."""
    is_reached = True
    async for finding in check_proxy(patient):
        is_reached = is_reached and finding.status != "failed"
        yield finding
    for check in (check_stream, check_body_size) if is_reached else ():
        async for finding in check(patient):
            yield finding


async def check_proxy(patient: Patient) -> AsyncIterator[Finding]:
    """Whether a smolgate answers behind it, and request ids come through."""
    base = _base(patient)
    parts = urlsplit(base)
    request_id = f"doctor-{secrets.token_hex(6)}"
    try:
        async with (
            _session(patient) as session,
            session.get(f"{base}/readyz", headers={"X-Request-Id": request_id}) as reply,
        ):
            told = await _json(reply)
            returned, status = reply.headers.get("X-Request-Id"), reply.status
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        yield _unreached(error, parts.netloc.rpartition("@")[2])
        return
    if not isinstance(told, dict) or "ready" not in told:
        yield failed(
            f"no smolgate answers behind it: status {status} for /readyz",
            "Is the address with its /v1? Does the proxy reach the server: its error log; proxy_pass",
        )
        return
    yield ok(f"a smolgate answers behind it{'' if told['ready'] else ', which is not ready'}")
    if returned != request_id:
        yield warning(
            "X-Request-Id does not come through, so logs cannot be matched",
            "In the proxy: neither proxy_set_header X-Request-Id nor proxy_hide_header X-Request-Id",
        )
    else:
        yield ok("X-Request-Id comes through")
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        yield warning(
            "it is reached without TLS: keys and prompts can be read on the way", "listen 443 ssl"
        )


async def check_stream(patient: Patient) -> AsyncIterator[Finding]:
    """Whether events arrive one by one, and how the request arrived."""
    try:
        async with _session(patient) as session:
            seen = await _watch(session, _base(patient))
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        yield failed(f"the stream breaks off: {type(error).__name__}", "See the proxy's error log.")
        return
    if seen.status == 401:
        yield failed("the server wants an API key", "SMOLGATE_API_KEY=…, or --api-key-file PATH")
        return
    if seen.status == 404:
        yield warning(
            "the server is of a version without /stream-check", "Upgrade it, then check again."
        )
        return
    if seen.status != 200 or len(seen.times) != EVENTS or seen.arrival is None:
        yield failed(
            f"the stream does not come whole: status {seen.status}, {len(seen.times)} of {EVENTS} events",
            "See the proxy's error log.",
        )
        return
    spread = seen.times[-1] - seen.times[0]
    if spread < GAP_SECONDS * (EVENTS - 1) / 2:
        yield failed(BUFFERED.format(seconds=seen.times[-1]), UNBUFFER)
    else:
        yield ok(f"events arrive one by one, the first after {seen.times[0]:.2f} s")
    for finding in _arrived(seen.arrival):
        yield finding


def _arrived(arrival: Arrival) -> list[Finding]:
    findings = []
    if arrival.version != server.__version__:
        findings.append(
            warning(
                f"the server is version {arrival.version}, this is {server.__version__}",
                "Restart it.",
            )
        )
    if arrival.http == "1.0" or not arrival.is_kept:
        findings.append(
            warning(
                f"the proxy speaks HTTP/{arrival.http} and pays for a new connection with each request",
                'proxy_http_version 1.1; proxy_set_header Connection ""; keepalive 64; in the upstream',
            )
        )
    else:
        findings.append(ok("the proxy keeps its connections to the server (HTTP/1.1)"))
    if not arrival.is_forwarded:
        findings.append(
            warning(
                f"the server takes {arrival.address} for the caller: no proxy says whom it asks for",
                "proxy_set_header X-Forwarded-For $remote_addr; and TRUSTED_PROXIES",
            )
        )
    elif not arrival.is_believed:
        findings.append(
            warning(
                f"the server takes the proxy for the caller ({arrival.address}): it does not believe X-Forwarded-For",
                f"TRUSTED_PROXIES={arrival.address}",
            )
        )
    else:
        findings.append(ok(f"the log knows callers by their address (you: {arrival.address})"))
    return findings


async def check_body_size(patient: Patient) -> AsyncIterator[Finding]:
    """Whether the largest body is let through: it is announced, not sent."""
    size = patient.settings.max_body_bytes
    body = _Announced()
    try:
        async with (
            _session(patient) as session,
            session.post(
                f"{_base(patient)}/chat/completions",
                data=body.pieces(),
                headers={"Content-Length": str(size), "Content-Type": "application/json"},
                expect100=True,
            ) as reply,
        ):
            status = reply.status
    except (aiohttp.ClientError, OSError, TimeoutError):
        status = 0
    if body.is_asked_for:
        yield ok(f"bodies of MAX_BODY_BYTES ({size}) are let through")
    elif status == 413:
        yield failed(
            f"a body of MAX_BODY_BYTES ({size}) is refused by the proxy (413)",
            f"client_max_body_size {-(-size >> 20)}m;",
        )
    elif status == 401:
        yield failed("the server wants an API key", "SMOLGATE_API_KEY=…, or --api-key-file PATH")
    else:
        yield warning(
            "whether large bodies are let through could not be told",
            f"client_max_body_size {-(-size >> 20)}m; in nginx",
        )


class _Announced:
    """A body that breaks the connection off once it is asked for: that is all we want to know."""

    is_asked_for = False

    async def pieces(self) -> AsyncIterator[bytes]:
        self.is_asked_for = True
        raise ConnectionResetError("not sent")
        yield b""


@dataclass
class _Seen:
    status: int
    times: list[float] = field(default_factory=list)  # of arrival, seconds after the request
    arrival: Arrival | None = None


async def _watch(session: aiohttp.ClientSession, base: str) -> _Seen:
    began = time.monotonic()
    async with session.get(f"{base}/stream-check") as reply:
        seen, parser = _Seen(reply.status), SseParser()
        if reply.status != 200:
            return seen
        async for data in reply.content.iter_any():
            for event in parser.feed(data):
                if event.data is None or event.data == b"[DONE]":
                    continue
                if not seen.times:
                    seen.arrival = msgspec.json.decode(event.data, type=Arrival)
                seen.times.append(time.monotonic() - began)
    return seen


def _base(patient: Patient) -> str:
    return (patient.through or "").rstrip("/")


def _session(patient: Patient) -> aiohttp.ClientSession:
    headers = {"Authorization": f"Bearer {patient.key}"} if patient.key else {}
    return aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=ASK_SECONDS))


async def _json(reply: aiohttp.ClientResponse) -> Any:
    try:
        return await reply.json(content_type=None)
    except ValueError:
        return None


def _unreached(error: Exception, place: str) -> Finding:
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return failed(
                f"its certificate is not trusted: {getattr(error.certificate_error, 'verify_message', '')}",
                "SSL_CERT_FILE=/path/to/its/authority.pem smolgate doctor …, or a certificate for this name",
            )
        case aiohttp.ClientConnectorDNSError():
            return failed(
                f"there is no host of this name: {place}", "Correct --through, or the DNS entry."
            )
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return failed(f"{place} speaks no TLS", "listen 443 ssl, or http:// in --through")
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError():
            return failed("--through is no address", "https://host/v1")
        case TimeoutError():
            return failed(
                f"{place} does not answer in time", "A firewall? See the proxy's error log."
            )
    return failed(
        f"nobody answers at {place} ({type(error).__name__})",
        "Start the proxy: systemctl status nginx",
    )
