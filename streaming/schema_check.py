"""A JSON value and the schema it must fit → what is wrong with it, or nothing.

In: plain values, in a run's thread. Out: a sentence, or None. The work is done by `schema_child.py` in a
process of its own, 70 ms each time, so that no schema can hold up the server; the thread only waits, and
the run's stop ends it.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from streaming.cancellation import StopSignal
from streaming.failures import InvalidRequest

SECONDS = 20.0
_CHILD = Path(__file__).with_name("schema_child.py")


def check_schema(schema: dict[str, Any], param: str, stop: StopSignal) -> None:
    """Raises InvalidRequest, which names the parameter, for what is no JSON schema."""
    if said := _ask({"schema": schema}, stop).get("schema_error"):
        raise InvalidRequest(f"'{param}' is no JSON schema: {said}.", param=param)


def misfit(value: Any, schema: dict[str, Any], stop: StopSignal) -> str | None:
    """What is wrong with the value; None where it fits."""
    said = _ask({"schema": schema, "value": value}, stop)
    return said.get("value_error") or said.get("schema_error")


def _ask(question: dict[str, Any], stop: StopSignal) -> dict[str, str]:
    with (
        subprocess.Popen(
            [sys.executable, "-I", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
        ) as child,
        stop.watched_by(child.kill),
    ):
        try:
            out, _ = child.communicate(json.dumps(question).encode(), timeout=SECONDS)
        except subprocess.TimeoutExpired:
            out = b""
        finally:
            child.kill()
    stop.check()
    if child.returncode != 0 or not out:
        return {"schema_error": "it takes too long to check"}
    answer: dict[str, str] = json.loads(out)
    return answer
