"""A value and its schema, both from strangers, are looked at in a process that can be ended."""

import asyncio
import subprocess
from typing import Any

import pytest
from conftest import until

from streaming.cancellation import RunCancelled, StopSignal
from streaming.failures import InvalidRequest
from streaming.schema_check import check_schema, misfit

SLOW: dict[str, Any] = {"properties": {"a": {"pattern": "^(a+)+$"}}}
SLOWED = {"a": "a" * 40 + "!"}


@pytest.mark.parametrize(
    ("value", "schema", "says"),
    [
        ({"a": 1}, {"properties": {"a": {"type": "integer"}}}, None),
        ({"a": "x"}, {"properties": {"a": {"type": "integer"}}}, "(at $.a)"),
        ({}, {"required": ["a"]}, "'a' is a required property"),
        ({"b": 1}, {"additionalProperties": False}, "'b' was unexpected"),
        ([1], {"items": {"$ref": "#/$defs/x"}, "$defs": {"x": {"type": "null"}}}, "(at $[0])"),
        ("2001-02-30", {"format": "date"}, "is not a 'date'"),
        ("\ud800", {"type": "string"}, None),
        (1, {"$ref": "#"}, "cannot be applied"),
        (1, {"$ref": "http://127.0.0.1:1/x"}, "cannot be applied"),
        (1, {"$ref": "file:///etc/hostname"}, "cannot be applied"),
        (SLOWED, SLOW, "takes too long"),
    ],
)
def test_it_says_what_is_wrong(value: Any, schema: dict[str, Any], says: str | None) -> None:
    said = misfit(value, schema, StopSignal())
    assert said is None if says is None else says in (said or "")


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"properties": 5}, {"required": "a"}])
def test_a_schema_that_is_none_is_refused_by_name(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="'tools' is no JSON schema") as refused:
        check_schema(schema, "tools", StopSignal())
    assert refused.value.param == "tools"
    check_schema({"type": "object"}, "tools", StopSignal())


async def test_a_stop_kills_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr("subprocess.Popen", Noted)
    stop = StopSignal()
    checking = asyncio.ensure_future(asyncio.to_thread(misfit, SLOWED, SLOW, stop))
    await until(lambda: started)
    stop.set("client_gone")
    with pytest.raises(RunCancelled):
        await checking
    assert started[0].returncode == -9  # not its own limit of time, which is another signal
