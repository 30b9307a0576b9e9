"""`smolgate doctor` where something is wrong, and where nothing is: real servers, proxies and jails."""

import asyncio
import ctypes.util
import json
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from conftest import FakeUpstream, Handler, MakeGateway, chunk
from nginx_proxy import nginx_before
from server_process import ROOT, environment, server_process, status_of, wait_for

from bench.debian_packages import Unavailable
from bench.nginx_site import nginx_site
from bench.processes import scripted_upstream
from bench.relay_servers import free_port
from server.doctor import examine, read_what_works
from server.doctor_jail import check_jail
from server.doctor_place import check_keys
from server.doctor_proxy import check_through
from server.doctor_report import Check, Finding, Patient, Report, ok
from server.doctor_upstreams import check_upstreams
from server.settings import make_settings

START = str(Path(__file__).parent / "restricted_start.py")


def doctor(*flags: str, command: Sequence[str] = (), **values: str) -> tuple[int, Any, str]:
    """Exit code, report and stderr of the command, JAIL off unless it is said."""
    done = subprocess.run(
        [*(command or (sys.executable, "-m", "server")), "doctor", "--json", *flags],
        cwd=ROOT,
        env=environment(**{"JAIL": "off"} | values),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout.startswith("{"), done.stderr[-2000:]
    return done.returncode, json.loads(done.stdout), done.stderr


def of(report: Any, check: str, status: str = "") -> list[Any]:
    return [
        finding
        for finding in report["findings"]
        if finding["check"] == check and finding["status"] in (status or finding["status"])
    ]


def patient(**settings: Any) -> Patient:
    return Patient(make_settings(**settings), {})


async def all_of(check: Callable[[Patient], AsyncIterator[Finding]], who: Patient) -> list[Finding]:
    return [finding async for finding in check(who)]


async def the_fault(check: Callable[[Patient], AsyncIterator[Finding]], who: Patient) -> Finding:
    """The one finding that is not ok; it says how to mend it."""
    (found,) = [finding for finding in await all_of(check, who) if finding.status != "ok"]
    assert found.mend
    return found


def test_an_embedded_server_that_runs_is_healthy() -> None:
    with server_process(UPSTREAM_OPENAI_BASE="", JAIL="required") as server:
        port = server.base.rpartition(":")[2]
        wait_for(
            lambda: status_of(f"{server.base}/readyz", key="") == 200, 60
        )  # it loads its model
        code, report, _ = doctor("--port", port, JAIL="required")
    assert [finding for finding in report["findings"] if finding["status"] != "ok"] == []
    assert (code, report["status"]) == (0, "ok")
    (place,) = of(report, "place")
    assert place["found"] == f"smolgate 0.1.0 answers at 127.0.0.1 port {port} and is ready"
    assert [finding["found"].split(",")[0] for finding in of(report, "jail")] == [
        "layers: namespaces",
        "code in a jail computes",
    ]
    assert any("first token after" in finding["found"] for finding in of(report, "upstreams"))
    assert {finding["mend"] for finding in report["findings"]} == {""}


def test_everything_wrong_is_told_at_once_and_no_secret(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sg-a-key-of-somebody\n")
    keys.chmod(0o644)
    (tmp_path / "loud.py").write_text("print('loud')\nraise ValueError('told token-of-mine')\n")
    with ExitStack() as stack:
        taken = stack.enter_context(scripted_upstream())  # another program's port
        code, report, _ = doctor(
            *("--max-queued", "many", "--api-token-file", "/nowhere", "--port", str(taken)),
            PYTHONPATH=str(tmp_path),
            MAX_RUNNING="0",
            HF_TOKEN="token-of-mine",
            API_KEYS="sg-another-key,bad key",
            API_KEYS_FILE=str(keys),
            UPSTREAM_OPENAI_BASE="http://user:pass-of-mine@127.0.0.1:1/v1",
            AGENTS="loud=loud:make,other=nowhere:make",
            HOST="0.0.0.0",
            HEARTBEAT_SECONDS="90",
            RUNNER="process",
        )
    assert (code, report["status"]) == (2, "failed")
    settings = " ".join(finding["found"] for finding in of(report, "settings", "failed"))
    for name in (
        "--max-queued is 'many'",
        "--api-token-file is '/nowhere'",
        "MAX_RUNNING",
        "API_KEYS",
    ):
        assert name in settings
    (file,) = of(report, "keys", "warning")
    assert file["mend"] == f"chmod 600 {keys}"
    assert of(report, "silence", "warning")[0]["mend"] == "HEARTBEAT_SECONDS=15"
    assert of(report, "place", "failed")[0]["mend"].startswith("PORT=another")
    assert "nobody listens at 127.0.0.1 port 1" in of(report, "upstreams", "failed")[0]["found"]
    assert len(of(report, "agents", "failed")) == 2
    assert of(report, "jail", "warning")
    assert of(report, "runner", "ok")
    told = json.dumps(report)
    for secret in ("token-of-mine", "pass-of-mine", "sg-another-key", "sg-a-key-of-somebody"):
        assert secret not in told


def test_lines_for_people_say_how_to_mend() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server", "doctor", "--hf-token", "hf_from_the_command_line"],
        cwd=ROOT,
        env=environment(UPSTREAM_OPENAI_BASE="http://127.0.0.1:1/v1", JAIL="off"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    at = lines.index(
        " failed  upstreams: default: nobody listens at 127.0.0.1 port 1 (Connect call failed ('127.0.0.1', 1))"
    )
    assert lines[at + 1] == "         → Start the upstream there, or correct UPSTREAM_OPENAI_BASE"
    assert lines[-1].endswith(" 1 failed")
    assert "hf_from_the_command_line" not in done.stdout + done.stderr


async def test_a_check_that_hangs_or_breaks_stops_no_other(tmp_path: Path) -> None:
    async def hang(_: Patient) -> AsyncIterator[Finding]:
        yield ok("begun")
        await asyncio.sleep(60)

    async def broken(_: Patient) -> AsyncIterator[Finding]:
        raise ZeroDivisionError("of secret-words")
        yield ok("never")

    async def well(_: Patient) -> AsyncIterator[Finding]:
        yield ok("well")

    checks = (Check("a", hang, 0.05), Check("b", broken, 1), Check("c", well, 1))
    with (tmp_path / "out").open("w+") as out:
        report = Report(out, as_json=True, secrets=["secret-words"])
        await examine(patient(), report, checks)
        assert report.close() == 2
        out.seek(0)
        told = json.load(out)
    assert [(f["check"], f["status"]) for f in told["findings"]] == [
        ("a", "ok"),
        ("a", "failed"),
        ("b", "failed"),
        ("c", "ok"),
    ]
    assert told["findings"][2]["found"].endswith("ZeroDivisionError: of (hidden)")


def test_settings_that_cannot_work_are_left_out_one_by_one() -> None:
    arguments = ["--jail", "off", "--jail-memory-bytes", "few", "--max-queued=many", "--port", "7"]
    variables = {"MAX_RUNNING": "0", "AGENT_MODEL": "m", "WARM_JAILS": "3"}
    settings, errors = read_what_works(arguments, variables)
    assert [error.split()[0] for error in sorted(errors)] == [
        "--jail-memory-bytes",
        "--max-queued",
        "AGENT_MODEL",
        "MAX_RUNNING",
    ]
    assert (settings.jail, settings.port, settings.warm_jails) == ("off", 7, 3)
    assert settings.embedded


def test_nobody_reads_on() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "server", "doctor"],
        cwd=ROOT,
        env=environment(UPSTREAM_OPENAI_BASE="http://127.0.0.1:1/v1", JAIL="off"),
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


# Upstreams.


@asynccontextmanager
async def serving(
    app: web.Application, context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def upstream_app(*, token: str = "", text: str = "yes", model: str = "up/model") -> web.Application:
    """An OpenAI server with one model."""

    def refusal(request: web.Request) -> web.Response | None:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and given != token:
            status = 403 if given == "another" else 401
            return web.json_response({"error": {"message": f"no, {given}"}}, status=status)
        return None

    async def models(request: web.Request) -> web.Response:
        return refusal(request) or web.json_response({"data": [{"id": model}]})

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body["model"] != model:
            error = {"message": f"The model {body['model']} does not exist."}
            return web.json_response({"error": error}, status=404)
        if not body["stream"]:
            return web.json_response({"choices": [{"message": {"content": text}}]})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for letter in text:
            await response.write(f"data: {json.dumps(chunk(content=letter))}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", chat)
    return app


def replying(response: web.Response) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return response

    return handler


def at(port: int, **settings: Any) -> Patient:
    values = {"upstream_base": f"http://127.0.0.1:{port}/v1", "model": "up/model"}
    return patient(**values | settings)


async def test_an_upstream_that_answers_is_well() -> None:
    async with serving(upstream_app(token="right")) as port:
        findings = await all_of(check_upstreams, at(port, token="right"))
    assert [finding.status for finding in findings] == ["ok", "ok", "ok"]
    assert findings[0].found == "default: it is reachable, takes the token, lists 1 models"
    assert "3 events" in findings[1].found


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, "it wants a token (401)"),
        ("wrong-one", "it does not accept the token (401)"),
        ("another", "it knows the token and does not allow it this (403)"),
    ],
)
async def test_a_token_that_is_not_taken_is_told_apart(token: str | None, said: str) -> None:
    async with serving(upstream_app(token="right")) as port:
        found = await the_fault(check_upstreams, at(port, token=token))
    assert found.status == "failed"
    assert said in found.found
    assert "HF_TOKEN" in found.mend


