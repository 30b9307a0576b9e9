"""What `pip install` gives: built as for PyPI, installed into a fresh environment, and run from elsewhere."""

import email
import json
import shutil
import subprocess
import sys
import tarfile
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_process import ROOT, server_process

from bench.processes import scripted_upstream

PACKAGES = ("sanitize", "streaming", "server")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built of it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a fresh environment with the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    (wheel,) = built.glob("*.whl")
    command = [
        *(str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"),
        *("--disable-pip-version-check", "--constraint", str(ROOT / "constraints.txt")),
        f"{wheel}[fast]",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "bin"


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with scripted_upstream() as port:
        yield f"http://127.0.0.1:{port}/v1"


def test_the_wheel_and_the_sdist_hold_every_file_of_the_packages(built: Path) -> None:
    ours = {
        str(path.relative_to(ROOT))
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    (wheel,) = built.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert ours - packed == set()
    assert {name.partition("/")[0] for name in packed if ".dist-info" not in name} == set(PACKAGES)
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert ours - names == set()


def test_the_metadata_names_the_extras(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
    metadata = email.message_from_bytes(archive.read(name))
    extras = set(metadata.get_all("Provides-Extra", []))
    assert {"embedded", "fast", "mcp", "workers"} <= extras
    needed = metadata.get_all("Requires-Dist", [])
    assert any(line.startswith("mcp") and "<2" in line for line in needed)


@pytest.mark.timeout(400)
def test_the_command_is_python_m_server(installed: Path, tmp_path: Path) -> None:
    told = [
        subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, check=True).stdout
        for command in ([installed / "smolgate"], [installed / "python", "-m", "server"])
    ]
    assert told[0] == told[1]
    assert b"--max-running" in told[0]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_installed_command_serves_agents_in_jails(
    installed: Path, upstream: str, tmp_path: Path, workers: str
) -> None:
    """From a folder with an agent of its own, and with another `server` that must not stand in ours."""
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "__init__.py").write_text("raise RuntimeError('not this one')")
    (tmp_path / "shop.py").write_text(
        "from smolagents import CodeAgent\n\n"
        "def make(context):\n    return CodeAgent(tools=[], model=context.model)\n"
    )
    with server_process(
        *("--workers", workers, "--agents", "shop=shop:make"),
        command=[str(installed / "smolgate")],
        cwd=tmp_path,
        UPSTREAM_OPENAI_BASE=upstream,
        JAIL="required",
        PYTHONPATH="",
    ) as server:
        assert ask(f"{server.base}/v1", "shop")["choices"][0]["message"]["content"].endswith(
            "survived"
        )
        with urllib.request.urlopen(f"{server.base}/page/chat.js", timeout=60) as response:
            assert response.status == 200
        assert any("INFO jail: " in line and "seccomp" in line for line in server.lines)


def ask(base: str, model: str) -> Any:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "go"}]}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{base}/chat/completions", body, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_without_the_extra_the_embedded_model_says_what_to_install(
    installed: Path, tmp_path: Path, workers: str
) -> None:
    done = subprocess.run(
        [installed / "smolgate", "--port", "0", "--workers", workers],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install xllamacpp" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
