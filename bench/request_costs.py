"""What keys, counters and log lines cost a request, in microseconds and as parts of a relayed one.

`python -m bench.request_costs`; ends with 1 where one is over its goal.
"""

import sys
import timeit
from collections.abc import Callable

from server.access_line import RequestEnd, access_json, access_text, plain
from server.api_keys import digest_of
from server.key_ring import ApiKey, KeyRing
from server.outcomes import outcome_of
from server.request_counts import RequestCounts

# About what a relayed answer of 2 KB costs in all.
RELAYED_MICROSECONDS = 100.0
GOALS = {"key": 2.0, "counters": 3.0, "line": 10.0}
ROUNDS, REPEATS = 20_000, 7


def microseconds(work: Callable[[], object]) -> float:
    return min(timeit.repeat(work, number=ROUNDS, repeat=REPEATS)) / ROUNDS * 1e6


def main() -> int:
    """Print a row for each; returns the exit code."""
    key = "sg-" + "k" * 43
    others = [ApiKey(str(number), digest_of(str(number))) for number in range(1000)]
    mine = ApiKey("mine", digest_of(key), requests_per_minute=10**9, models=("qwen3*",))
    ring = KeyRing(lambda: [*others, mine])
    counts = RequestCounts()
    header = f"Bearer {key}"

    def check() -> None:
        holder = ring.holder_of(header)
        holder.count_request()
        holder.check_model("qwen3-32b")
        holder.check_tokens()

    def count() -> None:
        counts.first_byte_seconds.observe(0.2)
        counts.note("/v1/chat/completions", 200, outcome_of(200, None), 0.3)

    ids = ("req-" + "a" * 24, "chatcmpl-" + "b" * 28, "mine")

    def ended() -> RequestEnd:
        return RequestEnd("POST", plain("/v1/chat/completions"), 200, 0.3, "ok", *ids)

    costs = {
        "key": ("a key, one of 1000, with limits", microseconds(check)),
        "counters": ("counters", microseconds(count)),
        "line": ("the line, text", microseconds(lambda: access_text(ended()))),
        "line json": ("the line, JSON", microseconds(lambda: access_json(ended()))),
    }
    missed = 0
    for name, (told, cost) in costs.items():
        goal = GOALS[name.split()[0]]
        missed += cost > goal
        part = cost / RELAYED_MICROSECONDS
        print(f"{told:34} {cost:6.2f} µs   {part:6.1%} of a relayed request   goal {goal:g}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
