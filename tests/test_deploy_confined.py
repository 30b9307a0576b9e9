"""The jail under the shipped unit's hardening and in a default container, and the shipped files themselves."""

import configparser
import ctypes.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from conftest import FakeUpstream, events_of, scripted, text_of
from restricted_start import UNIT, directives
from server_process import ROOT, ServerProcess, server_process

from bench.debian_packages import Unavailable, program_path
from server.settings_table import SETTINGS

DOCKER = ROOT / "deploy" / "docker"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "go"}], "stream": True}
START = str(Path(__file__).parent / "restricted_start.py")


def systemd_analyze() -> str:
    try:
        return program_path("systemd-analyze", "systemd")
    except Unavailable as error:
        pytest.skip(str(error))


@contextmanager
def confined(how: str, upstream: FakeUpstream, *flags: str) -> Iterator[ServerProcess]:
    if os.geteuid() != 0 or ctypes.util.find_library("seccomp") is None:
        pytest.skip("only root can confine a server as a manager would, by libseccomp")
    command = (sys.executable, START, how, sys.executable, "-m", "server")
    values: dict[str, Any] = {
        "UPSTREAM_OPENAI_BASE": upstream.base,
        "JAIL": "required",
        "AGENT_MODEL": "up",
    }
    with server_process(*flags, command=command, **values) as server:
        yield server


def layers_of(server: ServerProcess) -> list[str]:
    (line, *_) = [line for line in server.lines if "INFO jail: " in line]
    active = line.partition("jail: ")[2].partition(" (")[0]
    return active.strip().split(", ")


async def answer(server: ServerProcess) -> str:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.base}/v1/chat/completions", json=ASK) as response,
    ):
        return text_of(events_of(await response.read()), "content")


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_the_jail_has_all_its_layers_under_the_units_hardening(
    upstream: FakeUpstream, workers: str
) -> None:
    systemd_analyze()
    upstream.handler = scripted(lambda _: "<code>\nfinal_answer(6 * 7)\n</code>")
    with confined("unit", upstream, "--workers", workers) as server:
        assert layers_of(server) == [
            *("namespaces", "root", "landlock", "seccomp"),
            "resource limits",
        ]
        assert await answer(server) == "42"


async def test_the_jail_works_in_a_default_container(upstream: FakeUpstream) -> None:
    upstream.handler = scripted(lambda _: "<code>\nfinal_answer(6 * 7)\n</code>")
    with confined("docker", upstream) as server:
        assert layers_of(server) == ["landlock", "seccomp", "resource limits"]
        assert await answer(server) == "42"


def test_the_confinement_of_these_tests_confines() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can confine")
    systemd_analyze()
    tries = {
        "write": "open('/etc/smolgate-test', 'w')",
        "mount": "check(libc.mount(b'x', b'/tmp', b'tmpfs', 0, None))",
        "new user namespace": "check(libc.unshare(0x10000000))",
        "new pid namespace": "check(libc.unshare(0x20000000))",
        "reboot": "check(libc.reboot(0))",
    }
    script = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result < 0: raise OSError(ctypes.get_errno(), "refused")
for name, what in {tries!r}.items():
    if (pid := os.fork()) == 0:
        try:
            eval(what)
            print(name, "done", flush=True)
        except OSError as error:
            print(name, os.strerror(error.errno), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""
    told = {}
    for how in ("unit", "docker"):
        command = [sys.executable, START, how, sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        told[how] = done.stdout.splitlines()
    refused = "Operation not permitted"
    assert told["unit"] == [
        "write Read-only file system",
        f"mount {refused}",
        "new user namespace done",
        f"new pid namespace {refused}",
        f"reboot {refused}",
    ]
    assert told["docker"][1:4] == [
        f"mount {refused}",
        f"new user namespace {refused}",
        f"new pid namespace {refused}",
    ]


def test_systemd_takes_the_unit_and_finds_little_exposed(tmp_path: Path) -> None:
    analyze = systemd_analyze()
    unit = tmp_path / "smolgate.service"
    unit.write_text(UNIT.read_text().replace("/opt/smolgate/bin/smolgate", "/bin/true"))
    verified = subprocess.run(
        [analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    about_us = [line for line in verified.stderr.splitlines() if "smolgate" in line]
    assert about_us == []
    command = [analyze, "security", "--offline=true", "--no-pager", str(unit)]
    judged = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"exposure level for smolgate.service: ([\d.]+)", judged.stdout)
    assert found is not None, judged.stderr
    assert float(found[1]) < 3


def names_of_settings() -> set[str]:
    return {name for setting in SETTINGS for name in setting.names}


def test_the_unit_sets_settings_that_there_are() -> None:
    set_ = {word.partition("=")[0] for word in directives("Environment")}
    assert set_ <= names_of_settings()
    unit = configparser.RawConfigParser(strict=False)
    unit.read(UNIT)
    assert unit["Service"]["killmode"] == "mixed"  # else workers get a second SIGTERM


def test_compose_sets_settings_that_there_are_and_no_privilege() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    ours = services["smolgate"]
    assert set(ours["environment"]) <= names_of_settings()
    assert ours["cap_drop"] == ["ALL"]
    assert "privileged" not in ours
    assert "cap_add" not in ours
    assert ours["security_opt"] == ["no-new-privileges:true"]
    for volume in services["nginx"]["volumes"]:
        source = volume.partition(":")[0]
        if source.startswith("../"):
            assert (DOCKER / source).exists(), source
    assert (DOCKER / ours["build"]["context"] / ours["build"]["dockerfile"]).exists()


def test_the_dockerfile_copies_what_there_is_and_runs_as_nobody_special() -> None:
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    copied = [
        word
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    ]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert "USER smolgate" in lines
    assert 'ENTRYPOINT ["/opt/smolgate/bin/smolgate"]' in lines
    (environment,) = [line for line in lines if line.startswith("ENV ")]
    set_ = {word.partition("=")[0] for word in environment.split()[1:]}
    assert set_ - {"PYTHONUNBUFFERED"} <= names_of_settings()
