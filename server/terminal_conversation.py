"""One conversation: what was said so far, and one question's way to its answer.

In: a question, a view. Out: the answer on the view and in the history; a question that got none leaves no trace there.
Ctrl-C ends the run at the server and the question with it; a second one while that is under way leaves.
"""

import asyncio
import base64
import io
import signal
import time
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Protocol

import msgspec

from server.terminal_client import ChatClient, ChatProblem, Model, Usage

TICK_SECONDS = 0.1
CANCEL_SECONDS = 5.0
DEFAULT_AGENT = "code-writing-agent"
SMOLGATE = "smolgate"  # who owns an agent's id


class View(Protocol):
    def __enter__(self) -> "View": ...
    def __exit__(self, *_: object) -> None: ...
    def reasoning(self, text: str) -> None: ...
    def answer(self, text: str) -> None: ...
    def tick(self) -> None: ...
    def end(self, usage: Usage | None, note: str = "") -> None: ...


class Interrupted(Exception):
    """Ctrl-C ended the question; with `leaves` the chat, too."""

    def __init__(self, *, leaves: bool) -> None:
        super().__init__()
        self.leaves = leaves


class Conversation:
    """`model` may be changed at any time. `picture` goes with the next question."""

    def __init__(self, client: ChatClient, model: str) -> None:
        self._client = client
        self.model = model
        self.messages: list[dict[str, Any]] = []
        self.picture: str | None = None

    def forget(self) -> None:
        self.messages, self.picture = [], None

    async def ask(self, question: str, view: View) -> None:
        """Raises ChatProblem, Interrupted, BrokenPipeError."""
        asked = {"role": "user", "content": self._content(question)}
        answer = await _with_interrupts(self._client, self.model, [*self.messages, asked], view)
        self.messages += [asked, {"role": "assistant", "content": answer}]
        self.picture = None

    def _content(self, question: str) -> Any:
        if self.picture is None:
            return question
        return [
            {"type": "text", "text": question},
            {"type": "image_url", "image_url": {"url": self.picture}},
        ]

    def save(self, path: Path) -> None:
        """As Markdown, or with `.json` as a request's body. Raises OSError, FileExistsError among it."""
        if path.suffix == ".json":
            body = {"model": self.model, "messages": self.messages}
            text = msgspec.json.format(msgspec.json.encode(body)).decode() + "\n"
        else:
            text = f"# {self.model}, {time.strftime('%Y-%m-%d %H:%M')}\n"
            for message in self.messages:
                who = "Question" if message["role"] == "user" else "Answer"
                text += f"\n## {who}\n\n{_text_of(message['content'])}\n"
        with path.open("x", encoding="utf-8") as file:
            file.write(text)


def default_model(models: list[Model]) -> str:
    """The default agent, else any agent, else any model. Raises ChatProblem where there is none."""
    if not models:
        raise ChatProblem("The server has no model for this key.", "Ask who runs it.")
    agents = [model.id for model in models if model.owned_by == SMOLGATE]
    return DEFAULT_AGENT if DEFAULT_AGENT in agents else [*agents, models[0].id][0]


def read_picture(path: Path) -> str:
    """A picture as a data URL. Raises ChatProblem."""
    from PIL import Image, UnidentifiedImageError

    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            kind = Image.MIME.get(image.format or "", "")
    except (UnidentifiedImageError, Image.DecompressionBombError):
        kind = ""
    except OSError as error:
        raise ChatProblem(f"{path} cannot be read: {error.strerror or error}.") from None
    if not kind:
        raise ChatProblem(f"{path} is no picture.", "PNG, JPEG, GIF and WebP are.")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


async def _with_interrupts(
    client: ChatClient, model: str, messages: list[dict[str, Any]], view: View
) -> str:
    reading = _Reading(client, view)
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(reading.read(model, messages))
    others = [asyncio.create_task(_tick(view))]
    presses = 0

    async def end() -> None:
        await reading.cancel_run()  # first, so that it is not for the server to guess
        task.cancel()

    def on_interrupt() -> None:
        nonlocal presses
        presses += 1
        if presses == 1:
            others.append(asyncio.create_task(end()))
        else:
            task.cancel()

    loop.add_signal_handler(signal.SIGINT, on_interrupt)
    try:
        with view:
            answer = await task
    except (asyncio.CancelledError, ChatProblem):
        if presses:
            raise Interrupted(leaves=presses > 1) from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        for other in others:
            other.cancel()
    view.end(reading.usage, reading.note)
    return answer


async def _tick(view: View) -> None:
    while True:
        view.tick()
        await asyncio.sleep(TICK_SECONDS)


class _Reading:
    """One reply, from the client to the view."""

    def __init__(self, client: ChatClient, view: View) -> None:
        self._client, self._view = client, view
        self._run_id = ""
        self.usage: Usage | None = None
        self.note = ""

    async def read(self, model: str, messages: list[dict[str, Any]]) -> str:
        """The answer. Raises ChatProblem, BrokenPipeError."""
        answer: list[str] = []
        async with aclosing(self._client.ask(model, messages)) as pieces:
            async for piece in pieces:
                self._run_id = piece.id or self._run_id
                self._view.reasoning(piece.reasoning)
                if piece.answer:
                    answer.append(piece.answer)
                    self._view.answer(piece.answer)
                if piece.finish not in ("", "stop", "error"):
                    self.note = _NOTES.get(piece.finish, f"it ended with {piece.finish!r}")
                self.usage = piece.usage or self.usage
        return "".join(answer)

    async def cancel_run(self) -> None:
        if self._run_id:
            with suppress(TimeoutError):
                async with asyncio.timeout(CANCEL_SECONDS):
                    await self._client.cancel(self._run_id)


_NOTES = {
    "length": "cut off: the model had no more tokens to write",
    "content_filter": "cut off by the upstream's content filter",
    "tool_calls": "the model asks for tools, which this chat has none of",
}


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "(a picture)") for part in content)
