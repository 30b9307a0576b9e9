"""`python -m server`: reads the settings, listens, and stops in good order.

Exit codes: 0 after SIGTERM or SIGINT, 2 for a setting that cannot work, 1 where it cannot listen.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Callable

from server.setting_values import BadSetting
from server.settings import Settings, read_settings

log = logging.getLogger("server")


def main() -> int:
    """Run the server until it is told to stop; returns the exit code."""
    # smolagents reads a .env file of the working directory when it is imported; settings come from
    # the environment and the flags alone.
    os.environ.setdefault("PYTHON_DOTENV_DISABLED", "1")
    try:
        settings = read_settings(sys.argv[1:], os.environ)
    except BadSetting as error:
        print(f"smolgate: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(message)s")
    return _run(settings)


def _run(settings: Settings) -> int:
    from server.listen import serve
    from server.registry import load_agents
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
            runner.run(serve(settings, agents))
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