async def test_a_model_that_is_not_known() -> None:
    async with serving(upstream_app(model="other/model")) as port:
        findings = await all_of(check_upstreams, at(port))
    assert [finding.status for finding in findings] == ["ok", "warning", "failed"]
    assert "AGENT_MODEL=…, one of other/model" in findings[1].mend
    assert "up/model does not answer as a stream: status 404: The model" in findings[2].found


@pytest.mark.parametrize(
    ("text", "settings", "status", "mend"),
    [
        ("<think>hm</think>yes", {}, "ok", "NOTHINK_SCRUB=reasoning (now tags)"),
        ("hm</think>yes", {}, "warning", "THINK_STARTS_OPEN=1"),
        ("hm</think>yes", {"think_starts_open": True}, "ok", "NOTHINK_SCRUB=reasoning"),
    ],
)
async def test_thoughts_in_the_answer_ask_for_a_setting(
    text: str, settings: dict[str, Any], status: str, mend: str
) -> None:
    async with serving(upstream_app(text=text)) as port:
        findings = await all_of(check_upstreams, at(port, **settings))
    (found,) = [finding for finding in findings if "think" in finding.found]
    assert found.status == status
    assert mend in found.mend


async def test_an_address_that_is_wrong(upstream: FakeUpstream) -> None:
    async with serving(upstream_app()) as port:
        found = await the_fault(check_upstreams, at(0, upstream_base=f"http://127.0.0.1:{port}"))
        assert found.found == "default: its address lacks the /v1"
        found = await the_fault(
            check_upstreams, at(0, upstream_base=f"https://127.0.0.1:{port}/v1")
        )
        assert "speaks no TLS" in found.found
    found = await the_fault(check_upstreams, at(0, upstream_base="http://no.such.host.invalid/v1"))
    assert found.found == "default: there is no host of the name no.such.host.invalid"
    found = await the_fault(check_upstreams, at(free_port()))
    assert "nobody listens" in found.found
    upstream.handler = replying(web.Response(text="<html>", content_type="text/html"))
    found = await the_fault(check_upstreams, at(0, upstream_base=upstream.base))
    assert "no OpenAI server" in found.found
    upstream.handler = replying(web.json_response({}, status=502))
    found = await the_fault(check_upstreams, at(0, upstream_base=upstream.base))
    assert "status 502" in found.found


