"""smolagents' own interpreter in the run's thread, its prints live.

In: code. Out: each printed line at once, through `on_print`; the step's output at its end. It stops
between any two operations of the interpreted code, but not inside one C call, and it is no security
boundary: for trusted prompts only.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from smolagents.local_python_executor import (
    InterpreterError,
    LocalPythonExecutor,
    PrintContainer,
)

from streaming.interpreters.kept_variables import KeptVariables, kept_variables
from streaming.interpreters.value_reader import decode_value
from streaming.interpreters.value_writer import ValueRefused

PRINTS = "_print_outputs"
OPERATIONS = "_operations_count"


class InlineInterpreter(LocalPythonExecutor):  # type: ignore[misc]
    """`on_print` gets every line as it is printed; `check_stop` may raise to end the run."""

    def __init__(
        self,
        authorized_imports: Sequence[str] = (),
        *,
        on_print: Callable[[str], None],
        check_stop: Callable[[], None],
        max_print_outputs_length: int | None = None,
        additional_functions: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        # Without a time-out smolagents runs the code in this very thread, so that tools keep its
        # context variables; its time-out would not stop anything anyway (smolagents #2197).
        super().__init__(
            list(authorized_imports),
            max_print_outputs_length=max_print_outputs_length,
            additional_functions=dict(additional_functions or {}),
            timeout_seconds=None,
        )
        self._definitions: tuple[tuple[str, str], ...] = ()
        self._on_print = on_print
        self.state: dict[str, Any] = _LiveState(
            {"__name__": "__main__"}, on_print=on_print, check_stop=check_stop
        )

    def recall(self, values: Mapping[str, bytes], definitions: Sequence[tuple[str, str]]) -> None:
        """Before the first code: variables of an earlier run, and names with the code that defines them."""
        for name, value in values.items():
            with suppress(ValueRefused):
                self.state[name] = decode_value(value)
        self._definitions = tuple(definitions)

    def keep(self) -> KeptVariables | None:
        """What the variables leave behind."""
        return kept_variables(self.state, self.custom_tools)

    def __call__(self, code_action: str) -> Any:
        definitions, self._definitions = self._definitions, ()
        failed = []
        for name, code in definitions:
            try:
                super().__call__(code)
            except InterpreterError:
                failed.append(name)
        if failed:
            self._on_print(f"[These could not be defined again: {', '.join(failed)}]\n")
        return super().__call__(code_action)


class _LiveState(dict[str, Any]):
    """The interpreter's variables; puts a live container where the prints are collected."""

    def __init__(
        self,
        variables: dict[str, Any],
        *,
        on_print: Callable[[str], None],
        check_stop: Callable[[], None],
    ) -> None:
        super().__init__(variables)
        self._on_print = on_print
        self._check_stop = check_stop

    def __setitem__(self, name: str, value: Any) -> None:
        if name == PRINTS and not isinstance(value, _LivePrints):
            value = _LivePrints(self._on_print)
        elif name == OPERATIONS:
            value = _CheckedCount(value, self._check_stop)
        super().__setitem__(name, value)


class _LivePrints(PrintContainer):  # type: ignore[misc]
    """Collects in a list: smolagents' own container copies all that was printed at every print."""

    def __init__(self, on_print: Callable[[str], None]) -> None:
        self._parts: list[str] = []
        self._on_print = on_print

    @property
    def value(self) -> str:
        return "".join(self._parts)

    @value.setter
    def value(self, text: str) -> None:
        self._parts = [text]

    def __iadd__(self, text: Any) -> "_LivePrints":
        self._on_print(str(text))
        self._parts.append(str(text))
        return self


class _CheckedCount(dict[str, int]):
    """The operations counter, written at every operation: the place to notice a stop."""

    def __init__(self, count: dict[str, int], check_stop: Callable[[], None]) -> None:
        super().__init__(count)
        self._check_stop = check_stop

    def __setitem__(self, name: str, value: int) -> None:
        self._check_stop()
        super().__setitem__(name, value)
