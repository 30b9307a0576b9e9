"""A reply on the screen while it comes: reasoning dimmed, code highlighted, outputs in a panel, the answer as Markdown.

In: pieces of reasoning and answer, and a tick some ten times a second. Out: what is complete is printed once and
scrolls away; below it, redrawn at each tick, stand the line that is being written and the status. So the cost is
linear, however the text was cut. Every segment is stripped once more of what a terminal would obey, since
Markdown can name characters.
"""

import re
import time
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.syntax import Syntax
from rich.text import Text

from server.terminal_client import Usage
from server.terminal_rows import Row, RowReader
from server.terminal_segments import Stripped, Trimmed

TICK_SECONDS = 0.1
# A paragraph of the answer without a blank line is printed at this length.
MAX_BLOCK_CHARACTERS = 8192
MAX_CODE_LINE = 1000  # a longer one is no longer highlighted: lexers are slow on it
PARTIAL_ROWS = 4
CHARACTERS_PER_TOKEN = 4
BLANK = Row("prose", "")

_STEP = re.compile(r"\*\*Step (\d+)\*\* \((.*)\)$")
_ERROR = re.compile(r"\*\*Error:\*\* (.*)$")
_LANGUAGE = re.compile(r"[\w+#.-]{1,30}$")


class _Paragraphs:
    """The answer's rows → blocks of Markdown, and code line by line."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._characters = 0

    def feed(self, row: Row) -> Iterator[RenderableType | Row]:
        if row.kind != "prose":
            yield from self.flush()
            yield row
            if row.kind == "close":
                yield BLANK
            return
        self._lines.append(row.text)
        self._characters += len(row.text)
        if not row.text.strip() or self._characters > MAX_BLOCK_CHARACTERS:
            yield from self.flush()

    def flush(self) -> Iterator[RenderableType | Row]:
        text, self._lines, self._characters = "\n".join(self._lines), [], 0
        if text.strip():
            yield Trimmed(Markdown(text, hyperlinks=False, code_theme="ansi_dark"))
            yield BLANK

    @property
    def waiting(self) -> str:
        return "\n".join(self._lines[-PARTIAL_ROWS:])


class LiveView:
    """One reply; `with` it. `tick` draws, and does nothing where nothing has changed."""

    def __init__(self, console: Console, *, reasoning: bool) -> None:
        self._console = console
        self._shows_reasoning = reasoning
        self._reasoning, self._answer = RowReader(), RowReader()
        self._paragraphs = _Paragraphs()
        self._printed: list[RenderableType | Row] = []
        self._began = time.monotonic()
        self._characters = 0
        self._step = 0
        self._drawn: tuple[int, int] = (-1, -1)
        self._has_answer = False
        self._is_below_blank = True
        self._bar = "│ " if console.encoding.lower().startswith("utf") else "| "
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> "LiveView":
        self._live.start()
        self.tick()
        return self

    def __exit__(self, *_: object) -> None:
        """What is held back is printed, and the status goes."""
        if self._has_answer:
            self._take_answer(self._answer.flush())
            self._printed += self._paragraphs.flush()
        else:
            self._take_reasoning(self._reasoning.flush())
        self._print()
        self._live.update(Text(), refresh=True)
        self._live.stop()

    def reasoning(self, text: str) -> None:
        self._characters += len(text)
        self._take_reasoning(self._reasoning.feed(text))

    def answer(self, text: str) -> None:
        if not self._has_answer:
            self._has_answer = True
            self._take_reasoning(self._reasoning.flush())
            self._printed.append(BLANK)
        self._characters += len(text)
        self._take_answer(self._answer.feed(text))

    def end(self, usage: Usage | None, note: str = "") -> None:
        """A line below the answer: tokens and time. To be called after the `with`."""
        seconds = f"{time.monotonic() - self._began:.1f} s"
        tokens = f"{usage.prompt_tokens} + {usage.completion_tokens} tokens" if usage else ""
        steps = f"{self._step} step{'s' * (self._step != 1)}" if self._step else ""
        told = ", ".join(filter(None, (note, steps, tokens, seconds)))
        self._console.print(Stripped(Text(told, style="dim italic")), Text())

    def tick(self) -> None:
        """Draw what came since the last one."""
        now = (self._characters, int(time.monotonic() - self._began))
        if now == self._drawn:
            return
        self._drawn = now
        self._print()
        shown = filter(None, (self._partial(), self._status()))
        self._live.update(Stripped(Group(*shown)), refresh=True)

    def _take_answer(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._printed += self._paragraphs.feed(row)

    def _take_reasoning(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if found := _STEP.match(row.text) if row.kind == "prose" else None:
                self._step = int(found[1])
            if self._shows_reasoning:
                self._printed.append(row)

    def _print(self) -> None:
        parts, self._printed = self._printed, []
        if parts:
            self._console.print(Stripped(Group(*self._rendered(parts))))

    def _rendered(self, parts: Sequence[RenderableType | Row]) -> Iterator[RenderableType]:
        """Neighbours of one kind together: code is highlighted by the block that has come."""
        for key, group in groupby(
            parts, lambda part: (part.kind, part.language) if isinstance(part, Row) else None
        ):
            together = list(group)
            if key is not None and key[0] == "code":
                self._is_below_blank = False
                yield self._code([row.text for row in together if isinstance(row, Row)], key[1])
                continue
            for part in together:
                shown = self._row(part) if isinstance(part, Row) else part
                if shown is not None:
                    self._is_below_blank &= isinstance(part, Row)
                    yield shown

    def _row(self, row: Row) -> RenderableType | None:
        """None for what needs no row: code's fences, a blank line below a blank one."""
        is_blank = row.kind == "prose" and not row.text.strip()
        is_fence_of_code = row.kind in ("open", "close") and bool(row.language)
        if (is_blank and self._is_below_blank) or is_fence_of_code:
            return None
        self._is_below_blank = is_blank
        if row.kind == "output":
            return Text(self._bar + row.text, style="green")
        if row.kind == "open":
            return self._edge("╭─ output ")
        if row.kind == "close":
            return self._edge("╰")
        if found := _STEP.match(row.text):
            return Text(f"Step {found[1]}, {found[2]}", style="bold cyan")
        if found := _ERROR.match(row.text):
            return Text(f"Error: {found[1]}", style="red")
        return Text(row.text, style="dim")

    def _edge(self, begin: str) -> Text:
        if self._bar[0] == "|":
            return Text("+- output" if "output" in begin else "+", style="green")
        return Text(begin.ljust(min(self._console.width, 40), "─"), style="green")

    def _code(self, lines: Sequence[str], language: str) -> RenderableType:
        source = "\n".join(lines)
        if not _LANGUAGE.match(language) or max(map(len, lines)) > MAX_CODE_LINE:
            return Text(source)
        syntax = Syntax("", language, theme="ansi_dark", background_color="default")
        text = syntax.highlight(source)
        text.rstrip()
        return text if text.plain.count("\n") == source.count("\n") else Text(source)

    def _partial(self) -> Text:
        """The line that is being written, its last rows."""
        if self._has_answer:
            shown = f"{self._paragraphs.waiting}\n{self._answer.partial.text}".lstrip("\n")
            style = ""
        else:
            row = self._reasoning.partial
            shown = row.text if self._shows_reasoning else ""
            style = "dim" if row.kind == "prose" else "green" if row.kind == "output" else ""
        room = self._console.width * PARTIAL_ROWS
        lines = Text(shown[-room:], style=style).wrap(self._console, self._console.width)
        return Text("\n").join(lines[-PARTIAL_ROWS:])

    def _status(self) -> Text:
        seconds = int(time.monotonic() - self._began)
        working = f"step {self._step + 1}" if self._step else "working"
        doing = "answering" if self._has_answer else working
        tokens = self._characters // CHARACTERS_PER_TOKEN
        told = f"{doing}, {seconds} s, about {tokens} tokens (Ctrl-C stops)"
        return Text(
            told,
            style="reverse" if self._console.no_color else "cyan",
            no_wrap=True,
            overflow="crop",
        )
