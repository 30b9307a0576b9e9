"""A reply as plain text, for pipes and dumb terminals: the answer to stdout, reasoning to stderr, no colours."""

import contextlib
import sys
from typing import TextIO

from server.terminal_client import ChatProblem, Usage


class PlainView:
    """One reply; `with` it. Raises BrokenPipeError once nobody reads the answer."""

    def __init__(
        self, *, reasoning: bool, out: TextIO = sys.stdout, err: TextIO = sys.stderr
    ) -> None:
        self._out = out
        self._err = err if reasoning else None
        self._last = {"reasoning": "\n", "answer": "\n"}

    def __enter__(self) -> "PlainView":
        return self

    def __exit__(self, *_: object) -> None:
        """Every text ends with its line."""
        self._end_reasoning()
        if self._last["answer"] != "\n":
            self._write(self._out, "\n")

    def reasoning(self, text: str) -> None:
        if self._err is not None and text:
            self._last["reasoning"] = text[-1]
            with contextlib.suppress(BrokenPipeError):
                self._write(self._err, text)

    def answer(self, text: str) -> None:
        if text:
            self._end_reasoning()
            self._last["answer"] = text[-1]
            self._write(self._out, text)

    def tick(self) -> None:
        pass

    def end(self, usage: Usage | None, note: str = "") -> None:
        if note:
            self._write(sys.stderr, f"smolgate: {note}\n")

    def _end_reasoning(self) -> None:
        if self._last["reasoning"] != "\n":
            self.reasoning("\n")

    def _write(self, stream: TextIO, text: str) -> None:
        stream.write(text)
        stream.flush()


def say_plainly(problem: ChatProblem) -> None:
    print(f"smolgate: {problem.message}", file=sys.stderr)
    if problem.advice:
        print(f"  {problem.advice}", file=sys.stderr)
