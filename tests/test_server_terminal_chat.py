"""`smolgate chat` in a real terminal and in pipes, against a real server whose model a test writes."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

from aiohttp import web
from conftest import FakeUpstream, Gateway, MakeGateway, chunk, raw_reply, scripted, until
from server_process import ROOT, environment, server_process
from terminal import CTRL_C, CTRL_D, ENTER, SEQUENCE, terminal

from bench.relay_servers import free_port
from server.keys import SUPERVISOR

ANSWER = "<code>\nprint('multiplying')\nfinal_answer('It is **391**.')\n</code>"
# What a terminal is told while a reply is drawn: colours, the cursor's moves, lines cleared, pastes bracketed.
DRAWING = re.compile(r"\x1b\[([0-9;]*m|[0-9]*[AGK]|\?25[hl]|\?2004[hl])")


def piped(*flags: str, question: str = "", **values: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", "chat", *flags],
        cwd=ROOT,
        env=environment(**values),
        input=question,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def at(gateway: Gateway) -> tuple[str, str, str]:
    return ("chat", "--base-url", f"{gateway.base}/v1")


class Stepwise:
    """A model that writes the beginning of its reply, and the rest once it is let go."""

    def __init__(self, begin: str, rest: str) -> None:
        self.begin, self.rest = begin, rest
        self.goes_on = asyncio.Event()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        head = web.json_response(chunk(content=self.begin)).text
        await response.write(f"data: {head}\n\n".encode())
        await self.goes_on.wait()
        await response.write_eof()
        return response


async def test_reasoning_is_seen_live_and_ctrl_c_ends_the_run_at_the_server(
    upstream: FakeUpstream, make_gateway: MakeGateway, tmp_path: Path
) -> None:
    model = Stepwise("I multiply.\n<code>\nprint('never run')\n", "</code>")
    upstream.handler = model.serve
    gateway = await make_gateway()
    async with terminal(*at(gateway), XDG_STATE_HOME=str(tmp_path)) as shown:
        await shown.see("> ")
        shown.type("What is 17 * 23?" + ENTER)
        await shown.see("I multiply.")
        await shown.see("print('never run')")
        await shown.see("(Ctrl-C stops)")
        (run,) = gateway.app[SUPERVISOR].runs.values()
        shown.type(CTRL_C)
        await shown.see("Stopped.")
        await shown.see("> ")
        await until(lambda: not gateway.app[SUPERVISOR].runs)
        async with gateway.session.get(f"{gateway.base}/v1/runs/{run.id}") as response:
            assert (await response.json())["outcome"] == "cancelled"
        upstream.handler = scripted(lambda _: ANSWER)
        shown.type("again" + ENTER)
        await shown.see("391")
        await shown.see("10 + 5 tokens")
        await shown.see("> ")
        assert "never run" not in str(upstream.bodies()[-1])  # a stopped question leaves no trace
        assert await shown.left_at_its_prompt() == 130
    history = tmp_path / "smolgate" / "chat_history"
    assert history.read_text().splitlines()[-2:] == ["What is 17 * 23?", "again"]
    assert history.stat().st_mode & 0o777 == 0o600


async def test_a_second_ctrl_c_leaves(upstream: FakeUpstream, make_gateway: MakeGateway) -> None:
    """The first one's cancelling hangs, as when the server does."""
    upstream.handler = Stepwise("thinking\n", "").serve
    gateway = await make_gateway()
    held = asyncio.Event()

    async def front(request: web.Request) -> web.StreamResponse:
        """Passes everything on but a cancel."""
        if request.path.endswith("/cancel"):
            held.set()
            await asyncio.sleep(60)
        url = gateway.base + request.path
        async with gateway.session.request(
            request.method,
            url,
            data=await request.read(),
            headers={"Content-Type": "application/json"},
        ) as reply:
            response = web.StreamResponse(headers={"Content-Type": reply.content_type})
            await response.prepare(request)
            async for data in reply.content.iter_any():
                await response.write(data)
            return response

    app = web.Application()
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    app.router.add_route("*", "/{path:.*}", front)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    try:
        async with terminal("chat", "--base-url", f"http://127.0.0.1:{port}/v1") as shown:
            await shown.see("> ")
            shown.type("go" + ENTER)
            await shown.see("thinking")
            shown.type(CTRL_C)
            await asyncio.wait_for(held.wait(), 10)
            shown.type(CTRL_C)
            assert await shown.ended() == 130
    finally:
        await runner.cleanup()


