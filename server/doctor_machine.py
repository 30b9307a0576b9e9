"""The machine: Python, packages, limits, disk. In: settings. Out: findings; nothing is changed but a file made and removed."""

import importlib.metadata
import importlib.util
import platform
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator

import aiohttp

from server.doctor_report import Finding, Patient, failed, ok, warning
from streaming.direct_connections import open_connections

PACKAGE = "smolgate"
# docs/settings.md: what one run takes, and what waits takes a connection.
FILES_PER_RUN, FILES_PER_CLIENT, OTHER_FILES = 4, 2, 200
RUN_BYTES = 10 << 20
LEAST_FREE_BYTES = 256 << 20
_SPECIFIER = re.compile(r"(>=|<=|==|<|>)([0-9.]+)")


async def check_python(_: Patient) -> AsyncIterator[Finding]:
    version, system = platform.python_version(), f"{platform.system()} {platform.release()}"
    if sys.platform != "linux":
        yield warning(
            f"Python {version} on {system}: no jail",
            "Run it on Linux, or trust whoever asks: elsewhere model-written code runs in the server itself.",
        )
    else:
        yield ok(f"Python {version} on {system}")


async def check_packages(_: Patient) -> AsyncIterator[Finding]:
    try:
        needed = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        yield warning("smolgate is not installed, so versions are unknown", "pip install .")
        needed = []
    wrong = [said for line in needed if "extra ==" not in line and (said := _wrong(line))]
    if wrong:
        yield failed("; ".join(wrong), "pip install --upgrade smolgate, in this environment")
    elif needed:
        yield ok(f"smolgate {importlib.metadata.version(PACKAGE)} and what it needs")
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        if open_connections(session, connector) is None:
            yield warning(
                f"aiohttp {aiohttp.__version__} is not as expected: the relay takes the slower way",
                "pip install 'aiohttp==3.14.*'",
            )
    if importlib.util.find_spec("uvloop") is None:
        yield ok(
            "uvloop is not installed",
            "pip install uvloop makes a relayed request 4 to 9 % cheaper.",
        )


def _wrong(requirement: str) -> str:
    """What is wrong with the installed version, if anything is."""
    found = re.match(r"[\w.-]+", requirement.partition(";")[0])
    assert found is not None
    name = found[0]
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is not installed"
    have = _numbers(version)
    for operator, wanted in _SPECIFIER.findall(requirement.partition(";")[0]):
        want = _numbers(wanted)
        fits = {">=": have >= want, "<": have < want, "<=": have <= want, ">": have > want}
        if not fits.get(operator, have == want):
            return f"{name} is {version}, wanted is {operator}{wanted}"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


async def check_limits(patient: Patient) -> AsyncIterator[Finding]:
    settings = patient.settings
    waiting = settings.max_queued + settings.max_paused
    wanted = OTHER_FILES + FILES_PER_RUN * settings.max_running + FILES_PER_CLIENT * waiting
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        yield warning(
            f"a process may open {soft} files, and MAX_RUNNING, MAX_QUEUED and MAX_PAUSED may need {wanted}",
            f"ulimit -n {wanted}, or LimitNOFILE={max(wanted, 65536)} in the systemd unit",
        )
    else:
        shown = "any number of" if soft == resource.RLIM_INFINITY else str(soft)
        yield ok(f"a process may open {shown} files; about {wanted} are needed at most")
    available = _available_bytes()
    needed = settings.max_running * RUN_BYTES
    if available is not None and available < needed:
        yield warning(
            f"{available >> 20} MiB of memory are free, and {settings.max_running} runs take some {needed >> 20}",
            "Lower MAX_RUNNING, or give the machine more.",
        )


def _available_bytes() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = re.search(r"MemAvailable:\s+(\d+) kB", file.read())
    except OSError:
        return None
    return int(found[1]) << 10 if found else None


async def check_temporary_files(_: Patient) -> AsyncIterator[Finding]:
    try:
        folder = tempfile.gettempdir()
        with tempfile.TemporaryFile() as file:
            file.write(b"x")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        yield failed(
            f"no temporary file can be made: {error.strerror or error}",
            "TMPDIR=/a/folder/that/can/be/written, or a tmpfs on /tmp",
        )
        return
    if free < LEAST_FREE_BYTES:
        yield warning(
            f"{folder} has {free >> 20} MiB left, where a jail may use 64",
            f"df -h {folder}; free some, or set TMPDIR",
        )
    else:
        yield ok(f"{folder} can be written and has {free >> 20} MiB left")
