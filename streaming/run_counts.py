"""What all runs of a server have done, counted as it happens.

In: events, from whatever thread sends them, and what the supervisor decides. Out: plain numbers, for
`/metrics` to read.
"""

import threading
from collections import Counter, defaultdict

from streaming.events import Event, ModelCalled, Step, ToolRan
from streaming.histogram import Histogram


class RunCounts:
    """One per server. `ended` is by agent and outcome; `stopped` and `refused` by the error's code."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.ended: Counter[tuple[str, str]] = Counter()
        self.stopped: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.queue_seconds = Histogram()
        self.run_seconds = Histogram()
        self.first_token_seconds = Histogram()
        self.model_call_seconds = Histogram()
        self.step_seconds = Histogram()
        self.tool_seconds: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.tool_failures: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()  # prompt, completion, and of these reasoning

    def first_token(self, seconds: float) -> None:
        """A run's model has begun to write, so long after the run came."""
        with self._lock:
            self.first_token_seconds.observe(seconds)

    def note(self, event: Event) -> None:
        """One event of any run, once."""
        with self._lock:
            match event:
                case Step(seconds=seconds):
                    self.step_seconds.observe(seconds)
                case ModelCalled(failed=False):
                    self.model_call_seconds.observe(event.seconds)
                    self.tokens["prompt"] += event.prompt_tokens
                    self.tokens["completion"] += event.completion_tokens
                    self.tokens["reasoning"] += event.reasoning_tokens
                case ToolRan(name=name, seconds=seconds, failed=failed):
                    self.tool_seconds[name].observe(seconds)
                    self.tool_failures[name] += failed
