"""A run's events → what a reader is told, sorted: thoughts, code and what it printed, tools and what they gave.

In: events, one by one. Out: acts, as soon as they are certain, cleaned as `transcript.py` cleans them. Code is told
without its fences, and once: a step does not repeat what was streamed. `Transcript` has the rest: the answer,
the client's calls, the failure, the counts.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from sanitize.code_fences import CodeFencer
from sanitize.line_noise import LineDenoiser
from sanitize.reasoning_lines import clean_lines
from sanitize.think import ThinkScrubber, scrub
from streaming.events import (
    Event,
    Failure,
    Final,
    ModelCalled,
    ModelDelta,
    Note,
    Paused,
    Plan,
    Print,
    Started,
    Stdout,
    Step,
    ToolCall,
    ToolGave,
)

ANSWER_TOOL = "final_answer"
_OPENING = re.compile(r"[ \t]{0,3}(`{3,}|~{3,})[ \t]*([\w+-]*)")
_CODE_WORDS = frozenset({"python", "py"})


@dataclass(frozen=True)
class Thought:
    text: str


@dataclass(frozen=True)
class Code:
    """A piece of code that is being written."""

    text: str


@dataclass(frozen=True)
class CodeRuns:
    """The code is whole, and runs."""


@dataclass(frozen=True)
class Logs:
    """What running code printed, or gave."""

    text: str


@dataclass(frozen=True)
class CodeEnds:
    failed: bool = False


@dataclass(frozen=True)
class ToolBegins:
    """The agent calls a tool by name; `server` is the MCP server's name, empty for a tool of its own."""

    id: str
    name: str
    arguments: str
    server: str


@dataclass(frozen=True)
class ToolEnds:
    id: str
    output: str
    failed: bool = False


Act = Thought | Code | CodeRuns | Logs | CodeEnds | ToolBegins | ToolEnds


class ItemSorter:
    """Feed it a run's events. `client_tools` are told elsewhere. A later leg of a run goes on within a step."""

    def __init__(
        self,
        *,
        tag_names: tuple[str, ...] = ("think", "thank"),
        code_tags: tuple[str, str] | None = None,
        client_tools: Collection[str] = (),
        is_later_leg: bool = False,
    ) -> None:
        self._tag_names = tag_names
        self._code_tags = code_tags
        self._client_tools = frozenset(client_tools)
        self._written: _Written | None = None
        self._printed: _Printed | None = None
        self._wrote = is_later_leg  # the model has written since the last step,
        self._wrote_code = is_later_leg  # code among it
        self._unrun = False  # code was told that does not run yet
        self._running = 0  # code that runs; managed agents' within their manager's
        self._open_tools: list[str] = []

    def feed(self, event: Event) -> list[Act]:
        return list(self._acts(event))

    def _acts(self, event: Event) -> Iterator[Act]:
        match event:
            case ModelDelta(text=text, thinking=thinking):
                yield from self._write(text, thinking=thinking)
            case ModelCalled():
                yield from self._leave_writing()
                if self._unrun:
                    yield self._run()
            case Print(text=text) | Stdout(text=text):
                yield from self._leave_writing()
                yield from self._print(text)
            case Step():
                yield from self._leave()
                yield from self._step(event)
            case Plan(text=text):
                yield from self._leave()
                if not self._wrote:
                    yield from self._thought(text)
                self._wrote = False
            case Note(text=text):
                yield from self._leave()
                yield from self._thought(text)
            case ToolCall(id=id, name=name, arguments=arguments, server=server):
                yield from self._leave()
                if name != ANSWER_TOOL and name not in self._client_tools:
                    self._open_tools.append(id)
                    yield ToolBegins(id, name, arguments, server)
            case ToolGave(id=id, text=text, failed=failed):
                if id in self._open_tools:
                    self._open_tools.remove(id)
                    yield ToolEnds(id, self._clean(text), failed)
            case Started(code_tags=code_tags):
                self._code_tags = code_tags
            case Final() | Paused() | Failure():
                yield from self._leave()
                yield from self._end(failed=isinstance(event, Failure))

    def _write(self, text: str, *, thinking: bool) -> Iterator[Act]:
        if self._running > 1:  # a managed agent goes on: what it ran is over
            yield from self._leave()
            self._running -= 1
            yield CodeEnds()
        yield from self._leave_printing()
        if self._written is not None and self._written.thinking != thinking:
            yield from self._leave_writing()
        if self._written is None:
            self._written = _Written(self._code_tags, self._tag_names, thinking=thinking)
        self._wrote = self._wrote or not thinking
        for act in self._written.feed(text):
            yield self._noted(act)

    def _leave(self) -> Iterator[Act]:
        yield from self._leave_writing()
        yield from self._leave_printing()

    def _leave_writing(self) -> Iterator[Act]:
        written, self._written = self._written, None
        if written is not None:
            for act in written.flush():
                yield self._noted(act)

    def _noted(self, act: Act) -> Act:
        if isinstance(act, Code):
            self._wrote_code = self._unrun = True
        return act

    def _run(self) -> CodeRuns:
        self._unrun = False
        self._running += 1
        return CodeRuns()

    def _print(self, text: str) -> Iterator[Act]:
        if self._printed is None:
            self._printed = _Printed(self._tag_names)
        if shown := self._printed.feed(text):
            yield Logs(shown) if self._running else Thought(shown)

    def _leave_printing(self) -> Iterator[Act]:
        printed, self._printed = self._printed, None
        if printed is not None and (shown := printed.flush()):
            yield Logs(shown) if self._running else Thought(shown)

    def _step(self, step: Step) -> Iterator[Act]:
        if step.code and not self._wrote_code:
            yield Code(scrub(step.code, tag_names=self._tag_names).strip("\n"))
            self._unrun = True
        if step.code and self._unrun:
            yield self._run()
        said = [self._clean(step.observation or "")]
        if step.error:
            said.append(f"Error: {self._clean(step.error)}")
        text = "\n".join(part for part in said if part)
        if text and self._running:
            yield Logs(text + "\n")
        elif step.error or (text and not self._open_tools and step.code):
            yield Thought(text + "\n")
        yield from self._end(failed=step.error is not None)
        self._wrote = self._wrote_code = False

    def _end(self, *, failed: bool) -> Iterator[Act]:
        if self._unrun:  # it never ran
            yield self._run()
        while self._running:
            self._running -= 1
            yield CodeEnds(failed)
        for id in self._open_tools:
            yield ToolEnds(id, "", failed)
        self._open_tools.clear()

    def _thought(self, text: str) -> Iterator[Act]:
        if cleaned := self._clean(text):
            yield Thought(cleaned + "\n")

    def _clean(self, text: str) -> str:
        return clean_lines(text, tag_names=self._tag_names).strip("\n")


