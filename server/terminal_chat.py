"""`smolgate chat`: talks to a running server from a terminal, or for a script.

In: questions that somebody types, `--once`, or standard input as a whole. Out: the exit code: 0 answered, 1 it failed,
2 flags that cannot work, 3 no server, 4 the key is refused, 130 Ctrl-C. Keys come from a file or the environment and
never from a flag, which every user of the machine could read.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from server.terminal_client import (
    BAD_FLAGS,
    INTERRUPTED,
    ChatClient,
    ChatProblem,
    open_client,
)
from server.terminal_conversation import (
    Conversation,
    Interrupted,
    View,
    default_model,
    read_picture,
)
from server.terminal_plain import PlainView, say_plainly

BASE_URL = "http://127.0.0.1:8000/v1"
KEY_VARIABLE = "SMOLGATE_API_KEY"
BROKEN_PIPE = 141


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code."""
    flags = _parser().parse_args(arguments)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        key = read_key(flags.api_key_file, os.environ)
        picture = read_picture(Path(flags.image)) if flags.image else None
    except ChatProblem as problem:
        say_plainly(problem)
        return BAD_FLAGS
    try:
        with asyncio.Runner() as runner:
            return runner.run(_run(flags, key, picture, _question_of(flags)))
    except ChatProblem as problem:
        say_plainly(problem)
        return problem.code
    except (KeyboardInterrupt, Interrupted):
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor at the exit
        return BROKEN_PIPE


def read_key(path: str | None, environment: Mapping[str, str]) -> str | None:
    """The key of a file, else of the environment. Raises ChatProblem."""
    if path is None:
        key = environment.get(KEY_VARIABLE, "").strip() or None
    else:
        try:
            key = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            raise ChatProblem(f"--api-key-file {path} cannot be read.") from None
    if key is not None and not (key.isascii() and key.isprintable() and key and " " not in key):
        raise ChatProblem("The API key is no line of printable ASCII.")
    return key


def _question_of(flags: argparse.Namespace) -> str | None:
    """What is asked without a prompt; None where somebody types. Raises ChatProblem."""
    if flags.list_models:
        return None
    if flags.once is None and sys.stdin.isatty():
        return None
    question: str = sys.stdin.read() if flags.once is None else flags.once
    if not question.strip():
        raise ChatProblem("There is no question.", "", BAD_FLAGS)
    return question.strip().encode(errors="replace").decode()  # bytes that are no UTF-8


async def _run(
    flags: argparse.Namespace, key: str | None, picture: str | None, question: str | None
) -> int:
    async with open_client(flags.base_url, key) as client:
        if flags.list_models:
            for model in await client.models():
                print(model.id)
            return 0
        make_view = _view_maker(flags, question)
        if question is None:
            from server.terminal_prompt import history_path
            from server.terminal_session import converse

            history = history_path(os.environ)
            return await converse(client, flags.model, picture, make_view, history)
        return await _ask_once(client, flags.model, picture, question, make_view)


async def _ask_once(
    client: ChatClient,
    model: str | None,
    picture: str | None,
    question: str,
    make_view: Callable[[], View],
) -> int:
    conversation = Conversation(client, model or default_model(await client.models()))
    conversation.picture = picture
    await conversation.ask(question, make_view())
    return 0


def _view_maker(flags: argparse.Namespace, question: str | None) -> Callable[[], View]:
    """Live where somebody looks, plain in a pipe and on a dumb terminal."""
    plain = partial(PlainView, reasoning=not flags.no_reasoning)
    if not sys.stdout.isatty() or (question is not None and flags.once is None):
        return plain
    from rich.console import Console

    console = Console(highlight=False, emoji=False, markup=False)
    if console.is_dumb_terminal:
        return plain
    from server.terminal_view import LiveView

    return partial(LiveView, console, reasoning=not flags.no_reasoning)


class _KeyOnCommandLine(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error(
            f"a key on the command line is seen in the process list: use {KEY_VARIABLE} or --api-key-file"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="smolgate chat",
        description="Talks to a running server: at a prompt, or, where standard input is no terminal, with that as the question: the answer goes to standard output then, reasoning to standard error.",
        epilog=f"{KEY_VARIABLE} in the environment is the API key. Exit codes: 0 answered, 1 failed, 2 bad flags, 3 no server, 4 the key is refused, 130 Ctrl-C.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--base-url",
        default=os.environ.get("SMOLGATE_BASE_URL") or BASE_URL,
        metavar="URL",
        help=f"where the server is, or unix:PATH [SMOLGATE_BASE_URL] (default: {BASE_URL})",
    )
    parser.add_argument("--model", metavar="ID", help="whom to ask (default: the default agent)")
    parser.add_argument("--list-models", action="store_true", help="print the ids that there are")
    parser.add_argument("--once", metavar="QUESTION", help="ask this and end")
    parser.add_argument("--image", metavar="PATH", help="a picture for the first question")
    parser.add_argument("--no-reasoning", action="store_true", help="show answers alone")
    parser.add_argument("--api-key-file", metavar="PATH", help="a file that holds the API key")
    parser.add_argument("--api-key", action=_KeyOnCommandLine, help=argparse.SUPPRESS)
    return parser
