"""Secrets given as flags: whoever may list processes reads them, so they move to the environment.

In: the command line. Out: the same program in place of this one, without the flags, where any held a
secret. Another user cannot read a process's environment.
"""

import os
import sys
from collections.abc import Callable, Sequence

from server.settings_table import SETTINGS

# Attributes of settings, and which of their values are secret.
SECRET: dict[str, Callable[[str], bool]] = {
    "token": lambda text: True,
    "api_keys": lambda text: True,
    "operator_keys": lambda text: True,
    "ray_auth_token": lambda text: True,
    "accel_key": lambda text: True,
    "upstreams": lambda text: "token" in text,
    "upstream_base": lambda text: "@" in text,
    "store": lambda text: "@" in text,
}


def hide_secret_flags() -> None:
    """Start anew without secrets on the command line; returns where there are none."""
    arguments = sys.argv[1:]
    kept, moved = without_secrets(arguments)
    if not moved:
        return
    names = ", ".join(moved)
    print(
        f"smolgate: a secret on the command line is seen in the process list; moved to the environment: {names}",
        file=sys.stderr,
        flush=True,
    )
    os.environ.update(moved)
    before = sys.orig_argv[: len(sys.orig_argv) - len(arguments)]
    os.execv(sys.executable, [*before, *kept])


def without_secrets(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments that may be seen, and variables in place of the others."""
    flags = {setting.flag: setting for setting in SETTINGS if setting.attribute in SECRET}
    kept: list[str] = []
    moved: dict[str, str] = {}
    left = iter(arguments)
    for argument in left:
        name, equals, value = argument.partition("=")
        setting = flags.get(name)
        if setting is None:
            kept.append(argument)
            continue
        given = [argument]
        if not equals and (following := next(left, None)) is not None:
            given.append(following)
            value = following
        if value and SECRET[setting.attribute](value):
            moved[setting.names[0]] = value
        else:
            kept += given
    return kept, moved
