"""Within a jail: one end of a socket in, model-written code executed, its prints and results out.

Runs after the zygote's fork and never returns. Until RunCode arrives only this project's code has
run here, under confinement; from then on the process counts as the attacker's. smolagents' own
interpreter executes the code, so that agents behave as their authors expect; the wall is the
confinement, not the interpreter.
"""

import builtins
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from smolagents.local_python_executor import LocalPythonExecutor, PrintContainer

from streaming.interpreters.confinement import ConfinementPlan, JailLimits, confine, set_limits
from streaming.interpreters.jail_wire import (
    MOST_BYTES_TO_JAIL,
    PRINT_OVERHEAD_BYTES,
    Failed,
    Finished,
    FrameBuffer,
    FromJail,
    KeepVariables,
    Kept,
    Printed,
    Raised,
    Ready,
    Returned,
    RunCode,
    SetTools,
    Setup,
    SetVariables,
    ToJail,
    ToolCalled,
    decode_to_jail,
    encode_frame,
)
from streaming.interpreters.kept_variables import kept_variables
from streaming.interpreters.value_reader import decode_value
from streaming.interpreters.value_writer import encode_value, error_text

_MOST_MESSAGE_CHARACTERS = 20_000
_READ_BYTES = 1 << 18
_MOST_VALUES_TO_JAIL = 10_000_000


class _ServerGone(BaseException):
    """The other end closed; nothing is left to do here."""


class _Wire:
    """The socket, by read and write alone: the system-call filter allows no socket calls."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._frames = FrameBuffer(MOST_BYTES_TO_JAIL)
        self._sending = threading.Lock()

    def send(self, message: FromJail) -> None:
        rest = memoryview(encode_frame(message))
        with self._sending:
            while rest:
                rest = rest[os.write(self._fd, rest) :]

    def receive(self) -> ToJail:
        while (frame := self._frames.next_frame()) is None:
            data = os.read(self._fd, _READ_BYTES)
            if not data:
                raise _ServerGone
            self._frames.feed(data)
        return decode_to_jail(frame)


class _LivePrints(PrintContainer):  # type: ignore[misc]  # smolagents is untyped
    """What smolagents appends printed text to; it leaves at once, up to the step's limit."""

    def __init__(self, wire: _Wire, most_bytes: int) -> None:
        super().__init__()
        self._wire = wire
        self._most_bytes = most_bytes
        self._bytes_left = most_bytes

    def append(self, text: object) -> "_LivePrints":
        return self.__iadd__(text)

    def __iadd__(self, text: object) -> "_LivePrints":
        if self._bytes_left < 0:
            return self
        printed = str(text)
        if len(printed) <= self._bytes_left:  # else there is no need to copy a gigabyte to know
            printed = printed.encode("utf-8", "replace").decode()
            self._bytes_left -= len(printed.encode()) + PRINT_OVERHEAD_BYTES
        else:
            self._bytes_left = -1
        if self._bytes_left < 0:
            printed = f"[output over {self._most_bytes} bytes in one step: the rest is dropped]\n"
        self._wire.send(Printed(printed))
        return self


class _LiveState(dict[str, Any]):
    """An interpreter's variables, in which the print container is always a live one."""

    def __init__(self, live_prints: Callable[[], _LivePrints]) -> None:
        super().__init__({"__name__": "__main__"})
        self._live_prints = live_prints

    def __setitem__(self, name: str, value: Any) -> None:
        if type(value) is PrintContainer and name == "_print_outputs":
            value = self._live_prints()
        super().__setitem__(name, value)


def _raised(answer: Raised) -> Exception:
    """The tool's exception as one of its own name, which `except` clauses in the code know."""
    known = getattr(builtins, answer.type_name, None)
    kind: type[Exception] = type(answer.type_name, (Exception,), {})
    if isinstance(known, type) and issubclass(known, Exception):
        kind = known
    try:
        return kind(answer.text)
    except TypeError:  # one that wants more than a text, such as UnicodeDecodeError
        return RuntimeError(f"{answer.type_name}: {answer.text}")


