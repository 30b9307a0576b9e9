"""The upstreams, each from its name to its answers: reachable, trusted, the token taken, the model known.

In: settings. Out: findings, at most one that failed for each upstream: what comes after it could not work either.
"""

import asyncio
import email.utils
import ipaddress
import socket
import ssl
import time
from collections.abc import AsyncIterator
from urllib.parse import SplitResult, urlsplit

import aiohttp

from server.api_keys import load_keys
from server.doctor_model import Refused, Unusable, check_model, list_models, served_model
from server.doctor_place import own_base, own_session, who_answers
from server.doctor_report import Finding, Patient, failed, ok, warning
from server.embedded import INSTALL, EmbeddedUnavailable, EmbeddedUpstream
from server.upstream_settings import DEFAULT_NAME, UpstreamOptions
from streaming.runners.daemon_pool import DaemonThreadPool

CONNECT_SECONDS = 5.0
EMBEDDED_SECONDS, EMBEDDED_TOKENS = 30.0, 4
CLOCK_SECONDS = 30.0
EXPIRY_DAYS = 14
DAY_SECONDS = 86_400


async def check_upstreams(patient: Patient) -> AsyncIterator[Finding]:
    """All at the same time, so that one that hangs does not take the others' time."""
    tasks = [
        asyncio.create_task(_findings(patient, options))
        for options in patient.settings.upstream_options()
    ]
    try:
        for task in tasks:
            for finding in await task:
                yield finding
    finally:
        for task in tasks:
            task.cancel()


async def _findings(patient: Patient, options: UpstreamOptions) -> list[Finding]:
    if options.base is None:
        return [finding async for finding in _embedded(patient, options)]
    return [
        Finding(finding.status, f"{options.name}: {finding.found}", finding.mend)
        async for finding in _upstream(patient, options)
    ]


async def _embedded(patient: Patient, options: UpstreamOptions) -> AsyncIterator[Finding]:
    """Asked where it runs already, else started for as long as that takes."""
    tags, model = patient.settings.think_tags, options.models[0]
    answer = await who_answers(patient)
    if answer is not None and answer[0] == 200 and (patient.key or not _has_keys(patient)):
        yield ok("no upstream is set: the running server's embedded model serves")
        async with own_session(patient) as session:
            base = own_base(patient)
            async for finding in check_model(session, base, options, tags, model, EMBEDDED_TOKENS):
                yield finding
        return
    try:
        async with EmbeddedUpstream() as embedded, _session(None) as session:
            await embedded.wait_ready(EMBEDDED_SECONDS)
            yield ok("no upstream is set: the embedded model serves, and has started")
            base = embedded.base_url
            async for finding in check_model(session, base, options, tags, model, EMBEDDED_TOKENS):
                yield finding
    except EmbeddedUnavailable as error:
        yield failed(
            f"no upstream is set, and the embedded model cannot be used: {error}",
            f"Set UPSTREAM_OPENAI_BASE, or: {' && '.join(INSTALL.values())}",
        )


def _has_keys(patient: Patient) -> bool:
    return bool(load_keys(patient.settings.api_keys, patient.settings.api_keys_file))


async def _upstream(patient: Patient, options: UpstreamOptions) -> AsyncIterator[Finding]:
    assert options.base is not None
    parts = urlsplit(options.base)
    problem = await _reach(parts, _setting_of(options))
    if problem is not None:
        yield problem
        return
    if parts.scheme == "https":
        yield await _certificate(parts)
    elif options.token and not await _is_near(parts):
        yield warning(
            "the token goes to it without TLS, for everybody on the way to read",
            f"https:// in {_setting_of(options)}",
        )
    async with _session(options.token) as session:
        try:
            listed = await list_models(session, options)
        except (Refused, Unusable) as error:
            yield failed(str(error), error.mend)
            return
        if listed.date and abs(skew := _seconds_behind(listed.date)) > CLOCK_SECONDS:
            yield warning(
                f"its clock and this machine's are {abs(skew):.0f} s apart",
                "timedatectl set-ntp true, on whichever is wrong",
            )
        async for finding in _model(session, patient, options, listed.ids):
            yield finding


