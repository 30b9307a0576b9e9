"""What an upstream's errors say to a caller: in few words, without addresses, paths, names or secrets."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from streaming.failures import UpstreamUnavailable

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 5.0
MAX_CHARACTERS = 300
# As much of a text is looked through: the patterns take the square of a text without blanks.
MAX_READ_CHARACTERS = 1000

_REVEALING = re.compile(
    r"\b[a-z][a-z0-9+.-]*://\S+"  # addresses
    r"|\S*/\S+/\S*|(?<![\w./])~?/[\w.-]{2,}|\b[a-z]:\\\S+"  # paths
    r"|\b(?=[\w.-]*[a-z])[\w-]+(?:\.[\w-]+)*:\d{2,5}\b"  # host:port
    r"|\b[\w-]+(?:\.[\w-]+)*\.(?:internal|local|lan|svc|com|net|org|io|ai|dev|cloud)\b"  # hosts
    r"|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d{2,5})?\b"  # IPv4
    r"|\[[0-9a-f:]*::?[0-9a-f:.]*\](?::\d{2,5})?"  # IPv6, in brackets and without
    r"|(?<![\w:])(?:(?:[0-9a-f]{1,4}::?){3,7}[0-9a-f]{1,4}|[0-9a-f:]{0,40}::[0-9a-f]+)(?![\w:])"
    r"|\b(?:sk|hf|key|tok)[-_][\w-]{3,}|\beyJ[\w.-]{8,}"  # tokens
    r"|\bbearer\s+(?=\S*[\d_]|\S*\.\w)[\w.~+/=-]{8,}",
    re.IGNORECASE,
)


def error_text(error: Any, token: str | None = None) -> str:
    """The message in an upstream's error object, with what would tell too much left out."""
    if isinstance(error, dict):
        inner = error.get("error", error)
        if isinstance(inner, dict):
            error = inner.get("message") or inner.get("detail") or inner.get("code") or "no reason"
        else:
            error = error.get("message") or inner
    text = str(error)
    if token:
        text = text.replace(token, "(hidden)")
    return _REVEALING.sub("(hidden)", text[:MAX_READ_CHARACTERS])[:MAX_CHARACTERS]


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """`Retry-After` where it is a number of seconds."""
    value = headers.get("Retry-After", "")
    return float(value) if re.fullmatch(r"\d{1,6}(\.\d+)?", value) else None


def unreachable(error: BaseException) -> UpstreamUnavailable:
    """The error for an upstream that no connection could be had to."""
    log.warning("upstream cannot be reached: %s: %s", type(error).__name__, error)
    return UpstreamUnavailable(
        "The upstream model server cannot be reached.", retry_after=RETRY_AFTER_SECONDS
    )