async def test_the_second_question_knows_the_first(
    upstream: FakeUpstream, make_gateway: MakeGateway, tmp_path: Path
) -> None:
    upstream.handler = scripted(lambda _: ANSWER)
    gateway = await make_gateway()
    saved = tmp_path / "talk.md"
    async with terminal(*at(gateway), XDG_STATE_HOME=str(tmp_path)) as shown:
        await shown.see("> ")
        shown.type("my first question" + ENTER)
        await shown.see("╭─ output")
        await shown.see("│ multiplying")
        await shown.see("Step 1,")
        await shown.see("It is 391.")  # as Markdown
        await shown.see("1 step, 10 + 5 tokens, ")
        await shown.see("> ")
        shown.type("\x1b[200~pasted line one\rpasted line two\x1b[201~" + ENTER)
        await shown.see("10 + 5 tokens")
        await shown.see("> ")
        asked = str(upstream.bodies()[-1])
        assert "my first question" in asked
        assert "It is **391**." in asked
        assert "pasted line one\\npasted line two" in asked.replace("\\\\n", "\\n")
        shown.type(f"/save {saved}" + ENTER)
        await shown.see("Saved to")
        await shown.see("> ")
        shown.type(f"/save {saved}" + ENTER)
        await shown.see("File exists")
        await shown.see("> ")
        shown.type("/new" + ENTER)
        await shown.see("> ")
        shown.type("/model up/model" + ENTER)
        await shown.see("Asking up/model.")
        await shown.see("> ")
        shown.type("plain" + ENTER)
        await shown.see("10 + 5 tokens")
        await shown.see("> ")
        assert upstream.bodies()[-1]["messages"] == [{"role": "user", "content": "plain"}]
        shown.type(CTRL_D)
        assert await shown.ended() == 0
    text = saved.read_text()
    assert "## Question\n\nmy first question\n\n## Answer\n\nIt is **391**.\n" in text
    assert "Traceback" not in shown.text


HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x9b31m\x1bP+q\x1b\\\r\b"
    "&#27;]52;c;b3duZWQ=&#7; [link](https://x.example/\x1b]8;;) \u202egnp.exe\u202c end"
)

HOSTILE_LINE = HOSTILE.replace("\r", "")


async def test_a_model_cannot_speak_to_the_terminal(
    upstream: FakeUpstream, make_gateway: MakeGateway, tmp_path: Path
) -> None:
    """In the reasoning, in what code prints, in code, in the answer and in an error."""
    code = f"print({HOSTILE!r})\n# {HOSTILE_LINE}\nfinal_answer({HOSTILE!r})"
    upstream.handler = scripted(lambda _: f"{HOSTILE}\n<code>\n{code}\n</code>")
    gateway = await make_gateway()
    async with terminal(*at(gateway), XDG_STATE_HOME=str(tmp_path)) as shown:
        await shown.see("> ")
        shown.type("go" + ENTER)
        await shown.see("10 + 5 tokens")
        await shown.see("> ")
        error = {"error": {"message": HOSTILE, "type": "x", "param": None, "code": None}}
        upstream.handler = lambda _: answer(web.json_response(error, status=400))
        shown.type("/model up/model" + ENTER)
        await shown.see("> ")
        shown.type("go" + ENTER)
        await shown.see("smolgate: ")
        await shown.see("> ")
    assert {
        found for found in SEQUENCE.findall(shown.screen) if not DRAWING.fullmatch(found)
    } == set()
    assert not set("\x07\x08\x9b\x9d\u202e") & set(shown.screen)
    assert "owned" in shown.text  # it is there to be read
    upstream.handler = scripted(lambda _: f"{HOSTILE}\n<code>\n{code}\n</code>")
    told = await asyncio.to_thread(piped, *at(gateway)[1:], question="go")
    assert "owned" in told.stdout
    assert "owned" in told.stderr
    assert not set("\x1b\x07\x08\x9b\x9d\r\u202e") & set(told.stdout + told.stderr)


async def answer(response: web.Response) -> web.StreamResponse:
    return response


