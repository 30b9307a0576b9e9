"""How log lines look: readable, or JSON, one record a line.

In: log records. Out: text in which nobody forges a line: control characters of a message are escaped, a
traceback is indented. What looks like a bearer token is hidden, and so are the secrets that are known.
"""

import logging
import re
import sys
import time
from collections.abc import Iterable

import msgspec
from aiohttp.http_exceptions import HttpProcessingError

from server.log_handler import LineHandler

ACCESS_LOGGER = "server.access"
HIDDEN = "(hidden)"
# Shorter ones would hide ordinary words.
MIN_SECRET_CHARACTERS = 6

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_CONTROL |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}
_CONTROL |= {
    code: f"\\u{code:04x}"
    for code in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
_BEARER = re.compile(r"(bearer[\s:=]+)[!-~]+", re.IGNORECASE)


class LineFormatter(logging.Formatter):
    """Readable lines: time, level, message, and an indented traceback."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self._second = 0
        self._second_text = ""
        self._secrets = tuple(secret for secret in secrets if len(secret) >= MIN_SECRET_CHARACTERS)

    def format(self, record: logging.LogRecord) -> str:
        if record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        # As logging would, without its ways to be asked for something else: a third of the time.
        message = record.getMessage()
        # A request's line is printable as it was made.
        safe = self.hide(message) if record.name == ACCESS_LOGGER else self.safe(message)
        return f"{self.formatTime(record)} {record.levelname} {safe}"

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """As logging does."""
        return f"{self.second_of(record)},{str(1000 + int(record.msecs))[1:]}"

    def second_of(self, record: logging.LogRecord) -> str:
        """The text of a second is made once."""
        second = int(record.created)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime(self.default_time_format, self.converter(second))
        return self._second_text

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = self.safe(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        trace = super().formatException(ei)  # type: ignore[arg-type]
        lines = trace.split("\n")
        return "\n".join(f"    {self.safe(line)}" for line in lines)

    def safe(self, text: str) -> str:
        """One line, without secrets."""
        text = self.hide(text)
        if text.isprintable():
            return text
        # Half a character cannot be written.
        return text.translate(_CONTROL).encode("utf-8", "backslashreplace").decode()

    def hide(self, text: str) -> str:
        """Without secrets, and what looks like one."""
        text = self.without_secrets(text)
        return _BEARER.sub(rf"\1{HIDDEN}", text) if "earer" in text.lower() else text

    def without_secrets(self, text: str) -> str:
        """Without those that are known."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text


class JsonFormatter(LineFormatter):
    """JSON objects, one a line: time, level, logger, and a message or the access line's members."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    converter = staticmethod(time.gmtime)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return f"{self.second_of(record)}.{str(1000 + int(record.msecs))[1:]}Z"

    def format(self, record: logging.LogRecord) -> str:
        head = f'"time":"{self.formatTime(record)}","level":"{record.levelname}","logger":"{record.name}"'
        if record.name == ACCESS_LOGGER:
            return f"{{{head},{self.without_secrets(record.getMessage())}}}"
        told = {"message": self.safe(record.getMessage())}
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        # Escaped to ASCII, so that no reader of lines sees a break that is none.
        text = msgspec.json.encode(told)[1:-1].decode()
        return f"{{{head},{_ascii(text)}}}"


def _ascii(text: str) -> str:
    return text if text.isascii() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    code = ord(character)
    if code < 128:
        return character
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


class BadRequestFilter(logging.Filter):
    """aiohttp logs a request that is no HTTP with a traceback that quotes it, credentials and all: anybody
    could fill the log. What is left is one line that says what kind of fault it was."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            record.msg = f"a request that is no HTTP was refused: {type(error).__name__}"
            record.args = ()
            record.exc_info = None
            record.levelno, record.levelname = logging.INFO, "INFO"
        return record.levelno >= logging.getLogger().level


FORMATTERS = {"text": LineFormatter, "json": JsonFormatter}


def start_logging(level: str, log_format: str, secrets: Iterable[str]) -> None:
    """Log to stderr, in this format."""
    # What no line says need not be found out (logging's own advice).
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = LineHandler(sys.stderr)
    handler.setFormatter(FORMATTERS[log_format](secrets))
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("aiohttp.server").addFilter(BadRequestFilter())
