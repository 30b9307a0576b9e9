"""`python -m server`: reads the settings, listens, and stops in good order.

Exit codes: 0 after SIGTERM or SIGINT, 2 for a setting that cannot work, 1 where it cannot listen.
"""

import asyncio
import importlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from server.log_formats import start_logging
from server.secret_flags import hide_secret_flags
from server.setting_values import BadSetting
from server.settings import Settings, read_settings, secrets_of

if TYPE_CHECKING:
    from server.listen import Post

log = logging.getLogger("server")

# The other commands: each a module with `main(arguments)`.
COMMANDS = {
    "chat": "server.terminal_chat",
    "doctor": "server.doctor",
    "new-key": "server.new_key",
}


def main() -> int:
    """The command: `smolgate`, or `python -m server`."""
    os.environ.setdefault("PYTHON_DOTENV_DISABLED", "1")  # as below
    if sys.argv[1:] and (module := COMMANDS.get(sys.argv[1])) is not None:
        code: int = importlib.import_module(module).main(sys.argv[2:])
        return code
    # Agents may lie where the server is started: `python -m` looks there, a command does not.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    return run(sys.argv[1:])


def run(
    arguments: Sequence[str],
    sockets: Sequence[socket.socket] = (),
    line: socket.socket | None = None,
) -> int:
    """Run the server until it is told to stop; returns the exit code.

    `line`: as a worker, whose parent is at its other end and listens at `sockets`.
    """
    # smolagents reads a .env file of the working directory when it is imported; settings come from
    # the environment and the flags alone.
    os.environ.setdefault("PYTHON_DOTENV_DISABLED", "1")
    if line is None:  # the parent of a worker has done so
        hide_secret_flags()
    try:
        settings = read_settings(arguments, os.environ)
    except BadSetting as error:
        print(f"smolgate: {error}", file=sys.stderr)
        return 2
    start_logging(settings.log_level, settings.log_format, secrets_of(settings))
    if line is None and settings.workers > 1:
        return _run_workers(settings, arguments)
    return _run(settings, sockets, line)


def _run_workers(settings: Settings, arguments: Sequence[str]) -> int:
    from server.embedded import EmbeddedUnavailable
    from server.listen import say_what_is_missing
    from server.worker_pool import WorkerFailed, serve_by_workers

    say_what_is_missing(settings)
    try:
        asyncio.run(serve_by_workers(settings, arguments))
    except WorkerFailed as error:
        if error.code <= 0:  # else it has said why
            print(f"smolgate: {error}", file=sys.stderr)
        return error.code if error.code > 0 else 1
    except EmbeddedUnavailable as error:
        print(f"smolgate: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"smolgate: cannot listen: {error}", file=sys.stderr)
        return 1
    return 0


def _run(settings: Settings, sockets: Sequence[socket.socket], line: socket.socket | None) -> int:
    from server.listen import OwnPost, serve
    from server.registry import load_agents
    from server.tracing import tracing
    from streaming.failures import UpstreamUnavailable
    from streaming.interpreters.jail_pool import JailUnavailable
    from streaming.mcp_server import McpUnavailable
    from streaming.store import BadStore

    try:
        agents = load_agents(
            settings.agents, embedded=settings.embedded, elsewhere=settings.agents_elsewhere
        )
    except BadSetting as error:
        print(f"smolgate: {error}", file=sys.stderr)
        return 2
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            post: Post = OwnPost(settings) if line is None else _worker_post(sockets, line)
            with tracing(settings):
                runner.run(serve(settings, agents, post))
        except BadSetting as error:
            print(f"smolgate: {error}", file=sys.stderr)
            return 2
        except JailUnavailable as error:
            print(f"smolgate: JAIL is 'required', and {error}", file=sys.stderr)
            return 2
        except BadStore as error:
            print(f"smolgate: STORE cannot be used: {error}", file=sys.stderr)
            return 2
        except (UpstreamUnavailable, McpUnavailable) as error:
            print(f"smolgate: {error}", file=sys.stderr)
            return 2
        except OSError as error:
            print(f"smolgate: cannot listen: {error}", file=sys.stderr)
            return 1
    return 0


def _worker_post(sockets: Sequence[socket.socket], line: socket.socket) -> "Post":
    from server.worker_post import WorkerPost

    return WorkerPost(sockets, line)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    sys.exit(main())
