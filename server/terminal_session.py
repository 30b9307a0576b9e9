"""A conversation at a prompt: lines in, replies on the screen, until Ctrl-D, /quit or Ctrl-C.

A server that is not there, or goes, is said once and waited for; a question that it did not get is asked again.
"""

import asyncio
import shlex
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from server.terminal_client import INTERRUPTED, UNREACHABLE, ChatClient, ChatProblem, Model
from server.terminal_conversation import (
    Conversation,
    Interrupted,
    View,
    default_model,
    read_picture,
)
from server.terminal_plain import say_plainly
from server.terminal_prompt import Prompt

RETRY_SECONDS = 1.0

HELP = """\
/model ID    ask another model         /models      what there is
/new         forget the conversation   /save PATH   as Markdown, or .json
/image PATH  send it with the next     /quit        or Ctrl-D
\"\"\"          begins and ends a text of many lines; a paste may have many, too
Ctrl-C       stops a reply; twice, or here, leaves"""


async def converse(
    client: ChatClient,
    model: str | None,
    picture: str | None,
    make_view: Callable[[], View],
    history: Path,
) -> int:
    """Returns the exit code. Raises ChatProblem where the server cannot be used at all."""
    models = await _reach(client)
    conversation = Conversation(client, model or default_model(models))
    conversation.picture = picture
    if model is not None and model not in [known.id for known in models]:
        print(f"The server does not list {model!r}; /models says what there is.")
    print(f"{conversation.model} at {client.place}. /help says what can be typed.")
    with Prompt(history) as prompt:
        return await _Session(client, conversation, make_view).serve(prompt)


class _Session:
    def __init__(
        self, client: ChatClient, conversation: Conversation, make_view: Callable[[], View]
    ) -> None:
        self._client, self._talk, self._make_view = client, conversation, make_view
        self._commands: dict[str, Callable[[str], Awaitable[None]]] = {
            "/help": self._help,
            "/model": self._model,
            "/models": self._models,
            "/new": self._new,
            "/save": self._save,
            "/image": self._image,
        }

    async def serve(self, prompt: Prompt) -> int:
        while True:
            try:
                # On the loop's thread, where Ctrl-C is raised; there is nothing else for it to do.
                line = prompt.read()
            except KeyboardInterrupt:
                print()
                return INTERRUPTED
            if line is None:
                print()
                return 0
            if line == "/quit":
                return 0
            try:
                await self._do(line)
            except ChatProblem as problem:
                say_plainly(problem)
            except Interrupted as interrupted:
                print("Stopped." if not interrupted.leaves else "")
                if interrupted.leaves:
                    return INTERRUPTED

    async def _do(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word in self._commands:
            await self._commands[word](rest.strip())
        elif line.startswith("/") and "\n" not in line and "/" not in word[1:]:
            print(f"There is no {word}; /help says what there is.")
        elif line:
            await self._ask(line)

    async def _ask(self, question: str) -> None:
        while True:
            try:
                await self._talk.ask(question, self._make_view())
            except ChatProblem as problem:
                if problem.code != UNREACHABLE:
                    raise
                await _reach(self._client)  # nothing was begun: ask again
            else:
                return

    async def _help(self, rest: str) -> None:
        print(HELP)

    async def _model(self, rest: str) -> None:
        if rest:
            self._talk.model = rest
        print(f"Asking {self._talk.model}.")

    async def _models(self, rest: str) -> None:
        for model in await self._client.models():
            print(f"{'*' if model.id == self._talk.model else ' '} {model.id}")

    async def _new(self, rest: str) -> None:
        self._talk.forget()
        print("A new conversation.")

    async def _save(self, rest: str) -> None:
        try:
            path = _path(rest)
            self._talk.save(path)
        except OSError as error:
            raise ChatProblem(f"{rest} cannot be written: {error.strerror or error}.") from None
        print(f"Saved to {path}.")

    async def _image(self, rest: str) -> None:
        self._talk.picture = read_picture(_path(rest))
        print("It goes with the next question.")


def _path(text: str) -> Path:
    """As a shell reads it: a dropped file's name comes in quotes. Raises ChatProblem."""
    try:
        words = shlex.split(text)
    except ValueError:
        words = []
    if len(words) != 1:
        raise ChatProblem("A path is wanted, in quotes if it has blanks.")
    return Path(words[0]).expanduser()


async def _reach(client: ChatClient) -> list[Model]:
    """Wait for the server; Ctrl-C ends it. Raises ChatProblem for what waiting does not mend."""
    is_said = False
    while True:
        try:
            models = await client.models()
        except ChatProblem as problem:
            if problem.code != UNREACHABLE or not sys.stdin.isatty():
                raise
            if not is_said:
                say_plainly(problem)
                print("  Waiting for it (Ctrl-C leaves) …", file=sys.stderr)
            is_said = True
        else:
            if is_said:
                print("  It is there.", file=sys.stderr)
            return models
        await asyncio.sleep(RETRY_SECONDS)
