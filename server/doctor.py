"""`smolgate doctor`: checks all that a deployment needs, and says how to mend each.

In: the settings of the server, from the same environment and flags; with `--through` also a proxy before it. Out: findings
and an exit code. A check that fails, hangs or breaks stops no other.
"""

import argparse
import asyncio
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence

from server.doctor_agents import check_agents, check_mcp_servers, check_runner
from server.doctor_jail import check_jail
from server.doctor_machine import check_limits, check_packages, check_python, check_temporary_files
from server.doctor_place import (
    check_exposure,
    check_keys,
    check_place,
    check_settings,
    check_silence,
)
from server.doctor_proxy import check_through
from server.doctor_report import Check, Patient, Report, failed
from server.doctor_upstreams import check_upstreams
from server.secret_flags import hide_secret_flags
from server.setting_values import SECRETS, BadSetting
from server.settings import Settings, make_settings, read_settings, secrets_of
from server.settings_table import SETTINGS
from server.terminal_chat import BROKEN_PIPE, read_key
from server.terminal_client import BAD_FLAGS, INTERRUPTED, ChatProblem
from server.terminal_plain import say_plainly

CHECKS = (
    Check("settings", check_settings, 5),
    Check("python", check_python, 5),
    Check("packages", check_packages, 5),
    Check("limits", check_limits, 5),
    Check("temporary files", check_temporary_files, 5),
    Check("keys", check_keys, 5),
    Check("exposure", check_exposure, 5),
    Check("silence", check_silence, 5),
    Check("place", check_place, 10),
    Check("upstreams", check_upstreams, 90),
    Check("agents", check_agents, 30),
    Check("MCP servers", check_mcp_servers, 30),
    Check("jail", check_jail, 30),
    Check("runner", check_runner, 30),
)
PROXY_CHECK = Check("proxy", check_through, 50)
_PASSWORD = re.compile(r"://[^/@\s:]*:([^@/\s]+)@")


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code."""
    flags, of_server = _parser().parse_known_args(arguments)
    hide_secret_flags()
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # as the server does: agents may lie here
    try:
        key = read_key(flags.api_key_file, os.environ)
    except ChatProblem as problem:
        say_plainly(problem)
        return BAD_FLAGS
    settings, errors = read_what_works(of_server, os.environ)
    patient = Patient(
        settings, dict(os.environ), tuple(of_server), tuple(errors), flags.through, key
    )
    # Agents that are imported may print, and libraries may log: the report is alone on stdout.
    with os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace") as out:
        os.dup2(2, 1)
        logging.disable()
        report = Report(out, as_json=flags.json, secrets=_secrets(patient))
        checks = (*CHECKS, PROXY_CHECK) if patient.through else CHECKS
        try:
            asyncio.run(examine(patient, report, checks))
            code = report.close()
        except KeyboardInterrupt:
            os._exit(INTERRUPTED)
        except BrokenPipeError:  # nobody reads on
            os._exit(BROKEN_PIPE)
    # A thread that hangs, in a resolver or in an agent's module, must not keep the command.
    sys.stderr.flush()
    os._exit(code)


async def examine(patient: Patient, report: Report, checks: Sequence[Check]) -> None:
    """All checks, one after the other, so that none disturbs another's times."""
    for check in checks:
        try:
            async with asyncio.timeout(check.seconds):
                async for finding in check.run(patient):
                    report.add(check.name, finding)
        except TimeoutError:
            said = f"it was not over after {check.seconds:g} s"
            report.add(check.name, failed(said, "Something hangs here: look at what it waits for."))
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001 - told as a finding
            said = f"the check itself failed: {type(error).__name__}: {error}"
            report.add(check.name, failed(said, "Tell the maintainers."))


def read_what_works(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[Settings, list[str]]:
    """The settings without those that cannot work, and what is wrong with each of these."""
    left, variables = list(arguments), dict(environment)
    errors: list[str] = []
    while True:
        try:
            return read_settings(left, variables), errors
        except BadSetting as error:
            errors.append(str(error))
            if not _leave_out(str(error), left, variables):
                return make_settings(), errors


def _leave_out(error: str, arguments: list[str], variables: dict[str, str]) -> bool:
    """Take out the setting that an error begins with; False where that is none."""
    for setting in SETTINGS:
        for name in (setting.flag, *setting.names):
            # Names may begin alike: what follows one in an error is a blank, or a place in it.
            if not error.startswith((f"{name} ", f"{name}[", f"{name}.")):
                continue
            given = [at for at, word in enumerate(arguments) if word.split("=")[0] == setting.flag]
            for at in reversed(given):
                del arguments[at : at + (1 if "=" in arguments[at] else 2)]
            if given or name == setting.flag:
                return bool(given)
            return variables.pop(name, None) is not None
    return False


def _secrets(patient: Patient) -> list[str]:
    """All that must not be told: what settings hold, and what was given even where it cannot work."""
    settings, environment = patient.settings, patient.environment
    given = [
        environment[name]
        for setting in SETTINGS
        if setting.attribute in SECRETS
        for name in setting.names
        if name in environment
    ]
    keys = [key.strip() for key in environment.get("API_KEYS", "").split(",")]
    texts = [*environment.values(), *patient.arguments, patient.through or ""]
    passwords = [found for text in texts for found in _PASSWORD.findall(text)]
    found = [*secrets_of(settings), *given, *keys, *passwords, patient.key, settings.token_file]
    return [secret for secret in found if secret]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="smolgate doctor",
        usage="smolgate doctor [--json] [--through URL] [--api-key-file PATH] [SETTING …]",
        description="Checks all that a server with these settings needs, and says how to mend what is wrong. Settings are those of the server (smolgate --help), from the environment and as flags. It asks each upstream's model two small questions.",
        epilog="Exit codes: 0 all is well, 1 warnings, 2 something will not work.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument(
        "--through",
        metavar="URL",
        help="also check the proxy before a running server, by its public address with /v1; an API key for it is SMOLGATE_API_KEY",
    )
    parser.add_argument("--api-key-file", metavar="PATH", help="a file that holds that API key")
    return parser
