"""The server's own place: its settings, its keys, where it listens and who can reach it.

In: settings. Out: findings. What answers at the address is asked who it is.
"""

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

import server
from server.api_keys import load_keys
from server.doctor_report import Finding, Patient, failed, ok, warning
from server.listening_sockets import is_loopback
from server.settings_table import SETTINGS
from server.upstream_settings import BadEntry, parse_upstreams

# After so long without a byte nginx, AWS's load balancers and many others give a connection up.
USUAL_PATIENCE_SECONDS = 60.0
ASK_SECONDS = 5.0


async def check_settings(patient: Patient) -> AsyncIterator[Finding]:
    for error in patient.settings_errors:
        yield failed(error, "Correct it; what follows is checked without it.")
    if not patient.settings_errors:
        given = [
            setting.names[0]
            for setting in SETTINGS
            if any(patient.environment.get(name) for name in setting.names)
            or any(word.partition("=")[0] == setting.flag for word in patient.arguments)
        ]
        yield ok(f"{len(given)} set: {', '.join(given)}" if given else "none set: all defaults")


async def check_keys(patient: Patient) -> AsyncIterator[Finding]:
    """Who else may read files that hold keys or tokens."""
    files = _secret_files(patient)
    for name, path in files:
        try:
            mode = stat.S_IMODE(os.stat(path).st_mode)
        except OSError as error:
            yield failed(f"{name} is {path}: {error.strerror}", "Name a file that there is.")
            continue
        if mode & stat.S_IWOTH:
            yield failed(f"{name}: everybody may change {path} ({mode:04o})", f"chmod 600 {path}")
        elif mode & stat.S_IROTH:
            yield warning(f"{name}: everybody may read {path} ({mode:04o})", f"chmod 600 {path}")
        else:
            yield ok(f"{name}: {path} is not for everybody ({mode:04o})")
    count = len(load_keys(patient.settings.api_keys, patient.settings.api_keys_file))
    yield ok(f"{count} API keys" if count else "no API keys: whoever reaches the server may use it")


def _secret_files(patient: Patient) -> list[tuple[str, str]]:
    named = [("API_KEYS_FILE", patient.settings.api_keys_file)]
    named.append(("API_TOKEN_FILE", _given(patient, "token_file")))
    upstreams = _given(patient, "upstreams")
    if upstreams and patient.settings.upstreams:
        if not upstreams.lstrip().startswith(("[", "{")):
            named.append(("UPSTREAMS", upstreams))
        try:
            entries = parse_upstreams(upstreams)
        except BadEntry:
            entries = ()
        named += [
            (f"UPSTREAMS[{index}].token_file", entry.token_file)
            for index, entry in enumerate(entries)
        ]
    return [(name, path) for name, path in named if path]


