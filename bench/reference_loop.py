"""A loop of what this project does most: dictionaries, bytes, calls, JSON. What else is measured stands in its turns,
so that another interpreter or a slower machine moves both.
"""

import json
import time


def loop(turns: int) -> None:
    seen: dict[str, int] = {}
    for number in range(turns):
        text = json.dumps({"content": f"word {number}"})
        seen[text] = len(text.encode()) + text.find("9")
    assert len(seen) == turns


def micros_of_a_turn(turns: int = 2000) -> float:
    """CPU of this thread."""
    began = time.thread_time()
    loop(turns)
    return (time.thread_time() - began) / turns * 1e6