class _Written:
    """What the model writes, or thinks: prose apart from the code that will run."""

    def __init__(
        self, code_tags: tuple[str, str] | None, tag_names: tuple[str, ...], *, thinking: bool
    ) -> None:
        self._scrubber = ThinkScrubber("tags", tag_names)
        self._fencer = CodeFencer(code_tags or ("<code>", "</code>"))
        self._prose = LineDenoiser()
        self._code = _Unfenced()
        self._runs_code = code_tags is not None and not thinking
        self.thinking = thinking

    def feed(self, text: str) -> Iterator[Act]:
        yield from self._sorted(self._fencer.feed(self._scrubber.feed(text)))

    def flush(self) -> Iterator[Act]:
        yield from self._sorted(self._fencer.feed(self._scrubber.flush()) + self._fencer.flush())
        if rest := self._prose.flush():
            yield Thought(rest)

    def _sorted(self, pieces: list[tuple[str, bool]]) -> Iterator[Act]:
        for text, is_code in pieces:
            if not is_code:
                if shown := self._prose.feed(text):
                    yield Thought(shown)
            elif not self._runs_code:
                yield Thought(text)
            else:
                yield from self._code.feed(text)


class _Unfenced:
    """Fenced blocks → code without its fences; a fence of anything but Python stays, as a thought.

    Several blocks are one code, a blank line between them, as smolagents runs them.
    """

    def __init__(self) -> None:
        self._line = ""  # of which it is not known yet what it is
        self._marks = ""  # of the open fence
        self._is_python = False
        self._breaks = 0  # line breaks held back: the last one belongs to the fence
        self._any = False

    def feed(self, text: str) -> Iterator[Act]:
        for line in text.splitlines(keepends=True):
            self._line += line
            yield from self._take()

    def _take(self) -> Iterator[Act]:
        line = self._line
        is_whole = line.endswith("\n")
        if not self._marks:
            if is_whole:
                yield from self._open(line)
            return
        bare = line.strip()
        if bare and set(bare) == {self._marks[0]}:
            if not is_whole:
                return  # may be the closing fence
            if len(bare) >= len(self._marks):
                yield from self._close(line)
                return
        elif not bare and not is_whole:
            return
        self._line = ""
        if self._is_python:
            body = line.rstrip("\r\n")
            yield from self._code(body, is_whole=is_whole)
        else:
            yield Thought(line)

    def _open(self, line: str) -> Iterator[Act]:
        self._line = ""
        found = _OPENING.match(line)
        if found is None:
            yield Thought(line)
            return
        self._marks = found[1]
        self._is_python = found[2].lower() in _CODE_WORDS
        if not self._is_python:
            yield Thought(line)
        elif self._any:
            self._breaks = 2

    def _close(self, line: str) -> Iterator[Act]:
        self._line = self._marks = ""
        self._breaks = 0
        if not self._is_python:
            yield Thought(line)

    def _code(self, body: str, *, is_whole: bool) -> Iterator[Act]:
        if body:
            self._any = True
            yield Code("\n" * self._breaks + body)
            self._breaks = 0
        self._breaks += is_whole and self._any


class _Printed:
    """What runs print, cleaned."""

    def __init__(self, tag_names: tuple[str, ...]) -> None:
        self._scrubber = ThinkScrubber("tags", tag_names)
        self._denoiser = LineDenoiser()

    def feed(self, text: str) -> str:
        return self._denoiser.feed(self._scrubber.feed(text))

    def flush(self) -> str:
        return self._denoiser.feed(self._scrubber.flush()) + self._denoiser.flush()