def _session(token: str | None) -> aiohttp.ClientSession:
    """A connection a request: none is told dead that its server only closed between two of them."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True),
        headers={"Authorization": f"Bearer {token}"} if token else {},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
    )


async def _model(
    session: aiohttp.ClientSession,
    patient: Patient,
    options: UpstreamOptions,
    listed: list[str] | None,
) -> AsyncIterator[Finding]:
    assert options.base is not None
    model = served_model(options, listed)
    if listed is None:
        yield ok("it is reachable; it has no /models, so ids come without a list")
    else:
        yield ok(
            f"it is reachable, takes {'the token' if options.token else 'no token'}, lists {len(listed)} models"
        )
        if model is None:
            yield warning(
                f"none of its models is one of {', '.join(options.models)}",
                "Correct models in UPSTREAMS; it lists " + ", ".join(listed[:5]),
            )
            return
        if model not in listed:
            yield warning(
                f"it does not list {model!r}",
                f"If it does not answer either: {_model_setting(options)}, one of {', '.join(listed[:5])}",
            )
    if model is not None:
        async for finding in check_model(
            session, options.base, options, patient.settings.think_tags, model
        ):
            yield finding


def _setting_of(options: UpstreamOptions) -> str:
    return "UPSTREAM_OPENAI_BASE" if options.name == DEFAULT_NAME else f"UPSTREAMS ({options.name})"


def _model_setting(options: UpstreamOptions) -> str:
    return "AGENT_MODEL=…" if options.name == DEFAULT_NAME else "models in UPSTREAMS"


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


async def _addresses(parts: SplitResult) -> list[str]:
    """Raises OSError. In a thread that nobody waits for: resolvers can hang."""
    pool = DaemonThreadPool(1, name="resolver")
    found = await asyncio.get_running_loop().run_in_executor(
        pool, lambda: socket.getaddrinfo(parts.hostname, _port(parts), type=socket.SOCK_STREAM)
    )
    return [str(address[0]) for *_, address in found]


async def _is_near(parts: SplitResult) -> bool:
    """On this machine or in a private network."""
    return all(
        ipaddress.ip_address(one.partition("%")[0]).is_private for one in await _addresses(parts)
    )


async def _reach(parts: SplitResult, setting: str) -> Finding | None:
    """What is in the way of a connection: name, route, TLS."""
    place = f"{parts.hostname} port {_port(parts)}"
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await _addresses(parts)
    except TimeoutError:
        return failed(f"the name {parts.hostname} is not resolved in time", "cat /etc/resolv.conf")
    except OSError:
        return failed(
            f"there is no host of the name {parts.hostname}",
            f"Correct {setting}; does it resolve: getent hosts {parts.hostname}",
        )
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(
                parts.hostname, _port(parts), ssl=True if parts.scheme == "https" else None
            )
        writer.close()
    except TimeoutError:
        return failed(
            f"{place} does not answer", "A firewall, or the wrong address? nc -vz HOST PORT"
        )
    except ssl.SSLCertVerificationError as error:
        return failed(
            f"the certificate of {place} is not trusted: {error.verify_message}",
            "SSL_CERT_FILE=/path/to/its/authority.pem in the server's environment, or the name that it is for",
        )
    except ssl.SSLError:
        return failed(f"{place} speaks no TLS", f"http:// in {setting}, if that is meant")
    except OSError as error:
        return failed(
            f"nobody listens at {place} ({error.strerror or error})",
            f"Start the upstream there, or correct {setting}",
        )
    return None


async def _certificate(parts: SplitResult) -> Finding:
    """How long it still holds; it has just been accepted."""
    _, writer = await asyncio.open_connection(parts.hostname, _port(parts), ssl=True)
    certificate = writer.get_extra_info("peercert")
    writer.close()
    days = (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / DAY_SECONDS
    if days < EXPIRY_DAYS:
        return warning(f"its certificate ends in {days:.0f} days", "Renew it.")
    return ok(f"its certificate is trusted, and for {days:.0f} days more")


def _seconds_behind(date: str) -> float:
    try:
        return time.time() - email.utils.parsedate_to_datetime(date).timestamp()
    except ValueError:
        return 0.0
