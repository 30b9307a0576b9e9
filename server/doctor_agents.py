"""Agents, their MCP servers and where their runs live. In: settings. Out: findings; nothing is left running.

Agents' modules are imported here as the server does, in a thread that may hang without holding up the rest.
"""

import asyncio
import importlib.util
import os
from collections.abc import AsyncIterator

from server.doctor_report import Finding, Patient, failed, ok, warning
from server.setting_values import BadSetting
from server.settings import Settings
from streaming.runners.daemon_pool import DaemonThreadPool

CONNECT_SECONDS = 5.0
BOOT_SECONDS = 20.0


async def check_agents(patient: Patient) -> AsyncIterator[Finding]:
    """Each by itself, so that all that cannot work are told."""
    settings = patient.settings
    for name, source in ({"": ""} | dict(settings.agents)).items():
        agents = {name: source} if name else {}
        try:
            await _in_thread(_load, settings, agents)
        except BadSetting as error:
            yield failed(
                str(error),
                "python -c 'import …' shows the whole error; docs/agents.md says what an agent is",
            )
        else:
            yield ok(
                f"the agent {name}={source} can be made"
                if name
                else "the default agent can be made"
            )


def _load(settings: Settings, agents: dict[str, str]) -> object:
    from server.registry import load_agents

    return load_agents(agents, embedded=settings.embedded, elsewhere=settings.agents_elsewhere)


async def _in_thread(function: object, *arguments: object) -> object:
    pool = DaemonThreadPool(1, name="doctor")
    return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)  # type: ignore[arg-type]


async def check_mcp_servers(patient: Patient) -> AsyncIterator[Finding]:
    from streaming.mcp_server import McpUnavailable

    servers = await _in_thread(_servers_of, patient.settings)
    assert isinstance(servers, list)
    if not servers:
        return
    if patient.settings.runner != "thread":
        yield failed(
            f"RUNNER is {patient.settings.runner!r}, and an agent has MCP servers", "RUNNER=thread"
        )
    try:
        from streaming.mcp_connection import McpConnection
    except ImportError:
        yield failed(
            "agents have MCP servers, and the SDK is not installed", "pip install 'smolgate[mcp]'"
        )
        return
    for agent, name, server in servers:
        connection = McpConnection(name, server)
        try:
            await connection.open()
        except McpUnavailable as error:
            yield failed(f"{agent}: {error}", "Start its command by hand, or ask its URL with curl")
        else:
            yield ok(f"{agent}: the MCP server {name!r} has {len(connection.tools)} tools")
        finally:
            await connection.close()


def _servers_of(settings: Settings) -> list[tuple[str, str, object]]:
    """The MCP servers of agents whose settings can be read."""
    found: list[tuple[str, str, object]] = []
    for name, source in settings.agents.items():
        try:
            loaded = _load(settings, {name: source})
        except BadSetting:
            continue  # told by check_agents
        servers = getattr(loaded, "mcp_servers", {}).get(name, {})
        found += [(name, each, server) for each, server in servers.items()]
    return found


async def check_runner(patient: Patient) -> AsyncIterator[Finding]:
    settings = patient.settings
    if settings.runner == "thread":
        yield ok(f"runs live in threads, at most {settings.max_running}")
    elif settings.runner == "process":
        yield await _processes(settings)
    else:
        yield await _cluster(settings)


async def _processes(settings: Settings) -> Finding:
    from server.runner_choice import LOADER, environment_of_runs
    from streaming.interpreters.zygote_link import ZygoteLink
    from streaming.interpreters.zygote_wire import FromZygote
    from streaming.runners.run_process import RunLimits
    from streaming.runners.run_zygote import RunZygoteSettings

    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def tell(reason: str) -> None:
        if not told.done():
            told.set_result(reason)

    def on_message(message: FromZygote, fds: list[int]) -> None:
        tell("")

    limits = RunLimits(settings.process_memory_bytes, settings.process_cpu_seconds)
    link = ZygoteLink(
        "streaming.runners.run_zygote",
        RunZygoteSettings(LOADER, dict(settings.agents), limits),
        purpose="runs",
        environment=environment_of_runs(settings),
        folder=os.getcwd(),
        on_message=on_message,
        on_gone=tell,
    )
    link.start()
    try:
        async with asyncio.timeout(BOOT_SECONDS):
            reason = await told
    except TimeoutError:
        reason = f"it is not up after {BOOT_SECONDS:g} s"
    finally:
        await link.close()
    if reason:
        return failed(
            f"the process that starts runs does not come up: {reason}", "See its error above."
        )
    return ok("the process that starts runs comes up")


async def _cluster(settings: Settings) -> Finding:
    if importlib.util.find_spec("ray") is None:
        return failed("Ray is not installed", "pip install 'smolgate[ray]'")
    host, _, port = (settings.ray_address or "").rpartition(":")
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.close()
    except (OSError, ValueError) as error:
        return failed(
            f"the Ray head {settings.ray_address} is not reached: {error or 'no answer'}",
            "ray start --head there, or correct RAY_ADDRESS; a firewall?",
        )
    return warning(
        f"the Ray head {settings.ray_address} is reached; whether it takes the token shows only a run",
        "GET /readyz of the running server tells of the cluster",
    )
