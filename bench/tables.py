"""What benchmarks find, as tables: for a terminal, for docs/performance.md, and bars for its picture.

In: tables. Out: text, Markdown or JSON. A section of `make bench` is a module that makes some and calls `show`.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Bar:
    """One ratio of the picture; 1 is the base, `goal` the most it should be."""

    name: str
    ratio: float
    goal: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows of ready cells under their heads; the first column is text, the others are numbers. Without heads
    it is the note alone, in Markdown.
    """

    title: str
    note: str
    heads: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    bars: tuple[Bar, ...] = ()

    def text(self) -> str:
        if not self.heads:
            return f"\n{self.title}\n{self.note}"
        lines = (self.heads, *self.rows)
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.heads))]
        shown = [
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        return "\n".join((f"\n{self.title}", *shown))

    def markdown(self) -> str:
        if not self.heads:
            return f"## {self.title}\n\n{self.note}\n"
        lines = (self.heads, ("---", *["---:"] * (len(self.heads) - 1)), *self.rows)
        shown = ["| " + " | ".join(line) + " |" for line in lines]
        return "\n".join((f"## {self.title}", "", self.note, "", *shown, ""))


def show(tables: Iterable[Table]) -> int:
    """Print them as they come; `--json PATH` on the command line keeps them, too. Returns the exit code."""
    shown = []
    for table in tables:
        print(table.text(), flush=True)
        shown.append(asdict(table))
    if sys.argv[1:2] == ["--json"]:
        Path(sys.argv[2]).write_text(json.dumps(shown))
    return 0


def kept(path: Path) -> list[Table]:
    """The tables that a section kept."""
    return [_table(**found) for found in json.loads(path.read_text())]


def _table(
    rows: list[list[str]], heads: list[str], bars: list[dict[str, Any]], **text: str
) -> Table:
    return Table(
        heads=tuple(heads),
        rows=tuple(map(tuple, rows)),
        bars=tuple(Bar(**bar) for bar in bars),
        **text,
    )


def goal(found: float, most: float, unit: str = "") -> str:
    """A goal, and whether it is met."""
    return f"≤ {most:g}{unit} {'met' if found <= most else 'MISSED'}"