async def test_a_certificate_that_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    signer = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    signer.issue_cert("localhost").configure_cert(context)
    async with serving(upstream_app(), context) as port:
        who = at(0, upstream_base=f"https://localhost:{port}/v1")
        found = await the_fault(check_upstreams, who)
        assert "is not trusted: " in found.found
        assert "SSL_CERT_FILE" in found.mend
        signer.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        env = {"SSL_CERT_FILE": str(tmp_path / "ca.pem"), "AGENT_MODEL": "up/model"}
        base = f"https://localhost:{port}/v1"
        code, report, _ = await asyncio.to_thread(doctor, "--upstream-openai-base", base, **env)
    assert code == 1  # the jail is off
    assert {finding["status"] for finding in of(report, "upstreams")} == {"ok"}
    assert "its certificate is trusted" in of(report, "upstreams")[0]["found"]


# Jails.


async def test_a_machine_that_allows_no_layer_is_told_what_code_can_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from streaming.interpreters import jail_pool

    monkeypatch.setattr(jail_pool, "LAYERS", ())
    findings = await all_of(check_jail, patient())
    assert [finding.status for finding in findings] == ["ok", "failed", "failed"]
    assert findings[1].found == "no layer for files and system calls: code is hardly confined"
    assert (
        "code in a jail can: read /etc/passwd, write beside its folder, reach the net"
        in findings[2].found
    )


