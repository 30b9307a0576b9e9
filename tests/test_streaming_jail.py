import math
import signal
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from jail_pool_thread import make_interpreter, open_pool_thread
from PIL import Image
from smolagents.local_python_executor import InterpreterError

from streaming.interpreters.confinement import JailLimits
from streaming.interpreters.jail import JailInterpreter, JailKilled
from streaming.interpreters.jail_pool import JailPool


class Cancelled(BaseException):
    """Stands for the run's cancel exception."""


@pytest.fixture(scope="module")
def pool() -> Iterator[JailPool]:
    with open_pool_thread() as thread:
        yield thread.pool


@pytest.fixture
def interpreter(pool: JailPool) -> Iterator[JailInterpreter]:
    made = make_interpreter(pool)
    yield made
    made.cleanup()


def test_the_last_expression_is_the_output(interpreter: JailInterpreter) -> None:
    result = interpreter("x = 20\nx + 22")
    assert (result.output, result.logs, result.is_final_answer) == (42, "", False)


def test_variables_functions_and_imports_live_through_the_steps(
    interpreter: JailInterpreter,
) -> None:
    interpreter("import math\ndef area(r):\n    return math.pi * r ** 2\nr = 2")
    assert interpreter("area(r)").output == math.pi * 4


def test_two_runs_share_no_variable(pool: JailPool, interpreter: JailInterpreter) -> None:
    interpreter("secret = 1")
    other = make_interpreter(pool)
    with pytest.raises(InterpreterError, match="`secret` is not defined"):
        other("secret")
    other.cleanup()


def test_prints_arrive_in_order_before_the_step_ends(pool: JailPool) -> None:
    """The code waits in a tool until the test has seen its print: so the print was live."""
    prints: list[str] = []
    seen: list[list[str]] = []
    tools = {"look": lambda: seen.append(list(prints))}
    interpreter = make_interpreter(pool, prints=prints, tools=tools)
    result = interpreter("print('one', 1)\nlook()\nprint('two')\nlook()")
    interpreter.cleanup()
    assert seen == [["one 1\n"], ["one 1\n", "two\n"]]
    assert result.logs == "one 1\ntwo\n"


def test_print_as_a_value_prints_too(pool: JailPool) -> None:
    prints: list[str] = []
    interpreter = make_interpreter(pool, prints=prints)
    interpreter("p = print\np(1)\nlist(map(print, [2, 3]))")
    interpreter.cleanup()
    assert "".join(prints) == "1\n2\n3\n"


def test_signals_do_not_lengthen_a_step(pool: JailPool) -> None:
    interpreter = make_interpreter(pool, step_seconds=0.5)
    interpreter("import time")
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    ended = threading.Event()

    def disturb() -> None:
        while not ended.wait(0.02):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    began = time.monotonic()
    try:
        with pytest.raises(JailKilled, match=r"exceeded 0\.5 s"):
            interpreter("time.sleep(5)")
    finally:
        ended.set()
        disturber.join()
        signal.signal(signal.SIGUSR1, before)
        interpreter.cleanup()
    assert time.monotonic() - began < 3


def test_a_print_that_blocks_in_the_server_blocks_the_code(pool: JailPool) -> None:
    gate = threading.Event()
    prints: list[str] = []

    def on_print(text: str) -> None:
        assert gate.wait(30)
        prints.append(text)

    interpreter = JailInterpreter(
        pool, on_print=on_print, check_stop=lambda: None, step_seconds=5.0
    )
    interpreter.send_tools({})
    thread = threading.Thread(
        target=interpreter, args=("for n in range(2000):\n    print('x' * 400)",)
    )
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    gate.set()
    thread.join(30)
    interpreter.cleanup()
    assert "".join(prints) == f"{'x' * 400}\n" * 2000
    assert len(prints) < 2000  # what had come by then is one text


def test_prints_past_the_limit_end_in_one_line_that_says_so(pool: JailPool) -> None:
    prints: list[str] = []
    interpreter = make_interpreter(pool, prints=prints, limits=JailLimits(print_bytes=10_000))
    interpreter("for n in range(1000):\n    print('x' * 100)")
    assert prints[-1].endswith("[output over 10000 bytes in one step: the rest is dropped]\n")
    assert sum(map(len, prints)) < 11_000
    assert interpreter("print('again')").logs == "again\n"
    interpreter.cleanup()


def test_a_single_print_past_the_limit_is_dropped(interpreter: JailInterpreter) -> None:
    logs = interpreter("print('x' * 10**8)").logs
    assert logs == "[output over 1048576 bytes in one step: the rest is dropped]\n"


