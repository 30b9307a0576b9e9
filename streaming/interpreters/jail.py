"""The jail as smolagents sees it: a PythonExecutor whose code runs in a confined process.

Used from the agent's thread, which waits here and does nothing else: the code runs in a jail taken
from the pool at the first step, its prints, tool calls and result come back over the jail's socket.
Tools and managed agents run in this thread, with its context variables, clients and credentials.
The socket's other end counts as an attacker's: whatever breaks the protocol or a limit is killed.
"""

import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smolagents.local_python_executor import (
    DEFAULT_MAX_LEN_OUTPUT,
    CodeOutput,
    InterpreterError,
    PythonExecutor,
)
from smolagents.utils import truncate_content

from streaming.interpreters.confinement import JailLimits
from streaming.interpreters.jail_pool import JailUnavailable
from streaming.interpreters.jail_process import JailProcess, JailSource
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
    Returned,
    RunCode,
    SetTools,
    Setup,
    SetVariables,
    ToJail,
    ToolCalled,
    WireBroken,
    decode_from_jail,
    encode_frame,
    most_bytes_from_jail,
)
from streaming.interpreters.kept_variables import KeptVariables
from streaming.interpreters.value_reader import decode_value
from streaming.interpreters.value_writer import ValueRefused, encode_value, error_text

_TAKE_SECONDS = 15.0
_END_SECONDS = 2.0
_READ_BYTES = 1 << 16
_MOST_VALUES_TO_JAIL = 10_000_000
# By so much may code outrun its step: the socket's time-out is a system call to set.
_LATE_SECONDS = 0.05
_TIMEVAL = struct.Struct("@ll")
# The jail's own count stops at print_bytes with one line that says so; past this it is no honest one.
_PRINT_SLACK_BYTES = 1024
_MOST_ERROR_CHARACTERS = 20_000
_ALL_LOST = "all variables are lost"


class JailKilled(InterpreterError):  # type: ignore[misc]  # smolagents is untyped
    """The jail is gone and the run goes on; the message is for the model."""


class _JailEnded(Exception):
    """The socket closed."""


class _OutOfTime(Exception):
    """The code outran its step."""


