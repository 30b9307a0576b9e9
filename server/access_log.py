"""A request's end → the log.

In: a `RequestEnd`. Out: logging has it. Where nobody but our own handler sees it, as when the server is started as
usual, it gets there the short way: a `LogRecord` and its way through the loggers cost more than all else that is
logged of a request.
"""

import logging
import time
from collections.abc import Callable

from server.access_line import ACCESS_LINES, RequestEnd
from server.log_formats import ACCESS_LOGGER, LineFormatter
from server.log_handler import LineHandler

log = logging.getLogger(ACCESS_LOGGER)


def log_end(end: RequestEnd, log_format: str) -> None:
    """Log it at INFO, which the logger must be enabled for."""
    line_of = ACCESS_LINES[log_format]
    handler = _only_handler()
    if handler is None:
        log.info("%s", line_of(end))
    else:
        handler.emit(_EndRecord(end, line_of))


def _only_handler() -> LineHandler | None:
    """Ours, if it gets all that is logged here and nobody else does. Asked anew each time: logging may be set up anew."""
    logger: logging.Logger = log
    if logger.filters:
        return None
    while (parent := logger.parent) is not None:
        if logger.handlers or not logger.propagate:
            return None
        logger = parent
    if len(logger.handlers) != 1:
        return None
    handler = logger.handlers[0]
    if not isinstance(handler, LineHandler) or handler.level > logging.INFO or handler.filters:
        return None
    return handler if isinstance(handler.formatter, LineFormatter) else None


class _EndRecord(logging.LogRecord):
    """What our formatters ask of a record; the message is made when they do, in the batch."""

    name = ACCESS_LOGGER
    levelno = logging.INFO
    levelname = logging.getLevelName(logging.INFO)
    exc_info = exc_text = stack_info = None

    def __init__(self, end: RequestEnd, line_of: Callable[[RequestEnd], str]) -> None:
        # Not logging's own, which finds out what nobody asks here.
        self.created = now = time.time()
        self.msecs = now % 1 * 1000
        self._end = end
        self._line_of = line_of

    def getMessage(self) -> str:
        return self._line_of(self._end)