class _Jailed:
    """The interpreter and its link to the server."""

    def __init__(self, wire: _Wire, setup: Setup) -> None:
        self._wire = wire
        self._limits: JailLimits = setup.limits
        functions = self._proxies(setup.functions)
        prints = {"print": self._print} if "print" not in functions else {}
        self._state = _LiveState(lambda: _LivePrints(wire, self._limits.print_bytes))
        self._executor = LocalPythonExecutor(
            setup.authorized_imports,
            additional_functions=prints | functions,
            timeout_seconds=None,
        )
        self._executor.state = self._state
        self._executor.send_tools({})

    def set_tools(self, message: SetTools) -> None:
        self._executor.send_tools(self._proxies(message.names))

    def set_variables(self, message: SetVariables) -> None:
        for name, value in message.variables.items():
            decoded = decode_value(value, most_values=_MOST_VALUES_TO_JAIL)
            self._executor.send_variables({name: decoded})

    def run(self, message: RunCode) -> None:
        try:
            result = self._executor(message.code)
            output = encode_value(result.output, most_bytes=self._limits.value_bytes)
        except _ServerGone:
            raise
        except BaseException as error:  # noqa: BLE001  agent code raises what it likes
            self._wire.send(Failed(_message(error)))
            return
        self._wire.send(Finished(output, result.is_final_answer))

    def keep(self, message: KeepVariables) -> None:
        del message
        kept = kept_variables(self._state, self._executor.custom_tools)
        self._wire.send(Kept(kept))

    def _print(self, *values: object, sep: str | None = None, **_: object) -> None:
        """For `p = print` and `map(print, …)`; smolagents handles the plain call by itself."""
        text = (" " if sep is None else sep).join(map(str, values)) + "\n"
        self._state["_print_outputs"] += text

    def _proxies(self, names: Iterable[str]) -> dict[str, Callable[..., Any]]:
        return {name: self._proxy(name) for name in names}

    def _proxy(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                raise RuntimeError("tools can be called from the main thread only")
            arguments = encode_value((args, kwargs), most_bytes=self._limits.value_bytes)
            self._wire.send(ToolCalled(name, arguments))
            answer = self._wire.receive()
            if isinstance(answer, Returned):
                return decode_value(answer.value, most_values=_MOST_VALUES_TO_JAIL)
            assert isinstance(answer, Raised)
            raise _raised(answer)

        call.__name__ = name
        return call


def _message(error: BaseException) -> str:
    text = error_text(error)
    named = f"{type(error).__name__}: {text}" if not isinstance(error, ValueError) else text
    return named[:_MOST_MESSAGE_CHARACTERS] or type(error).__name__


def _forget_the_zygote(readable: Iterable[str], workspace: str) -> None:
    """Import from what may be read, keep files in the workspace, share no random numbers."""
    # Not update(): it asks every kind of mapping that this process knows, a twelfth of a jail's start.
    os.environ["HOME"] = os.environ["TMPDIR"] = workspace
    tempfile.tempdir = workspace
    roots = tuple(path + "/" for path in readable)
    sys.path[:] = [path for path in sys.path if (path + "/").startswith(roots)]
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()


def _serve(fd: int, layers: Iterable[str]) -> None:
    wire = _Wire(fd)
    wire.send(Ready())
    setup = wire.receive()
    assert isinstance(setup, Setup)
    set_limits(setup.limits, layers)
    try:
        jailed = _Jailed(wire, setup)
    except Exception as error:  # noqa: BLE001  an import that is authorised but not installed
        _fail_always(wire, Failed(_message(error)))
    handlers: dict[type, Callable[[Any], None]] = {
        SetTools: jailed.set_tools,
        SetVariables: jailed.set_variables,
        RunCode: jailed.run,
        KeepVariables: jailed.keep,
    }
    while True:
        message = wire.receive()
        handlers[type(message)](message)


def _fail_always(wire: _Wire, failure: Failed) -> NoReturn:
    while True:
        if isinstance(wire.receive(), RunCode):
            wire.send(failure)


def run_jail(fd: int, plan: ConfinementPlan, workspace: str, zygote_pid: int) -> NoReturn:
    """Be a jail on the socket `fd`, the only descriptor besides 0, 1 and 2, and then exit."""
    status = 1
    try:
        confine(plan, workspace, zygote_pid)
        _forget_the_zygote(plan.readable, workspace)
        _serve(fd, plan.layers)
    except (_ServerGone, OSError):
        status = 0
    finally:
        os._exit(status)