def test_a_machine_without_namespaces_is_told_how_to_allow_them() -> None:
    if os.geteuid() != 0 or ctypes.util.find_library("seccomp") is None:
        pytest.skip("only root can confine a command as an engine would, by libseccomp")
    command = (sys.executable, START, "docker", sys.executable, "-m", "server")
    code, report, _ = doctor(
        command=command, JAIL="required", UPSTREAM_OPENAI_BASE="http://127.0.0.1:1/v1"
    )
    assert code == 2  # the upstream
    layers, *missing, tried = of(report, "jail")
    assert layers["found"].startswith("layers: landlock, seccomp (Landlock ABI ")
    assert [finding["status"] for finding in missing] == ["warning"] * len(missing)
    (namespaces,) = [each for each in missing if each["found"].startswith("no namespaces: ")]
    assert "sysctl -w user.max_user_namespaces" in namespaces["mend"]
    assert (tried["status"], tried["found"][:24]) == ("ok", "code in a jail computes,")


# Files.


async def test_keys_that_others_may_read_or_change(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sg-key\n")
    for mode, status in ((0o600, "ok"), (0o640, "ok"), (0o644, "warning"), (0o606, "failed")):
        keys.chmod(mode)
        findings = await all_of(check_keys, patient(api_keys_file=str(keys)))
        assert findings[0].status == status
    token = tmp_path / "token"
    token.write_text("hf_x")
    token.chmod(0o644)
    entries = json.dumps(
        [{"models": ["m"], "base": "http://127.0.0.1:1/v1", "token_file": str(token)}]
    )
    variables = {"API_TOKEN_FILE": str(token), "UPSTREAM_OPENAI_BASE": "http://127.0.0.1:1/v1"}
    arguments = ["--upstreams", entries]
    settings, errors = read_what_works(arguments, variables)
    assert errors == []
    findings = await all_of(check_keys, Patient(settings, variables, tuple(arguments)))
    assert [finding.mend for finding in findings[:2]] == [f"chmod 600 {token}"] * 2


# Proxies.


async def through(base: str, **settings: Any) -> dict[str, Finding]:
    """What the checks of a proxy find, by the first words."""
    who = Patient(make_settings(**settings), {}, through=f"{base}/v1")
    findings = await all_of(check_through, who)
    return {" ".join(finding.found.split()[:3]): finding for finding in findings}


async def test_a_proxy_that_buffers_is_found_and_told(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    more = "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering; proxy_hide_header X-Request-Id;"
    with nginx_before(gateway.base, read_timeout="60s", more=more) as base:
        found = await through(base)
    assert found["all events came"].status == "failed"
    assert "proxy_buffering off" in found["all events came"].mend
    assert found["X-Request-Id does not"].status == "warning"
    assert "proxy_http_version 1.1" in found["the proxy speaks"].mend
    assert "X-Forwarded-For $remote_addr" in found["the server takes"].mend
    assert found["a body of"].mend == "client_max_body_size 16m;"  # nginx' default is 1m


async def test_the_shipped_site_is_well(tmp_path: Path) -> None:
    """Over TLS, with a key, and the server on a unix socket."""
    path = f"{tmp_path}/s.sock"
    with ExitStack() as stack:
        flags = ("--unix-socket", path, "--trusted-proxies", "unix")
        stack.enter_context(server_process(*flags, API_KEYS="sg-right"))
        try:
            nginx = stack.enter_context(nginx_site(f"unix:{path}"))
        except Unavailable as error:
            pytest.skip(str(error))
        values = {
            "SSL_CERT_FILE": str(nginx.authority),
            "UPSTREAM_OPENAI_BASE": "http://127.0.0.1:1/v1",
            "API_KEYS": "sg-right",
        }
        through_it = ("--through", nginx.base)
        _, report, _ = await asyncio.to_thread(
            doctor, *flags, *through_it, **values, SMOLGATE_API_KEY="sg-right"
        )
        told = [each for each in report["findings"] if each["check"] == "proxy"]
        assert {each["status"] for each in told} == {"ok"}, told
        assert len(told) == 6
        assert "smolgate 0.1.0 answers at" in of(report, "place")[0]["found"]
        _, report, _ = await asyncio.to_thread(doctor, *flags, *through_it, **values)
        assert "wants an API key" in of(report, "proxy", "failed")[0]["found"]


async def test_a_server_behind_no_proxy_or_none_at_all(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway(trusted_proxies=())
    found = await through(gateway.base)
    assert found["events arrive one"].status == "ok"
    assert found["the server takes"].status == "warning"
    for base, said in (
        (f"http://127.0.0.1:{free_port()}", "nobody answers at"),
        ("ftp://x", "--through is no"),
        ("https" + gateway.base.removeprefix("http"), "127.0.0.1"),
    ):
        ((found_words, finding),) = (await through(base)).items()
        assert found_words.startswith(said)
        assert finding.status == "failed"
