"""The jail: which layers this machine allows, and whether code in one is held.

In: settings. Out: findings. A real jail computes, and then tries what it must not be able to.
"""

import asyncio
import os
import socket
import tempfile
from collections.abc import AsyncIterator

from server.doctor_report import Finding, Patient, failed, ok, warning
from streaming.interpreters.confinement import LAYERS, JailLimits
from streaming.interpreters.jail_pool import JailPool, JailUnavailable
from streaming.interpreters.landlock import landlock_version
from streaming.runners.daemon_pool import DaemonThreadPool

READY_SECONDS = 20.0
STEP_SECONDS = 5.0

MENDS = {
    "namespaces": "sysctl -w user.max_user_namespaces=15000 kernel.apparmor_restrict_unprivileged_userns=0; systemd: RestrictNamespaces=user mnt uts ipc net; in a default container Landlock and seccomp have to do",
    "root": "as namespaces; systemd: SystemCallFilter=@system-service @mount",
    "user": "start it as a user of its own rather than as root",
    "landlock": "Linux 5.13 or newer with landlock in its list: cat /sys/kernel/security/lsm (boot parameter lsm=landlock,…)",
    "seccomp": "a kernel with CONFIG_SECCOMP_FILTER, on x86_64 or aarch64",
}
# What a jail must not be able to: Python that raises OSError there. FOLDER is everybody's, PORT listens.
ESCAPES = {
    "read /etc/passwd": "os.open('/etc/passwd', os.O_RDONLY)",
    "write beside its folder": "os.open('FOLDER/file', os.O_CREAT | os.O_WRONLY)",
    "reach the network": "socket.create_connection(('127.0.0.1', PORT), 1)",
    "start a program": "os.execv('/bin/true', ['true'])",
    "fork": "os._exit(0) if os.fork() == 0 else None",
    "signal another process": "os.kill(os.getppid(), 0)",
}
HELD = "held"


async def check_jail(patient: Patient) -> AsyncIterator[Finding]:
    settings = patient.settings
    if settings.jail == "off":
        yield warning(
            "JAIL is off: model-written code runs in the server itself, unconfined",
            "JAIL=required, unless everybody who asks is trusted",
        )
        return
    try:
        async with JailPool(warm=0) as pool:
            async with asyncio.timeout(READY_SECONDS):
                await pool.ready()
            for finding in _layers(pool, is_required=settings.jail == "required"):
                yield finding
            yield await _tried(pool, settings.jail_memory_bytes)
    except (JailUnavailable, TimeoutError) as error:
        yield failed(
            f"no jail can be had: {error or 'it does not start'}",
            "It needs Linux 5.4 or newer, and pidfds; JAIL=off only where all who ask are trusted",
        )


def _layers(pool: JailPool, *, is_required: bool) -> list[Finding]:
    assert pool.report is not None
    active, refused = pool.report.layers, pool.report.refused
    shown = ", ".join(active) or "none"
    if "landlock" in active:
        shown += f" (Landlock ABI {landlock_version()})"
    findings = [ok(f"layers: {shown}, resource limits")]
    findings += [
        warning(f"no {layer}: {refused[layer]}", MENDS[layer])
        for layer in LAYERS
        if layer in refused
    ]
    lacks = []
    if not {"root", "landlock"} & set(active):
        lacks.append("files")
    if "seccomp" not in active:
        lacks.append("system calls")
    if lacks:
        end = "the server does not start" if is_required else "code is hardly confined"
        findings.append(
            failed(
                f"no layer for {' and '.join(lacks)}: {end}",
                "Mend one of the above, or use another machine.",
            )
        )
    return findings


async def _tried(pool: JailPool, memory_bytes: int) -> Finding:
    work = asyncio.get_running_loop().run_in_executor(
        DaemonThreadPool(1, name="jail"), _try_it, pool, memory_bytes
    )
    answer, escaped = await work
    if answer != "2\n":
        return failed(
            f"code in a jail does not compute: print(1 + 1) gives {answer!r}",
            "See its error above.",
        )
    if escaped:
        return failed(
            f"code in a jail can: {', '.join(escaped)}",
            "Do not serve strangers; mend the layers above.",
        )
    return ok(f"code in a jail computes, and cannot: {', '.join(ESCAPES)}")


def _try_it(pool: JailPool, memory_bytes: int) -> tuple[str, list[str]]:
    """What 1 + 1 is there, and which escapes did not fail."""
    from smolagents.local_python_executor import InterpreterError

    from streaming.interpreters.jail import JailInterpreter

    printed: list[str] = []
    jail = JailInterpreter(
        pool,
        authorized_imports=["*"],
        on_print=printed.append,
        check_stop=lambda: None,
        step_seconds=STEP_SECONDS,
        limits=JailLimits(memory_bytes=memory_bytes),
    )

    def run(code: str) -> str:
        printed.clear()
        try:
            jail(code)
        except InterpreterError as error:
            printed.append(str(error))
        return "".join(printed)

    try:
        with (
            tempfile.TemporaryDirectory(prefix="smolgate-doctor-") as folder,
            socket.create_server(("127.0.0.1", 0)) as listening,
        ):
            os.chmod(folder, 0o777)
            port = str(listening.getsockname()[1])
            jail.send_tools({})
            answer = run("print(1 + 1)")
            tried = {
                name: run(_TRY.format(code=code.replace("FOLDER", folder).replace("PORT", port)))
                for name, code in ESCAPES.items()
            }
    finally:
        jail.cleanup()
    return answer, [name for name, said in tried.items() if said != HELD + "\n"]


_TRY = f"""
import os, socket
try:
    {{code}}
    print("escaped")
except OSError:
    print({HELD!r})
"""