async def test_in_a_pipe_the_answer_is_stdout_and_reasoning_stderr(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(lambda _: ANSWER)
    gateway = await make_gateway()
    told = await asyncio.to_thread(piped, *at(gateway)[1:], question="What is\n17 * 23?\n")
    assert (told.returncode, told.stdout) == (0, "It is **391**.\n")
    assert "multiplying" in told.stderr
    assert "What is\n17 * 23?" in str(upstream.bodies()[-1]["messages"][-1]).replace("\\n", "\n")
    told = await asyncio.to_thread(piped, *at(gateway)[1:], "--once", "\udcff", "--no-reasoning")
    assert (told.returncode, told.stdout, told.stderr) == (0, "It is **391**.\n", "")
    upstream.handler = raw_reply([b"{}"], "application/json", 400)
    told = await asyncio.to_thread(piped, *at(gateway)[1:], "--once", "hi", "--no-reasoning")
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith("smolgate: The upstream answered with status 400")


async def test_a_reply_that_breaks_off_is_a_failure(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway()
    head = b'data: {"id":"u","choices":[{"index":0,"delta":{"content":"half\\ud83d"}}]}\n\n'
    upstream.handler = raw_reply([head])
    told = await asyncio.to_thread(piped, *at(gateway)[1:], "--model", "up/model", "--once", "hi")
    assert (told.returncode, told.stdout) == (1, "half\n")
    assert told.stderr.startswith("smolgate: ")


async def test_an_image_reaches_the_model(
    upstream: FakeUpstream, make_gateway: MakeGateway, tmp_path: Path
) -> None:
    from PIL import Image

    picture = tmp_path / "red.png"
    Image.new("RGB", (2, 2), "red").save(picture)
    upstream.handler = scripted(lambda _: "a red square")
    gateway = await make_gateway()
    flags = ("--model", "up/model", "--once", "What is it?", "--image")
    told = await asyncio.to_thread(piped, *at(gateway)[1:], *flags, str(picture))
    assert told.stdout == "a red square\n"
    content = upstream.bodies()[-1]["messages"][0]["content"]
    assert content[1]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    told = await asyncio.to_thread(piped, *at(gateway)[1:], *flags, __file__)
    assert (told.returncode, told.stdout) == (2, "")
    assert "is no picture" in told.stderr


async def test_keys_come_from_a_file_or_the_environment_and_no_flag(
    make_gateway: MakeGateway, tmp_path: Path
) -> None:
    gateway = await make_gateway(api_keys=("sg-right",))
    flags = (*at(gateway)[1:], "--once", "hi", "--no-reasoning")
    told = await asyncio.to_thread(piped, *flags)
    assert told.returncode == 4
    assert "SMOLGATE_API_KEY" in told.stderr
    told = await asyncio.to_thread(piped, *flags, SMOLGATE_API_KEY="sg-wrong")
    assert told.returncode == 4
    told = await asyncio.to_thread(piped, *flags, SMOLGATE_API_KEY="sg-right")
    assert (told.returncode, told.stdout) == (0, "hello\n")
    file = tmp_path / "key"
    file.write_text("sg-right\n")
    told = await asyncio.to_thread(piped, *flags, "--api-key-file", str(file))
    assert told.stdout == "hello\n"
    for given in (["--api-key", "sg-right"], ["--api-key=sg-right"]):
        told = piped("--once", "hi", *given)
        assert told.returncode == 2
        assert "process list" in told.stderr
        assert "sg-right" not in told.stderr


async def test_a_server_that_is_not_there_is_said_and_waited_for() -> None:
    port = free_port()
    base = f"http://127.0.0.1:{port}/v1"
    told = await asyncio.to_thread(piped, "--base-url", base, "--once", "hi")
    assert (told.returncode, told.stdout) == (3, "")
    assert told.stderr.splitlines()[0] == f"smolgate: No server answers at {base}."
    told = await asyncio.to_thread(piped, "--base-url", "ftp://x/v1", "--once", "hi")
    assert (told.returncode, told.stderr[:31]) == (3, "smolgate: This is no address: f")
    async with terminal("chat", "--base-url", base) as shown:
        await shown.see("Waiting for it")
        with server_process("--port", str(port)):
            await shown.see("It is there.")
            await shown.see("> ")


async def test_narrow_dumb_and_colourless_terminals(
    upstream: FakeUpstream, make_gateway: MakeGateway, tmp_path: Path
) -> None:
    upstream.handler = scripted(lambda _: "a word, " * 30 + ANSWER)
    gateway = await make_gateway()
    once = (*at(gateway), "--once", "hi")
    async with terminal(*once, columns=20, NO_COLOR="1") as shown:
        assert await shown.ended() == 0
        await shown.see("It is 391.")
    colours = re.findall(r"\x1b\[([0-9;]*)m", shown.screen)
    assert not [one for one in colours if re.search(r"(^|;)([349][0-9]|10[0-7])", one)]
    rows = [row for row in shown.text.replace("\r", "\n").split("\n") if "word" in row]
    assert rows
    assert max(map(len, rows)) <= 20
    async with terminal(*once, TERM="dumb") as shown:
        assert await shown.ended() == 0
        await shown.see("It is **391**.")
    assert "\x1b" not in shown.screen


async def test_nobody_reads_the_answer_any_more(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(lambda _: "word " * 20_000, pieces=5)
    gateway = await make_gateway()
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "server", *at(gateway), "--model", "up/model", "--once", "hi"]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=environment(), stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    _, said = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, said) == (141, b"")
