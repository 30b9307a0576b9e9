"""What a reply on the screen costs: `python -m bench.terminal_view` prints CPU per delta, and the longest tick.

In: replies of 1,000 and 10,000 deltas, as fast as they can be fed, a tick for every fifty. Out: a ratio near 1 where the cost
of a delta does not grow with what was drawn before it.
"""

import io
import time

from rich.console import Console

from server.terminal_view import LiveView

PER_TICK = 50


def delta(number: int) -> str:
    """Lines of code, a fence now and then."""
    if number % 800 == 0:
        return "\n```python\n"
    return f"total = total + {number} " if number % 8 else "\n"


def measure(deltas: int) -> tuple[float, float]:
    """Microseconds of CPU per delta, and milliseconds of the longest tick."""
    console = Console(file=io.StringIO(), force_terminal=True, width=100, highlight=False)
    longest = 0.0
    began = time.process_time()
    with LiveView(console, reasoning=True) as view:
        for number in range(deltas):
            view.reasoning(delta(number))
            if number % PER_TICK == 0:
                before = time.process_time()
                view.tick()
                longest = max(longest, time.process_time() - before)
    return (time.process_time() - began) / deltas * 1e6, longest * 1e3


def main() -> None:
    measure(200)  # lexers and styles are loaded once
    few, many = measure(1000), measure(10_000)
    for name, (per_delta, longest) in (("1,000", few), ("10,000", many)):
        print(f"{name:>7} deltas: {per_delta:6.1f} µs each, the longest tick {longest:5.1f} ms")
    print(f"a delta among 10,000 costs {many[0] / few[0]:.2f} times one among 1,000")


if __name__ == "__main__":
    main()
