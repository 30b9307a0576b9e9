"""Ratios as a picture: bars in, an SVG out, on a scale on which twice as much is as far everywhere."""

import math
from collections.abc import Callable, Sequence
from xml.sax.saxutils import escape

from bench.tables import Bar

WIDTH, NAMES, ROW, TOP = 900, 400, 24, 34
MET, MISSED, OPEN = "#2a7f62", "#b3402f", "#5b7db1"


def picture(bars: Sequence[Bar]) -> str:
    """One bar a ratio, from 1; a line where its goal is."""
    ratios = [bar.ratio for bar in bars] + [bar.goal for bar in bars if bar.goal is not None]
    low = math.floor(math.log2(min([0.5, *ratios])))
    high = math.ceil(math.log2(max([2.0, *ratios]) * 1.2))

    def x(ratio: float) -> float:
        return NAMES + (math.log2(ratio) - low) / (high - low) * (WIDTH - NAMES - 50)

    height = TOP + ROW * len(bars) + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for power in range(low, high + 1):
        at = x(2.0**power)
        stroke = "#555" if power == 0 else "#ddd"
        lines.append(
            f'<line x1="{at:.1f}" y1="{TOP - 8}" x2="{at:.1f}" y2="{height}" stroke="{stroke}"/>'
            f'<text x="{at:.1f}" y="{TOP - 14}" text-anchor="middle">{2.0**power:g}</text>'
        )
    for number, bar in enumerate(bars):
        lines += _row(bar, TOP + ROW * number, x)
    return "\n".join((*lines, "</svg>", ""))


def _row(bar: Bar, y: int, x: Callable[[float], float]) -> list[str]:
    begin, end = sorted((x(1.0), x(bar.ratio)))
    colour = OPEN if bar.goal is None else MET if bar.ratio <= bar.goal else MISSED
    row = [
        f'<text x="{NAMES - 40}" y="{y + 14}" text-anchor="end">{escape(bar.name)}</text>',
        f'<rect x="{begin:.1f}" y="{y + 2}" width="{max(1.0, end - begin):.1f}" height="{ROW - 8}" fill="{colour}"/>',
        f'<text x="{end + 4:.1f}" y="{y + 14}">{bar.ratio:.2f}</text>',
    ]
    if bar.goal is not None and bar.goal != 1:
        at = x(bar.goal)
        row.append(
            f'<line x1="{at:.1f}" y1="{y}" x2="{at:.1f}" y2="{y + ROW - 4}" stroke="black" stroke-width="2"/>'
        )
    return row
