"""What an event of a relayed stream costs in its stage: as it is, scrubbed, and translated to the Responses API.

`python -m bench.translation`; the stage alone, without sockets, which cost the same in all of them. Events come one
a read (alone), or all in one (burst). Ends with 1 where a translated event costs more than its goal.
"""

import sys
import timeit
from collections.abc import Callable
from time import process_time

from bench.relay_work import STREAMS
from server.begun_response import begun_response
from server.response_schema import ResponseRequest
from streaming.chat_response import ChatResponse
from streaming.event_stages import DirectEvents, VerbatimEvents
from streaming.relay import ScrubOptions
from streaming.response_events import ResponseEvents
from streaming.scrubbed_events import ScrubbedEvents
from streaming.translated_events import TranslatedEvents

# Of the 25 to 30 that an event alone costs the relay, most of it the kernel's for reading and writing it.
GOAL_MICROSECONDS = 12.0
ROUNDS, REPEATS = 10, 7
SCRUB = ScrubOptions("reasoning", ("think", "thank"), starts_open=False)
BEGUN = begun_response(ResponseRequest(store=False), id_="resp_5eed", created=1, model="m")


def translated(scrub: ScrubOptions | None) -> TranslatedEvents:
    events = ResponseEvents(BEGUN, now=lambda: 2.0)
    return TranslatedEvents(ChatResponse(events, scrub), is_event_stream=True)


STAGES: dict[str, Callable[[], DirectEvents]] = {
    "as it is": lambda: DirectEvents(VerbatimEvents(1)),
    "scrubbed": lambda: DirectEvents(ScrubbedEvents(SCRUB.for_stream(), 1)),
    "translated": lambda: DirectEvents(translated(None)),
    "translated, scrubbed": lambda: DirectEvents(translated(SCRUB)),
}


def microseconds(make: Callable[[], DirectEvents], pieces: tuple[bytes, ...], events: int) -> float:
    """Per event."""

    def carry() -> None:
        stage = make()
        for piece in pieces:
            stage.feed(piece)
        stage.flush()

    seconds = min(timeit.repeat(carry, timer=process_time, number=ROUNDS, repeat=REPEATS))
    return seconds / ROUNDS / events * 1e6


def main() -> int:
    """Print a row for each; returns the exit code."""
    missed = 0
    for name, stream in STREAMS.items():
        for pace in ("alone", "burst"):
            pieces = stream.frames if pace == "alone" else (b"".join(stream.frames),)
            costs = {
                stage: microseconds(make, pieces, len(stream.events))
                for stage, make in STAGES.items()
            }
            for stage, cost in costs.items():
                missed += cost > GOAL_MICROSECONDS
                ratio = cost / costs["scrubbed"]
                told = f"{name}, {pace}, {stage}"
                print(f"{told:40} {cost:6.2f} µs an event   {ratio:5.2f} times scrubbed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