def _given(patient: Patient, attribute: str) -> str | None:
    """A setting's text, as it was written."""
    (setting,) = [setting for setting in SETTINGS if setting.attribute == attribute]
    words = iter(patient.arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name == setting.flag:
            return value if equals else next(words, None)
    return next((text for name in setting.names if (text := patient.environment.get(name))), None)


async def check_exposure(patient: Patient) -> AsyncIterator[Finding]:
    settings = patient.settings
    has_keys = bool(load_keys(settings.api_keys, settings.api_keys_file))
    if settings.unix_socket is not None:
        yield ok("it listens on a unix socket, for its owner and group")
    elif is_loopback(settings.host):
        yield ok(f"it listens on {settings.host}, for this machine alone")
    elif has_keys:
        yield ok(f"it listens on {settings.host}, with API keys")
    else:
        yield warning(
            f"it listens on {settings.host} without API keys: everybody who reaches it runs agents and spends tokens",
            "smolgate new-key NAME, then API_KEYS or API_KEYS_FILE; or HOST=127.0.0.1",
        )
    if settings.jail == "off" and not is_loopback(settings.host):
        yield warning(
            "JAIL is off and others can reach it: model-written code runs in the server itself",
            "JAIL=required",
        )


async def check_silence(patient: Patient) -> AsyncIterator[Finding]:
    """Whether what is silent outlives proxies."""
    settings = patient.settings
    if settings.heartbeat_seconds >= USUAL_PATIENCE_SECONDS:
        yield warning(
            f"HEARTBEAT_SECONDS is {settings.heartbeat_seconds:g}: proxies give up streams that are silent for 60 s",
            "HEARTBEAT_SECONDS=15",
        )
    padding = settings.padding_seconds
    if padding == 0 or padding >= USUAL_PATIENCE_SECONDS:
        yield warning(
            f"PADDING_SECONDS is {padding:g}: proxies give up whole answers that take more than 60 s",
            "PADDING_SECONDS=45, or proxy_read_timeout above QUEUE_SECONDS + RUN_SECONDS in every proxy",
        )
    if settings.heartbeat_seconds < USUAL_PATIENCE_SECONDS > padding > 0:
        yield ok("no reply is silent for 60 s: heartbeats, and blanks before whole answers")


async def check_place(patient: Patient) -> AsyncIterator[Finding]:
    """Whether the port is free, or who has it."""
    settings = patient.settings
    place = settings.unix_socket or f"{settings.host} port {settings.port}"
    answer = await who_answers(patient)
    if answer is None:
        try:
            _try_to_listen(patient)
        except OSError as error:
            yield failed(
                f"it cannot listen on {place}: {error.strerror or error}",
                "PORT=8000, or another that is free and above 1023; HOST must be an address of this machine",
            )
        else:
            yield ok(f"nobody has {place}: the server can start")
        return
    status, told, version = answer
    if not isinstance(told, dict) or "ready" not in told:
        yield failed(
            f"another program answers at {place}",
            f"PORT=another; who it is: ss -ltnp 'sport = :{settings.port}'",
        )
        return
    name = f"smolgate {version}" if version else "a smolgate"
    if status == 200:
        yield ok(f"{name} answers at {place} and is ready")
    else:
        reasons = "; ".join(f"{part}: {why}" for part, why in told.get("reasons", {}).items())
        yield failed(
            f"{name} answers at {place} and is not ready: {reasons}",
            "See the reasons, and its log.",
        )
    if version and version != server.__version__:
        yield warning(
            f"it is version {version}, and this is {server.__version__}",
            "Restart it: systemctl restart smolgate",
        )


async def who_answers(patient: Patient) -> tuple[int, Any, str] | None:
    """The status and JSON of /readyz and the version where it may be known; None where nobody listens."""
    if patient.settings.port == 0 and patient.settings.unix_socket is None:
        return None
    base = own_base(patient)
    async with own_session(patient) as session:
        try:
            async with asyncio.timeout(ASK_SECONDS), session.get(f"{base}/readyz") as response:
                status, told = response.status, await _json(response)
        except aiohttp.ClientConnectorError:
            return None
        except (aiohttp.ClientError, TimeoutError):
            return 0, None, ""
        try:
            async with (
                asyncio.timeout(ASK_SECONDS),
                session.get(f"{base}/openapi.json") as response,
            ):
                document = await _json(response) if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError):
            document = None
    version = document.get("info", {}).get("version", "") if isinstance(document, dict) else ""
    return status, told, str(version)


def own_base(patient: Patient) -> str:
    """Where this machine reaches the server, with `/v1`."""
    settings = patient.settings
    if settings.unix_socket is not None:
        return "http://smolgate/v1"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}/v1"


def own_session(patient: Patient) -> aiohttp.ClientSession:
    """A client of the server itself, with the key that was given."""
    path = patient.settings.unix_socket
    connector = (
        aiohttp.TCPConnector(force_close=True)
        if path is None
        else aiohttp.UnixConnector(path, force_close=True)
    )
    headers = {"Authorization": f"Bearer {patient.key}"} if patient.key else {}
    return aiohttp.ClientSession(connector=connector, headers=headers)


async def _json(response: aiohttp.ClientResponse) -> Any:
    try:
        return await response.json(content_type=None)
    except ValueError:
        return None


def _try_to_listen(patient: Patient) -> None:
    """Raises OSError."""
    settings = patient.settings
    if settings.unix_socket is not None:
        path = Path(settings.unix_socket)
        if path.exists() and not path.is_socket():
            raise OSError(f"{path} is there and is no socket")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise OSError(f"{path.parent} cannot be written to")
        return
    found = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    for family, _, _, _, address in found:
        with socket.create_server(address[:2], family=family):
            pass
