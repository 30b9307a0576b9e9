"""An upstream whose replies a browser test writes, word by word, while a page reads them.

`says["word"] = lambda body: …` answers requests whose question ends with the word, or holds it, with the
deltas that it yields; a dict with `finish`, `error` or `raw` among them ends otherwise than well.
"""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Delta = dict[str, Any]
Says = Callable[[dict[str, Any]], Iterable[Delta]]
USAGE = {
    "prompt_tokens": 1200,
    "completion_tokens": 34,
    "total_tokens": 1234,
    "completion_tokens_details": {"reasoning_tokens": 5},
}


class PageUpstream:
    """`left` is set when the gateway goes away in the midst of a reply."""

    def __init__(self) -> None:
        self.base = ""
        self.says: dict[str, Says] = {}
        self.bodies: list[dict[str, Any]] = []
        self.left = threading.Event()

    def deltas(self, body: dict[str, Any]) -> Iterable[Delta]:
        self.bodies.append(body)
        asked = json.dumps([m for m in body["messages"] if m["role"] == "user"][-1:])
        everything = json.dumps(body["messages"])
        for text in (asked, everything):
            last = max(self.says, key=text.rfind, default="")
            if last and last in text:
                return self.says[last](body)
        return [{"content": "<code>\nfinal_answer('nothing')\n</code>"}]


def content(*pieces: str) -> Says:
    """A reply of these pieces."""
    return lambda body: [{"content": piece} for piece in pieces]


def steps(*codes: str) -> Says:
    """An agent's replies: one code after the other, as steps go by."""

    def say(body: dict[str, Any]) -> list[Delta]:
        done = sum(message["role"] == "assistant" for message in body["messages"])
        return [
            {
                "content": f"Now step {done + 1}.\n<code>\n{codes[min(done, len(codes) - 1)]}\n</code>"
            }
        ]

    return say


@contextmanager
def page_upstream() -> Iterator[PageUpstream]:
    """One that listens on loopback."""
    upstream = PageUpstream()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            deltas = iter(upstream.deltas(body))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            try:
                self._reply(deltas)
            except OSError:
                upstream.left.set()

        def _reply(self, deltas: Iterator[Delta]) -> None:
            finish = "stop"
            for delta in deltas:
                if "raw" in delta:
                    self.wfile.write(delta["raw"])
                    return
                if "error" in delta:
                    self._send(delta)
                    return
                if "finish" in delta:
                    finish = delta["finish"]
                    continue
                self._choice({"index": 0, "delta": delta, "finish_reason": None})
            self._choice({"index": 0, "delta": {}, "finish_reason": finish}, usage=USAGE)
            self.wfile.write(b"data: [DONE]\n\n")

        def _choice(self, choice: dict[str, Any], **more: Any) -> None:
            self._send({"id": "up-1", "choices": [choice], **more})

        def _send(self, data: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        upstream.base = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield upstream
        finally:
            server.shutdown()
            thread.join()
