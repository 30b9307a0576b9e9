"""What an operator may set about a Ray cluster: from text to plain values.

In: the text of a setting. Out: the value, or ValueError.
"""

import re
from pathlib import Path
from typing import Any

from streaming.json_codec import decode_json

# Ray's own names; what else it has would change how runs are carried out.
OPTION_NAMES = (
    *("num_cpus", "num_gpus", "memory", "resources", "accelerator_type", "label_selector"),
    *("runtime_env", "scheduling_strategy", "max_calls"),
)


def ray_address(text: str) -> str:
    """Of a head, as its own nodes know it. A `ray://` client has no streaming generators."""
    host, port = _host_and_port(text)
    if host is None:
        raise ValueError
    return f"{host}:{port}"


def ray_listen(text: str) -> tuple[str | None, int]:
    """`host:port`; `:port` leaves the host to Ray."""
    return _host_and_port(text)


def ray_options(text: str) -> dict[str, dict[str, Any]]:
    """Options by agent."""
    if not text.lstrip().startswith("{"):
        try:
            text = Path(text).read_text()
        except OSError:
            raise ValueError from None
    options = decode_json(text.encode())
    if not isinstance(options, dict):
        raise ValueError
    for given in options.values():
        if not isinstance(given, dict) or not set(given) <= set(OPTION_NAMES):
            raise ValueError
    return options


def _host_and_port(text: str) -> tuple[str | None, int]:
    host, colon, port = text.strip().rpartition(":")
    if not colon or not re.fullmatch(r"[A-Za-z0-9_.\[\]:-]*", host) or int(port) > 65535:
        raise ValueError
    return host or None, int(port)
