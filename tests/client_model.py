"""The model behind the gateway that real clients ask, and how their programs are run.

What is asked says what becomes of it: `go` is answered, `fail` fails (an agent's in its second step),
`break off` breaks off, `city as JSON` is answered in JSON, `be the outer agent` with code.
"""

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import Gateway, chunk, scripted

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = ROOT / ".venv-clients"

ANSWER = "17 * 23 is 391"
PRINTED = "multiplying"
CITY = {"name": "Paris"}
BROKEN = "The model is broken."
FAILED = f"The upstream answered with status 400: {BROKEN}"
TOKENS = 15  # of one model call
OUTER = "from the outer agent"

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
HEAD = {"id": "u", "object": "chat.completion.chunk", "created": 1, "model": "up/model"}

_CITY_QUESTION = "What is the capital of France? Answer as JSON."
_CODE = {
    "go": f"print({PRINTED!r})\nfinal_answer({ANSWER!r})",
    "What is 17 * 23?": f"print({PRINTED!r})\nfinal_answer({ANSWER!r})",
    _CITY_QUESTION: f"final_answer({CITY!r})",
    "fail": f"print({PRINTED!r})",
    "city as JSON": f"final_answer({CITY!r})",
    # In pieces, since code that holds the tags would end there.
    "be the outer agent": f"final_answer('<co' + 'de>\\nfinal_answer({OUTER!r})\\n</co' + 'de>')".replace(
        repr(OUTER), json.dumps(OUTER)
    ),
}


async def model(request: web.Request) -> web.StreamResponse:
    """An upstream's handler."""
    body = json.loads(await request.read())
    messages = body["messages"]
    if messages[0]["role"] == "system":
        return await _for_agent(request, messages)
    asked = _text(messages[-1]["content"]).split("\n")[0]
    if asked == "fail":
        return _broken()
    if asked == "break off":
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(_events(chunk(role="assistant", content="17")))
        assert request.transport is not None
        request.transport.close()
        return response
    text = json.dumps(CITY) if asked == "city as JSON" else ANSWER
    if "/nothink" in _text(messages[-1]["content"]):
        text = f"<think>\n\n</think>\n\n{text}"  # the empty pair that models leave
    if body.get("stream"):
        chunks = [chunk(role="assistant", content=""), *(chunk(content=part) for part in text)]
        finish = {"index": 0, "delta": {}, "finish_reason": "stop"}
        last = {"choices": [], "usage": USAGE}
        data = _events(*chunks, {"choices": [finish]}, last) + b"data: [DONE]\n\n"
        return web.Response(body=data, content_type="text/event-stream")
    message = {"role": "assistant", "content": text}
    reply = {
        "id": "u",
        "object": "chat.completion",
        "created": 1,
        "model": "up/model",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": USAGE,
    }
    return web.json_response(reply)


async def _for_agent(request: web.Request, messages: list[dict[str, Any]]) -> web.StreamResponse:
    texts = [_text(message["content"]) for message in messages]
    tasks = "\n".join(texts[1:]).rpartition("New task:")[2]
    task = next(task for task in _CODE if re.search(rf"^{re.escape(task)}$", tasks, re.MULTILINE))
    wrote = any(f"print({PRINTED!r})" in text for text in texts)
    if task == "fail" and wrote:
        return _broken()
    return await scripted(lambda _: f"<code>\n{_CODE[task]}\n</code>")(request)


def _events(*chunks: dict[str, Any]) -> bytes:
    return b"".join(f"data: {json.dumps(HEAD | chunk)}\n\n".encode() for chunk in chunks)


def _broken() -> web.Response:
    error = {"message": BROKEN, "type": "invalid_request_error", "param": None, "code": None}
    return web.json_response({"error": error}, status=400)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content)


def python_of(environment: str) -> list[str]:
    """The Python that has these clients; `here` is the tests' own."""
    if environment == "here":
        return [sys.executable]
    found = ENVIRONMENTS / environment / "bin" / "python"
    _needs(found.parent.parent / ".made")
    return [str(found)]


def node() -> list[str]:
    """Node, for a module on its standard input, in the folder that has the clients."""
    _needs(ENVIRONMENTS / "node" / ".made")
    return ["node", "--input-type=module", "-"]


def _needs(made: Path) -> None:
    if made.exists():
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{made} is not there: make venv")
    pytest.skip("this client is not installed (make venv)")


async def run_program(command: list[str], program: str, gateway: Gateway) -> str:
    """Run a program that talks to this gateway; the output. Fails where it does."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "OPENAI_BASE_URL": gateway.base + "/v1",
        "OPENAI_API_KEY": "none",
        "NO_PROXY": "127.0.0.1",
        "PYTHON_DOTENV_DISABLED": "1",
    }
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ENVIRONMENTS / "node" if command[0] == "node" else ROOT,
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(100):
            said, complaints = await process.communicate(program.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, complaints.decode()[-3000:]
    return said.decode()
