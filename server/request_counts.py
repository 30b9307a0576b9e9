"""What requests came to, in plain numbers: bumped inline, read by whoever scrapes.

In: a request's end. Out: counts by route, status and outcome, and how long requests took. About one
microsecond a request, and nothing per event.
"""

from collections import defaultdict

from streaming.histogram import Histogram

OTHER = "other"
# Labels must be few, whatever callers ask for: ids in paths are not among them.
_SEGMENTS = frozenset(
    {"runs", "models", "files", "batches", "images", "audio", "metrics", "healthz", "readyz"}
)
_WHOLE = frozenset(
    {
        *("/chat/completions", "/completions", "/embeddings", "/moderations", "/responses"),
        *("/rerank", "/runs/events"),
    }
)


class RequestCounts:
    """One per server. `first_byte_seconds`: to the head of an upstream's relayed reply."""

    def __init__(self) -> None:
        self.requests: defaultdict[tuple[str, int, str], int] = defaultdict(int)
        self.seconds: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.first_byte_seconds = Histogram()
        self.relayed_tokens = 0  # of keys whose tokens are counted
        self._labels = {prefix + path: path for prefix in ("", "/v1") for path in _WHOLE}

    def note(self, path: str, status: int, outcome: str, seconds: float) -> None:
        """One request has ended."""
        route = self._labels.get(path) or _label(path)
        self.requests[route, status, outcome] += 1
        self.seconds[route].observe(seconds)


def _label(path: str) -> str:
    segment = path.removeprefix("/v1").lstrip("/").partition("/")[0]
    return f"/{segment}" if segment in _SEGMENTS else OTHER
