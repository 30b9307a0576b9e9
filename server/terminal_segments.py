"""The last station before the terminal: what rich has laid out, cleaned segment by segment."""

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment

from server.terminal_rows import printable


class Stripped:
    """A renderable whose text nothing but the console's own styles can colour or move."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._content, options):
            if segment.control is None:
                yield Segment(printable(segment.text), segment.style)


class Trimmed:
    """A block without the blank lines around it and the blanks behind its lines."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._content, options, pad=False)
        texts = ["".join(segment.text for segment in line).strip() for line in lines]
        shown = [at for at, text in enumerate(texts) if text]
        for line in lines[shown[0] : shown[-1] + 1] if shown else ():
            while line and not line[-1].text.strip():
                line.pop()
            yield from line[:-1]
            if line:
                yield Segment(line[-1].text.rstrip(), line[-1].style)
            yield Segment.line()
