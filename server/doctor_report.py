"""What the doctor finds, and how it is told.

In: findings, check by check. Out: lines for people or JSON for machines, without any secret, and the exit code:
0 all is well, 1 something should be looked at, 2 something will not work.
"""

import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, TextIO

from server.settings import Settings
from server.terminal_rows import printable

Status = Literal["ok", "warning", "failed"]

EXIT_CODES: dict[Status, int] = {"ok": 0, "warning": 1, "failed": 2}
# Shorter texts are no secrets, and would be found everywhere.
LEAST_SECRET = 4
HIDDEN = "(hidden)"


@dataclass(frozen=True)
class Finding:
    """One sentence of what was found, and one of how it is mended."""

    status: Status
    found: str
    mend: str = ""


def ok(found: str, mend: str = "") -> Finding:
    return Finding("ok", found, mend)


def warning(found: str, mend: str) -> Finding:
    return Finding("warning", found, mend)


def failed(found: str, mend: str) -> Finding:
    return Finding("failed", found, mend)


@dataclass(frozen=True)
class Patient:
    """What is examined: a server's settings as it would read them. `settings_errors` are those left out.

    `through` is the address of a proxy before it, with a `/v1`; `key` an API key for it.
    """

    settings: Settings
    environment: dict[str, str] = field(repr=False)
    arguments: tuple[str, ...] = field(default=(), repr=False)
    settings_errors: tuple[str, ...] = ()
    through: str | None = None
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Check:
    """One row of the table. `run` yields findings for at most `seconds`."""

    name: str
    run: Callable[[Patient], AsyncIterator[Finding]]
    seconds: float


class Report:
    """Findings as they come: told at once to people, at the end to machines."""

    def __init__(self, out: TextIO, *, as_json: bool, secrets: Iterable[str]) -> None:
        self._out, self._as_json = out, as_json
        self._secrets = sorted(
            {s for s in secrets if len(s) >= LEAST_SECRET}, key=len, reverse=True
        )
        self._told: list[dict[str, str]] = []
        self._worst: Status = "ok"

    def add(self, check: str, finding: Finding) -> None:
        found, mend = self._shown(finding.found), self._shown(finding.mend)
        self._worst = max(self._worst, finding.status, key=EXIT_CODES.__getitem__)
        self._told.append({"check": check, "status": finding.status, "found": found, "mend": mend})
        if not self._as_json:
            self._out.write(f"{finding.status:>7}  {check}: {found}\n")
            self._out.write(f"         → {mend}\n" if mend else "")
            self._out.flush()

    def close(self) -> int:
        """The last words; returns the exit code."""
        counts = {status: self._count(status) for status in EXIT_CODES}
        if self._as_json:
            told = {"status": self._worst, "counts": counts, "findings": self._told}
            self._out.write(json.dumps(told, indent=2) + "\n")
        else:
            numbers = ", ".join(f"{number} {status}" for status, number in counts.items())
            self._out.write(f"\n{numbers}\n")
        self._out.flush()
        return EXIT_CODES[self._worst]

    def _count(self, status: Status) -> int:
        return sum(told["status"] == status for told in self._told)

    def _shown(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return " ".join(printable(text).split())