def test_long_logs_are_cut_as_smolagents_cuts_them(pool: JailPool) -> None:
    interpreter = make_interpreter(pool, max_print_outputs_length=100)
    logs = interpreter("print('a' * 90)\nprint('b' * 90)").logs
    interpreter.cleanup()
    assert "truncated to stay below 100 characters" in logs
    assert logs.startswith("a" * 50)
    assert logs.endswith("b" * 49 + "\n")


def test_an_import_that_was_not_authorised_is_refused(interpreter: JailInterpreter) -> None:
    with pytest.raises(InterpreterError, match="Import of os is not allowed"):
        interpreter("import os")


def test_an_authorised_import_works(pool: JailPool) -> None:
    interpreter = make_interpreter(pool, authorized_imports=["json"])
    assert interpreter("import json\njson.loads('[1]')").output == [1]
    interpreter.cleanup()


def test_an_authorised_import_that_is_not_installed_is_an_error(pool: JailPool) -> None:
    interpreter = make_interpreter(pool, authorized_imports=["no_such_package"])
    with pytest.raises(InterpreterError, match="Non-installed authorized modules: no_such_package"):
        interpreter("1")
    interpreter.cleanup()


def test_operation_limits_are_those_of_smolagents(pool: JailPool) -> None:
    interpreter = make_interpreter(
        pool, step_seconds=90.0
    )  # a million rounds take a slow machine a while
    with pytest.raises(InterpreterError, match=r"[Mm]aximum number of.*iterations"):
        interpreter("while True:\n    pass")
    interpreter.cleanup()


def test_an_error_names_its_line_and_keeps_the_variables_and_the_logs(
    interpreter: JailInterpreter,
) -> None:
    with pytest.raises(InterpreterError, match="'1 / 0' due to: ZeroDivisionError"):
        interpreter("kept = 1\nprint('before')\n1 / 0")
    assert interpreter.state["_print_outputs"] == "before\n"
    assert interpreter("kept").output == 1


def test_a_syntax_error_is_told(interpreter: JailInterpreter) -> None:
    with pytest.raises(InterpreterError, match="Code parsing failed on line 1"):
        interpreter("1 +")


@pytest.mark.parametrize("raised", ["SystemExit(3)", "KeyboardInterrupt()", "GeneratorExit()"])
def test_a_base_exception_in_the_code_is_an_error_and_not_the_end(
    interpreter: JailInterpreter, raised: str
) -> None:
    with pytest.raises(InterpreterError, match=raised.partition("(")[0]):
        interpreter(f"raise {raised}")
    assert interpreter("1").output == 1


def test_variables_are_sent(pool: JailPool) -> None:
    interpreter = make_interpreter(pool)
    interpreter.send_variables({"table": {"a": [1, 2.5, None]}})
    assert interpreter("table['a']").output == [1, 2.5, None]
    interpreter.send_variables({"later": "yes"})
    assert interpreter("later, table['a'][0]").output == ("yes", 1)
    interpreter.cleanup()


_REQUEST: ContextVar[str] = ContextVar("_REQUEST", default="none")


def test_tools_run_in_the_agents_thread_with_its_context(pool: JailPool) -> None:
    _REQUEST.set("mine")
    here = threading.current_thread()
    tools = {"which": lambda: (_REQUEST.get(), threading.current_thread() is here)}
    interpreter = make_interpreter(pool, tools=tools)
    assert interpreter("which()").output == ("mine", True)
    interpreter.cleanup()


def test_tools_take_arguments_by_place_and_name(pool: JailPool) -> None:
    tools = {"add": lambda a, b=0, *, c=0: a + 10 * b + 100 * c}
    interpreter = make_interpreter(pool, tools=tools)
    assert interpreter("add(1, b=2, c=add(3))").output == 321
    interpreter.cleanup()


def test_a_managed_agent_is_called_by_name_with_a_task(pool: JailPool) -> None:
    class ManagedAgent:
        name = "researcher"

        def __call__(self, task: str, **_: Any) -> str:
            return f"looked into {task}"

    interpreter = make_interpreter(pool, tools={"researcher": ManagedAgent()})
    assert interpreter("researcher(task='owls')").output == "looked into owls"
    interpreter.cleanup()


def test_additional_functions_override_the_base_tools(pool: JailPool) -> None:
    interpreter = make_interpreter(pool, additional_functions={"len": lambda _: "mine"})
    assert interpreter("len([])").output == "mine"
    interpreter.cleanup()


