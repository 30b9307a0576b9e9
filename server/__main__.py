"""`python -m server`: reads the settings, listens, and stops in good order.

Exit codes: 0 after SIGTERM or SIGINT, 2 for a setting that cannot work, 1 where it cannot listen.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Callable

from server.log_formats import start_logging
from server.secret_flags import hide_secret_flags
from server.setting_values import BadSetting
from server.settings import Settings, read_settings, secrets_of

log = logging.getLogger("server")


def main() -> int:
    """Run the server until it is told to stop; returns the exit code."""
    # smolagents reads a .env file of the working directory when it is imported; settings come from
    # the environment and the flags alone.
    os.environ.setdefault("PYTHON_DOTENV_DISABLED", "1")
    hide_secret_flags()
    try:
        settings = read_settings(sys.argv[1:], os.environ)
    except BadSetting as error:
        print(f"smolgate: {error}", file=sys.stderr)
        return 2
    start_logging(settings.log_level, settings.log_format, secrets_of(settings))
    return _run(settings)


def _run(settings: Settings) -> int:
    from server.listen import serve
    from server.registry import load_agents
    from server.tracing import tracing
    from streaming.interpreters.jail_pool import JailUnavailable

    try:
        agents = load_agents(
            settings.agents, embedded=settings.embedded, elsewhere=settings.agents_elsewhere
        )
    except BadSetting as error:
        print(f"smolgate: {error}", file=sys.stderr)
        return 2
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            with tracing(settings):
                runner.run(serve(settings, agents))
        except BadSetting as error:
            print(f"smolgate: {error}", file=sys.stderr)
            return 2
        except JailUnavailable as error:
            print(f"smolgate: JAIL is 'required', and {error}", file=sys.stderr)
            return 2
        except OSError as error:
            print(f"smolgate: cannot listen: {error}", file=sys.stderr)
            return 1
    return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    sys.exit(main())
