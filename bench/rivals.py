"""smolgate beside other proxies for OpenAI's API, in one run, before one upstream.

    python -m bench.rivals [NAME…] [--quick]

They are installed on demand, pinned, each into a folder of its own in .venv-rivals/; what cannot be had here is
left out, with its reason. Each is one process on the core that the load does not have, as its makers start it,
quiet, without a database; smolgate has keys, limits, metrics and its access log on. CPU is user + system of the
process; every answer's text is compared.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvloop

from bench.debian_packages import Unavailable
from bench.relay import quiet_machine
from bench.relay_run import QUICK, Bench, Effort
from bench.relay_servers import Server, await_port, free_ports, gateway_server, nginx_server, pin
from bench.relay_work import MODEL, Work

FOLDER = Path(__file__).parent.parent / ".venv-rivals"
INSTALL_SECONDS, START_SECONDS, TRIAL_SECONDS = 600, 90.0, 40.0
# A burst request of LiteLLM's costs at least so many of smolgate's.
LITELLM_GOAL = 50
WORKS = {
    "burst": Work("burst", exact=False),
    "alone": Work("lockstep", exact=False),
    "plain": Work("plain", exact=False),
}
_UNITS = {"burst": "burst, µs/request", "alone": "alone, µs/event", "plain": "2 KB, µs/request"}

# (a folder with what is installed, an own folder, its port, a further one, the upstream's) → the command
Command = Callable[[Path, Path, int, int, int], Sequence[str]]


@dataclass(frozen=True)
class Rival:
    """One other proxy. `packages` are pip's, or npm's where `node`."""

    name: str
    packages: tuple[str, ...]
    command: Command
    node: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    # What a client has to send besides, where {upstream} is the upstream's base URL.
    head: str = ""


def _litellm(there: Path, own: Path, port: int, _: int, upstream: int) -> Sequence[str]:
    config = own / "litellm.json"  # JSON is YAML, too
    parameters = {
        "model": f"openai/{MODEL}",
        "api_base": f"http://127.0.0.1:{upstream}/v1",
        "api_key": "none",
    }
    config.write_text(
        json.dumps(
            {
                "model_list": [{"model_name": MODEL, "litellm_params": parameters}],
                "litellm_settings": {"telemetry": False, "num_retries": 0},
            }
        )
    )
    binary = str(there / "bin" / "litellm")
    return (binary, "--config", str(config), "--host", "127.0.0.1", "--port", str(port))


def _portkey(there: Path, _own: Path, port: int, _: int, _upstream: int) -> Sequence[str]:
    script = there / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    return ("node", str(script), f"--port={port}", "--headless")


def _router(binary: str, *words: str) -> Command:
    def command(there: Path, _own: Path, port: int, metrics: int, upstream: int) -> Sequence[str]:
        return (
            *(str(there / "bin" / binary), *words, "--host", "127.0.0.1", "--port", str(port)),
            *("--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "round_robin"),
            *("--log-level", "error", "--prometheus-port", str(metrics)),
        )

    return command


RIVALS = (
    Rival(
        "LiteLLM proxy 1.108.7",
        ("litellm[proxy]==1.108.7", "uvloop==0.23.0"),
        _litellm,
        environment={
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            # Without keys: nobody else reaches it.
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        },
    ),
    # On Node 20.20 it answers every stream with 500; its other row is measured.
    Rival(
        "Portkey gateway 1.15.2",
        ("@portkey-ai/gateway@1.15.2",),
        _portkey,
        node=True,
        environment={"NODE_ENV": "production"},
        head="x-portkey-provider: openai\r\nx-portkey-custom-host: {upstream}\r\n",
    ),
    Rival("vllm-router 0.1.17", ("vllm-router==0.1.17",), _router("vllm-router")),
    Rival("sglang-router 0.3.2", ("sglang-router==0.3.2",), _router("sglang-router", "launch")),
)


def installed(rival: Rival) -> Path:
    """Where it is, installed if need be. Raises Unavailable."""
    there = FOLDER / rival.name.replace(" ", "-").lower()
    mark = there / ".made"
    if mark.exists():
        return there
    print(f"installing {rival.name}", flush=True)
    shutil.rmtree(there, ignore_errors=True)
    there.mkdir(parents=True)
    if rival.node:
        if shutil.which("npm") is None:
            raise Unavailable("there is no npm")
        flags = ("--silent", "--no-audit", "--no-fund", "--ignore-scripts")
        commands = [("npm", "install", *flags, "--prefix", str(there), *rival.packages)]
    else:
        flags = ("--quiet", "--disable-pip-version-check", "--only-binary", ":all:")
        commands = [
            (sys.executable, "-m", "venv", str(there)),
            (str(there / "bin" / "python"), "-m", "pip", "install", *flags, *rival.packages),
        ]
    for command in commands:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
        if done.returncode:
            raise Unavailable(f"it cannot be installed: {done.stderr.strip()[-300:]}")
    mark.touch()
    return there


@contextmanager
def running(rival: Rival, upstream_port: int) -> Iterator[Server]:
    """The rival, serving. Raises Unavailable."""
    there = installed(rival)
    port, metrics = free_ports(2)
    with tempfile.TemporaryDirectory(prefix="rival-") as name, open(f"{name}/log", "wb") as log:
        command = rival.command(there, Path(name), port, metrics, upstream_port)
        with subprocess.Popen(
            command, cwd=name, env=os.environ | rival.environment, stdout=log, stderr=log
        ) as process:
            try:
                try:
                    await_port(port, START_SECONDS)
                except OSError:
                    said = Path(name, "log").read_text(errors="replace").strip()[-300:]
                    raise Unavailable(f"it does not start: {said}") from None
                pin(process.pid, (os.cpu_count() or 1) - 1)
                yield Server(rival.name, process.pid, port)
            finally:
                process.kill()


async def answers(bench: Bench, server: Server, work: Work) -> None:
    """Wait until it serves: some do so a while after they listen. Raises Unavailable."""
    error: Exception | None = None
    loop = asyncio.get_running_loop()
    latest = loop.time() + TRIAL_SECONDS
    while loop.time() < latest:
        load = await bench.connected(server.port, work, 1)
        try:
            load.start()
            async with asyncio.timeout_at(latest):
                await load.stop()
        except Exception as raised:  # noqa: BLE001 - told below
            error = raised
            await asyncio.sleep(0.5)
        else:
            return
        finally:
            load.close()
    raise Unavailable(f"it does not answer: {str(error)[:300]}")


async def measure(names: Sequence[str], effort: Effort) -> dict[str, dict[str, float]]:
    """CPU µs by server and work, printed as they come; all take turns with smolgate's."""
    bench = Bench(effort)
    listening = await bench.listen()
    found: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        smolgate = stack.enter_context(gateway_server(bench.port, "smolgate"))
        contenders: list[tuple[Server, str, list[str]]] = []
        try:
            contenders.append((stack.enter_context(nginx_server(bench.port)), "", [*WORKS]))
        except Unavailable as error:
            print(f"no nginx: {error}")
        for rival in RIVALS:
            if names and not any(rival.name.lower().startswith(name.lower()) for name in names):
                continue
            head = rival.head.format(upstream=f"http://127.0.0.1:{bench.port}/v1")
            try:
                # In a thread: the upstream, which some ask at their start, is in this one.
                server = await asyncio.to_thread(stack.enter_context, running(rival, bench.port))
            except Unavailable as error:
                print(f"no {rival.name}: {error}")
                continue
            able = []
            for name, work in WORKS.items():
                try:
                    await answers(bench, server, replace(work, head=head))
                except Unavailable as error:
                    print(f"{rival.name}, no row {name!r}: {error}")
                else:
                    able.append(name)
            contenders.append((server, head, able))
        print(f"{'CPU':24}" + "".join(f"{unit:>20}{': smolgate':>12}" for unit in _UNITS.values()))
        for server, head, able in contenders:
            row = ""
            for name, work in WORKS.items():
                if name not in able:
                    row += f"{'–':>20}{'–':>12}"
                    continue
                theirs, ours = await bench.costs(
                    [(server, replace(work, head=head)), (smolgate, work)]
                )
                found.setdefault(server.name, {})[name] = theirs.median
                found.setdefault(f"smolgate beside {server.name}", {})[name] = ours.median
                ratio = theirs.ratio(ours)
                row += f"{theirs.median:20.1f}{ratio:12.2f}"
                if name == "burst" and server.name.startswith("LiteLLM"):
                    bench.verdicts.judge("smolgate : LiteLLM, burst", 1 / ratio, 1 / LITELLM_GOAL)
            print(f"{server.name:24}{row}", flush=True)
        own = [costs for name, costs in found.items() if name.startswith("smolgate")]
        row = "".join(
            f"{min(costs[name] for costs in own if name in costs):20.1f}{1:12.2f}" for name in WORKS
        )
        print(f"{'smolgate, at its best':24}{row}")
    listening.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.rivals", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these, as they begin")
    parser.add_argument("--quick", action="store_true", help="rough figures")
    asked = parser.parse_args()
    with quiet_machine(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(asked.names, QUICK if asked.quick else Effort()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