def test_a_tools_exception_can_be_caught_by_its_type(pool: JailPool) -> None:
    class QuotaError(Exception):
        pass

    def fail(kind: str) -> None:
        raise {"value": ValueError, "quota": QuotaError}[kind](f"no {kind}")

    interpreter = make_interpreter(pool, tools={"fail": fail})
    code = "try:\n    fail('value')\nexcept ValueError as error:\n    caught = str(error)\ncaught"
    assert interpreter(code).output == "no value"
    with pytest.raises(InterpreterError, match="QuotaError: no quota"):
        interpreter("fail('quota')")
    interpreter.cleanup()


def test_an_exception_without_a_text_and_a_value_without_an_encoding_cross(pool: JailPool) -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    class Broken(dict[str, int]):
        def items(self) -> Any:
            raise RuntimeError

    def fail() -> None:
        raise MuteError

    interpreter = make_interpreter(pool, tools={"fail": fail, "broken": lambda: Broken(a=1)})
    with pytest.raises(InterpreterError, match="MuteError"):
        interpreter("fail()")
    assert interpreter("broken()").output == {"a": 1}
    interpreter.cleanup()


def test_the_runs_cancel_exception_in_a_tool_ends_the_code_and_the_jail(pool: JailPool) -> None:
    def stop() -> None:
        raise Cancelled

    interpreter = make_interpreter(pool, tools={"stop": stop})
    with pytest.raises(Cancelled):
        interpreter("try:\n    stop()\nexcept BaseException:\n    pass")
    interpreter.cleanup()


def test_a_final_answer_ends_the_code(interpreter: JailInterpreter) -> None:
    result = interpreter("final_answer({'n': 1})\nprint('not reached')")
    assert (result.output, result.is_final_answer, result.logs) == ({"n": 1}, True, "")


def test_an_overridden_final_answer_gives_its_own_object(pool: JailPool) -> None:
    """It never leaves the server, so it need not be of a type that crosses."""
    answer = object()
    interpreter = make_interpreter(pool, tools={"final_answer": lambda *_: answer})
    result = interpreter("try:\n    final_answer(1, 2)\nexcept Exception:\n    pass")
    interpreter.cleanup()
    assert result.is_final_answer
    assert result.output is answer


def test_values_come_back_equal(interpreter: JailInterpreter) -> None:
    code = """
import datetime
{
    "big": -(10**200), "float": 0.1, "complex": 1 + 2j, "bytes": "é".encode(), "text": "日本\\n",
    "tuple": (1, (2,)), "set": {1, 2}, 3: None, (1, 2): True,
    "date": datetime.date(2026, 1, 2), "delta": datetime.timedelta(days=-1, microseconds=5),
    "numbers": [n / 2 for n in range(100)],
}
"""
    expected: dict[object, object] = {
        "big": -(10**200),
        "float": 0.1,
        "complex": 1 + 2j,
        "bytes": "é".encode(),
        "text": "日本\n",
        "tuple": (1, (2,)),
        "set": {1, 2},
        3: None,
        (1, 2): True,
        "date": date(2026, 1, 2),
        "delta": timedelta(days=-1, microseconds=5),
        "numbers": [n / 2 for n in range(100)],
    }
    assert interpreter(code).output == expected


def test_values_go_there_and_back(pool: JailPool) -> None:
    values = [
        *(Decimal("1.10"), Fraction(1, 3), Path("a/b"), datetime(2026, 1, 2, 3, 4, 5, 6)),
        *(frozenset({1}), b"\x00\xff", float("inf"), 2**63, [10**30] * 20, "x" * 2_000_000),
    ]
    interpreter = make_interpreter(pool, tools={"same": lambda value: value})
    interpreter.send_variables({"values": values})
    assert interpreter("same(values)").output == values
    interpreter.cleanup()


def test_an_image_goes_there_and_back(pool: JailPool) -> None:
    image = Image.new("RGB", (3, 2), (1, 2, 3))
    interpreter = make_interpreter(pool, authorized_imports=["PIL.*"])
    interpreter.send_variables({"image": image})
    returned = interpreter("image.rotate(180)").output
    interpreter.cleanup()
    assert (returned.size, returned.getpixel((0, 0))) == ((3, 2), (1, 2, 3))


def test_what_cannot_cross_arrives_as_its_text(interpreter: JailInterpreter) -> None:
    assert interpreter("range(3)").output == "range(0, 3)"
    code = "class Odd:\n    def __repr__(self):\n        return 'odd ' * 10**6\nOdd()"
    assert len(interpreter(code).output) < 21_000


def test_a_value_too_large_arrives_as_its_text(pool: JailPool) -> None:
    interpreter = make_interpreter(pool, limits=JailLimits(value_bytes=100_000))
    assert interpreter("'x' * 90_000").output == "x" * 90_000
    output = interpreter("['y' * 1000] * 1000").output
    interpreter.cleanup()
    assert isinstance(output, str)
    assert output.startswith("['yyy")
    assert output.endswith("(cut)")


