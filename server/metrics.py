"""`GET /metrics`: what this server does, for Prometheus.

In: the plain counters of the application's parts, read when somebody scrapes. Out: Prometheus' text. Nothing
here runs between scrapes. With many workers it is what all of them do, whichever is asked.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from server.auth import allow_metrics
from server.keys import (
    JAIL_POOL,
    LOOP_LAG,
    RELAYS,
    REQUEST_COUNTS,
    RUNNER,
    SUPERVISOR,
    UPSTREAMS,
    WORKER_LINK,
)
from server.metrics_text import merged
from server.worker_wire import Inquiry
from streaming.histogram import Histogram
from streaming.interpreters.jail_pool import WHY_LOST

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
RUN_STATES = ("queued", "running", "paused", "stopping")
UPSTREAM_STATES = ("ok", "half-open", "open")


async def metrics(request: web.Request) -> web.Response:
    """The handler. Raises Forbidden for keys that may not."""
    allow_metrics(request)
    body = rendered(request.app)
    if (link := request.app.get(WORKER_LINK)) is not None:
        body = merged([body, *await link.found_elsewhere(Inquiry(0, "metrics"))])
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


def rendered(app: web.Application) -> bytes:
    """All metrics of this process, as text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(AppCollector(app))
    return generate_latest(registry)


class AppCollector(Collector):
    """Reads one application's counters."""

    def __init__(self, app: web.Application) -> None:
        self._app = app

    def collect(self) -> Iterator[Metric]:
        yield from self._requests()
        yield from self._runs()
        yield from self._work()
        yield from self._machinery()

    def _requests(self) -> Iterator[Metric]:
        counts = self._app[REQUEST_COUNTS]
        requests = CounterMetricFamily(
            "smolgate_requests", "Requests that ended.", labels=("route", "status", "outcome")
        )
        for (route, status, outcome), count in counts.requests.items():
            requests.add_metric((route, str(status), outcome), count)
        yield requests
        yield _histograms(
            "smolgate_request_seconds", "From a request to its end.", "route", counts.seconds
        )
        yield _histogram(
            "smolgate_relay_first_byte_seconds",
            "From a relayed request to the head of the upstream's reply.",
            counts.first_byte_seconds,
        )

        relays = len(self._app[RELAYS])
        yield _gauge("smolgate_relays", "Relayed requests under way.", relays)

    def _runs(self) -> Iterator[Metric]:
        supervisor = self._app[SUPERVISOR]
        counts = supervisor.counts
        states: Counter[str] = Counter(run.state for run in supervisor.runs.values())
        yield _gauges(
            "smolgate_runs",
            "Runs by state.",
            "state",
            {state: states[state] for state in RUN_STATES},
        )
        yield _gauge("smolgate_runs_stuck", "Runs that do not stop.", supervisor.stuck)
        yield _gauge(
            "smolgate_runs_most", "Runs at one time, at most.", supervisor.limits.max_running
        )
        ended = CounterMetricFamily(
            "smolgate_runs_ended", "Runs that ended.", labels=("agent", "outcome")
        )
        for (agent, outcome), count in counts.ended.items():
            ended.add_metric((agent, outcome), count)
        yield ended
        yield _counters(
            "smolgate_runs_stopped", "Runs that were stopped, by why.", "reason", counts.stopped
        )
        yield _counters(
            "smolgate_runs_refused",
            "Runs that were not admitted, by why.",
            "reason",
            counts.refused,
        )
        yield _histogram("smolgate_run_seconds", "A run's time in its slot.", counts.run_seconds)
        yield _histogram("smolgate_queue_seconds", "A run's wait for a slot.", counts.queue_seconds)

    def _work(self) -> Iterator[Metric]:
        counts = self._app[SUPERVISOR].counts
        yield _histogram(
            "smolgate_first_token_seconds",
            "From a run's request to the first token of its model.",
            counts.first_token_seconds,
        )
        yield _histogram("smolgate_step_seconds", "Agents' steps.", counts.step_seconds)
        yield _histogram(
            "smolgate_model_call_seconds", "Agents' model calls.", counts.model_call_seconds
        )
        yield _histograms("smolgate_tool_seconds", "Calls of tools.", "tool", counts.tool_seconds)
        yield _counters(
            "smolgate_tool_failures", "Calls of tools that raised.", "tool", counts.tool_failures
        )
        relayed = {"relayed": self._app[REQUEST_COUNTS].relayed_tokens}
        yield _counters(
            "smolgate_tokens",
            "Tokens of agents' model calls; relayed: of keys with a daily limit.",
            "kind",
            dict.fromkeys(("prompt", "completion", "reasoning"), 0) | counts.tokens | relayed,
        )

    def _machinery(self) -> Iterator[Metric]:
        upstreams = GaugeMetricFamily(
            "smolgate_upstream_state",
            "1 for the state that an upstream's circuit is in.",
            labels=("upstream", "state"),
        )
        for name, now in self._app[UPSTREAMS].states().items():
            for state in UPSTREAM_STATES:
                upstreams.add_metric((name, state), state == now)
        yield upstreams
        exchanges = CounterMetricFamily(
            "smolgate_upstream_exchanges",
            "Exchanges with an upstream, by whether it answered as one that is well.",
            labels=("upstream", "result"),
        )
        for name, (succeeded, failed) in self._app[UPSTREAMS].exchanges().items():
            exchanges.add_metric((name, "ok"), succeeded)
            exchanges.add_metric((name, "failed"), failed)
        yield exchanges
        if (pool := self._app.get(JAIL_POOL)) is not None:
            stats = pool.stats
            yield _gauges(
                "smolgate_jails", "Jails.", "state", {"alive": stats.alive, "warm": stats.warm}
            )
            yield _counters(
                "smolgate_jail_kills",
                "Jails that ended under running code: time, end (its own), breach, calls.",
                "reason",
                dict.fromkeys(WHY_LOST, 0) | dict(stats.lost),
            )
            yield CounterMetricFamily(
                "smolgate_jails_started", "Jails that were started.", value=stats.spawned
            )
        for name, value in self._app[RUNNER].numbers.items():
            told = name.replace("_", " ")
            yield _gauge(f"smolgate_runner_{name}", f"Where runs live: {told}.", value)
        yield _histogram(
            "smolgate_loop_lag_seconds",
            "How late the event loop calls a timer.",
            self._app[LOOP_LAG].seconds,
        )


def _histogram(name: str, told: str, values: Histogram) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, told, buckets=values.buckets(), sum_value=values.total)


def _histograms(
    name: str, told: str, label: str, values: Mapping[str, Histogram]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, told, labels=(label,))
    for value, histogram in list(values.items()):
        family.add_metric((value,), histogram.buckets(), histogram.total)
    return family


def _counters(name: str, told: str, label: str, values: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, told, labels=(label,))
    for value, count in list(values.items()):
        family.add_metric((value,), count)
    return family


def _gauge(name: str, told: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, told, value=value)


def _gauges(name: str, told: str, label: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, told, labels=(label,))
    for value, count in values.items():
        family.add_metric((value,), count)
    return family