class JailInterpreter(PythonExecutor):  # type: ignore[misc]
    """One run's interpreter. Blocking; for the run's thread, `kill` excepted.

    `on_print` gets printed text at once, as much as there is; while it blocks, so does the jail. `check_stop` raises
    the run's cancel exception once the run is stopped. `step_seconds` is wall time of code alone,
    without the tools that it calls.
    """

    def __init__(
        self,
        pool: JailSource,
        *,
        authorized_imports: Sequence[str] = (),
        on_print: Callable[[str], None],
        check_stop: Callable[[], None],
        step_seconds: float | None = None,
        limits: JailLimits | None = None,
        max_print_outputs_length: int | None = None,
        additional_functions: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        self._pool = pool
        self._authorized_imports = list(authorized_imports)
        self._on_print = on_print
        self._check_stop = check_stop
        self._step_seconds = step_seconds
        self._limits = limits or JailLimits()
        self._most_log_characters = max_print_outputs_length or DEFAULT_MAX_LEN_OUTPUT
        self._functions = dict(additional_functions or {})
        self._tools: dict[str, Callable[..., Any]] = {}
        self._variables: dict[str, Any] = {}
        # What the next code needs told first.
        self._pending: list[ToJail] = []
        # Of an earlier run: values for the first jail alone, and the code that defines the rest.
        self._recalled: dict[str, bytes] = {}
        self._definitions: tuple[tuple[str, str], ...] = ()
        self._log: list[str] = []
        self._last_final_answer: list[Any] = []
        self._frames = FrameBuffer(0)
        self._ahead: FromJail | None = None  # read, and not yet followed
        self._socket_seconds: float | None = None  # the socket's time-out for reading
        self._lock = threading.Lock()
        self._jail: JailProcess | None = None
        self._killed = False

    @property
    def state(self) -> dict[str, Any]:
        """What CodeAgent reads of it when a step failed: the text printed so far."""
        return {"_print_outputs": self._logs()}

    def send_tools(self, tools: Mapping[str, Callable[..., Any]]) -> None:
        self._tools = dict(tools)
        self._pending.append(SetTools(list(self._tools)))

    def send_variables(self, variables: Mapping[str, Any]) -> None:
        self._variables.update(variables)
        self._pending.append(_variables_message(dict(variables)))

    def __call__(self, code_action: str) -> CodeOutput:
        """Run the code. Raises InterpreterError for what the model should know, JailKilled if its
        variables are gone, JailUnavailable, and whatever `check_stop` or `on_print` raise."""
        self._log.clear()
        self._last_final_answer.clear()
        try:
            self._enter_jail()
            for message in self._pending:
                self._send(message)
            self._pending.clear()
            if self._definitions:
                self._define_again()
            self._send(RunCode(code_action))
            return self._follow()
        except _JailEnded:
            end = self._end_of_jail()
            self._discard()
            self._refuse_if_killed()
            raise self._lost(f"The process that ran the code is gone: {end}", "end") from None
        except _OutOfTime:
            text = f"The code exceeded {self._step_seconds:g} s and was killed"
            raise self._lost(text, "time") from None
        except (WireBroken, ValueRefused) as error:
            raise self._lost(
                f"The code broke out of its interpreter and was killed: {error}", "breach"
            ) from None
        except InterpreterError:
            raise
        except BaseException:
            self._discard()
            raise

    def recall(self, values: Mapping[str, bytes], definitions: Sequence[tuple[str, str]]) -> None:
        """Before the first code: variables of an earlier run, and names with the code that defines them."""
        self._recalled = dict(values)
        self._definitions = tuple(definitions)

    def keep(self) -> KeptVariables | None:
        """What the variables leave behind; None where no code has run, or the jail is gone."""
        if self._jail is None:
            return None
        try:
            self._send(KeepVariables())
            message, _ = self._receive(self._step_seconds)
        except (_JailEnded, _OutOfTime, WireBroken):
            self._discard()
            return None
        return message.variables if isinstance(message, Kept) else None

    def _define_again(self) -> None:
        definitions, self._definitions = self._definitions, ()
        failed = []
        for name, code in definitions:
            self._send(RunCode(code))
            try:
                self._follow()
            except JailKilled:
                raise
            except InterpreterError:
                failed.append(name)
        if failed:
            text = f"[These could not be defined again: {', '.join(failed)}]\n"
            self._log.append(text)
            self._on_print(text)

    def kill(self) -> None:
        """Kill the jail and wake the thread that waits for it, for good. Idempotent, any thread."""
        with self._lock:
            self._killed = True
            if self._jail is not None:
                self._jail.kill()
        self._pool.wake()

    def cleanup(self) -> None:
        """Give the jail back; it is killed. Idempotent."""
        self.kill()
        self._discard()

    def _enter_jail(self) -> None:
        self._check_stop()
        self._refuse_if_killed()
        if self._jail is not None and self._jail.is_alive:
            return
        had_one = self._jail is not None
        self._discard()
        if had_one:
            raise self._lost("The jail was killed between two steps", "end")
        try:
            jail = self._pool.take(_TAKE_SECONDS, stopped=lambda: self._killed)
        except JailUnavailable:
            self._refuse_if_killed()
            raise
        with self._lock:
            self._jail = jail
        self._refuse_if_killed()
        self._frames = FrameBuffer(most_bytes_from_jail(self._limits))
        self._ahead = self._socket_seconds = None
        functions = list(self._functions)
        self._pending = [
            Setup(self._authorized_imports, functions, self._limits),
            SetTools(list(self._tools)),
            _variables_message(self._variables),
        ]
        if self._recalled:
            self._pending.insert(2, SetVariables(self._recalled))
            self._recalled = {}

    def _refuse_if_killed(self) -> None:
        if self._killed:
            self._check_stop()
            raise InterpreterError("The jail is closed.")

    def _discard(self) -> None:
        with self._lock:
            jail, self._jail = self._jail, None
        if jail is not None:
            jail.close()

    def _lost(self, text: str, why: str) -> JailKilled:
        """After this the next code gets a fresh jail."""
        self._definitions = ()
        self._discard()
        self._pool.count_lost(why)
        return JailKilled(f"{text}; {_ALL_LOST}.")

    def _end_of_jail(self) -> str:
        """Why the socket closed; waits for the zygote's word, unless the run itself was stopped."""
        assert self._jail is not None
        end = self._jail.wait_for_end(0 if self._killed else _END_SECONDS)
        return end or "it closed its connection"

    def _send(self, message: ToJail) -> None:
        assert self._jail is not None
        link = self._jail.link
        link.settimeout(self._step_seconds)
        try:
            link.sendall(encode_frame(message))
            link.settimeout(None)
        except TimeoutError:
            raise _OutOfTime from None
        except OSError:
            raise _JailEnded from None

    def _follow(self) -> CodeOutput:
        """Serve the running code until it ends."""
        seconds_left = self._step_seconds
        bytes_left = self._limits.print_bytes + _PRINT_SLACK_BYTES
        calls_left = self._limits.tool_calls
        while True:
            message, seconds_left = self._receive(seconds_left)
            if isinstance(message, Printed):
                bytes_left = self._show(message, bytes_left)
            elif isinstance(message, ToolCalled):
                calls_left -= 1
                if calls_left < 0:
                    text = f"The code called tools over {self._limits.tool_calls} times"
                    raise self._lost(text, "calls")
                self._answer(message)
            elif isinstance(message, Finished):
                return CodeOutput(self._output(message), self._logs(), message.is_final_answer)
            elif isinstance(message, Failed):
                raise InterpreterError(message.text[:_MOST_ERROR_CHARACTERS])
            else:
                raise WireBroken("a message out of turn")

    def _show(self, printed: Printed, bytes_left: int) -> int:
        """Hand on what was printed and all that came with it as one text; returns how much may follow."""
        texts = []
        message: FromJail | None = printed
        try:
            while type(message) is Printed:
                bytes_left -= len(message.text.encode("utf-8", "replace")) + PRINT_OVERHEAD_BYTES
                if bytes_left < 0:
                    raise WireBroken("it printed past its limit")
                texts.append(message.text)
                message = self._next_message()
        finally:
            if texts:
                text = "".join(texts)
                self._log.append(text)
                self._on_print(text)
        self._ahead = message
        return bytes_left

    def _next_message(self) -> FromJail | None:
        """One that has come already."""
        message, self._ahead = self._ahead, None
        if message is None and (frame := self._frames.next_frame()) is not None:
            message = decode_from_jail(frame)
        return message

    def _receive(self, seconds_left: float | None) -> tuple[FromJail, float | None]:
        """The next message and what is left of the step's time after waiting for it."""
        assert self._jail is not None
        link = self._jail.link
        while (message := self._next_message()) is None:
            try:
                if seconds_left is None:
                    data = link.recv(_READ_BYTES)
                else:
                    self._limit_reading(link, seconds_left)
                    began = time.monotonic()
                    data = link.recv(_READ_BYTES)
                    seconds_left -= time.monotonic() - began
            except BlockingIOError:
                # The socket's time-out may be shorter than what is left, and is set anew.
                self._socket_seconds = None
                if seconds_left is not None:
                    seconds_left -= time.monotonic() - began
                continue
            except OSError:
                raise _JailEnded from None
            if not data:
                raise _JailEnded
            self._frames.feed(data)
        return message, seconds_left

    def _limit_reading(self, link: socket.socket, seconds: float) -> None:
        """By the kernel's time-out: Python's own costs two more system calls a read.

        It is set to half of what is left, so that reads which wait for a short time each do not outdate it.
        """
        if seconds <= 0:
            raise _OutOfTime
        limit = self._socket_seconds
        if limit is None or limit > seconds + _LATE_SECONDS:
            limit = seconds / 2 if seconds > _LATE_SECONDS else seconds
            # No time at all would be no limit.
            whole, part = divmod(max(1, round(limit * 1e6)), 1_000_000)
            timeval = _TIMEVAL.pack(whole, part)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            self._socket_seconds = limit

    def _answer(self, call: ToolCalled) -> None:
        tool = {**self._tools, **self._functions}.get(call.name)
        if tool is None:
            raise WireBroken("a call of a tool that it was not given")
        match decode_value(call.arguments):
            case (tuple() as args, dict() as kwargs) if all(type(name) is str for name in kwargs):
                pass
            case _:
                raise WireBroken("arguments of no known shape")
        answer: ToJail
        try:
            result = tool(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  the tool's own; the code may handle it
            answer = Raised(type(error).__name__, error_text(error))
        else:
            if call.name == "final_answer":
                self._last_final_answer[:] = [result]
            answer = Returned(_encoded(result))
        self._refuse_if_killed()
        self._send(answer)

    def _output(self, finished: Finished) -> Any:
        """The value; for a final answer the tool's own object, which need not survive two trips."""
        if finished.is_final_answer and self._last_final_answer:
            return _showable(self._last_final_answer.pop())
        return _showable(decode_value(finished.output))

    def _logs(self) -> str:
        logs: str = truncate_content("".join(self._log), max_length=self._most_log_characters)
        return logs


def _showable(output: Any) -> Any:
    """The agent makes text of every output where nothing catches, and an int of 5,000 digits, say,
    has none."""
    try:
        str(output)
    except Exception as error:  # noqa: BLE001  the value's own __str__
        return f"<{type(output).__name__} that cannot be shown: {error}>"
    return output


def _encoded(value: Any) -> bytes:
    most_bytes = MOST_BYTES_TO_JAIL // 2
    return encode_value(value, most_bytes=most_bytes, most_values=_MOST_VALUES_TO_JAIL)


def _variables_message(variables: dict[str, Any]) -> SetVariables:
    return SetVariables({name: _encoded(value) for name, value in variables.items()})