def test_an_output_that_cannot_be_shown_does_not_end_the_run(interpreter: JailInterpreter) -> None:
    """str() of a number this long raises, and the agent calls it where nothing catches."""
    for code in ("10**5000", "[10**5000]", "final_answer(10**5000)"):
        assert "cannot be shown" in interpreter(code).output


def test_code_that_outruns_its_step_is_killed_and_the_run_goes_on(pool: JailPool) -> None:
    interpreter = make_interpreter(pool, step_seconds=0.5)
    interpreter.send_variables({"given": 7})
    interpreter("lost = 1")
    began = time.monotonic()
    with pytest.raises(
        JailKilled, match=r"exceeded 0\.5 s and was killed; all variables are lost\."
    ):
        interpreter("print('on my way')\n10**10**8")
    assert time.monotonic() - began < 2
    assert interpreter.state["_print_outputs"] == "on my way\n"
    with pytest.raises(InterpreterError, match="`lost` is not defined"):
        interpreter("lost")
    assert interpreter("given").output == 7
    assert interpreter("final_answer(1)").is_final_answer
    interpreter.cleanup()


def test_code_that_prints_all_the_time_is_killed_when_its_step_is_over(pool: JailPool) -> None:
    interpreter = make_interpreter(pool, authorized_imports=["time"], step_seconds=1.0)
    began = time.monotonic()
    with pytest.raises(JailKilled, match=r"exceeded 1 s"):
        interpreter("import time\nfor n in range(500):\n    print(n)\n    time.sleep(0.02)")
    assert 0.9 < time.monotonic() - began < 3
    assert interpreter.state["_print_outputs"].startswith("0\n1\n")
    interpreter.cleanup()


def test_time_in_tools_is_not_the_codes(pool: JailPool) -> None:
    interpreter = make_interpreter(
        pool, step_seconds=0.5, tools={"slow": lambda: threading.Event().wait(0.8)}
    )
    assert interpreter("slow()\n1").output == 1
    interpreter.cleanup()


@pytest.mark.parametrize("code", ["10**10**8", "import time\ntime.sleep(600)"])
def test_kill_wakes_the_waiting_thread_at_once(pool: JailPool, code: str) -> None:
    stopped = threading.Event()
    running = threading.Event()
    woke: list[float] = []

    def check_stop() -> None:
        if stopped.is_set():
            raise Cancelled

    interpreter = JailInterpreter(
        pool, on_print=lambda _: running.set(), check_stop=check_stop, step_seconds=60
    )

    def run() -> None:
        with pytest.raises(Cancelled):
            interpreter(f"print(1)\n{code}")
        woke.append(time.monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    assert running.wait(30)
    stopped.set()
    began = time.monotonic()
    interpreter.kill()
    interpreter.kill()
    thread.join(10)
    interpreter.cleanup()
    assert woke[0] - began < 0.1


def test_a_killed_interpreter_stays_closed(interpreter: JailInterpreter) -> None:
    interpreter("1")
    interpreter.cleanup()
    interpreter.cleanup()
    with pytest.raises(InterpreterError, match="closed"):
        interpreter("1")


def test_a_stopped_run_starts_no_code(pool: JailPool) -> None:
    def check_stop() -> None:
        raise Cancelled

    interpreter = make_interpreter(pool, check_stop=check_stop)
    with pytest.raises(Cancelled):
        interpreter("1")
    interpreter.cleanup()


def test_cpu_time_is_limited(pool: JailPool) -> None:
    interpreter = make_interpreter(pool, step_seconds=30, limits=JailLimits(cpu_seconds=1))
    with pytest.raises(JailKilled, match=r"CPU time \(SIGXCPU.*variables are lost"):
        interpreter("10**10**8")
    assert interpreter("1").output == 1
    interpreter.cleanup()


def test_memory_is_limited_and_the_variables_live(interpreter: JailInterpreter) -> None:
    interpreter("kept = 1")
    with pytest.raises(InterpreterError, match="MemoryError"):
        interpreter("'a' * 10**11")
    assert interpreter("kept").output == 1


def test_tool_calls_are_limited(pool: JailPool) -> None:
    interpreter = make_interpreter(
        pool, limits=JailLimits(tool_calls=10), tools={"f": lambda: None}
    )
    with pytest.raises(JailKilled, match="called tools over 10 times"):
        interpreter("for n in range(11):\n    f()")
    interpreter.cleanup()
