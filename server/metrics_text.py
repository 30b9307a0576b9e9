"""Metrics of several processes, which are there as Prometheus' text.

In: what each of them counted. Out: the same for all together.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

# Of all workers together already: the sum would be wrong.
SHARED = frozenset({"smolgate_runs_most"}) | {
    f"smolgate_runner_{name}"
    for name in ("cluster_usable", "nodes", "cpus", "cpus_free", "gpus", "gpus_free")
}
LASTING_TYPES = ("counter", "histogram")


def merged(texts: Iterable[bytes]) -> bytes:
    """The texts of several workers as one: every sample is the sum of theirs, but for `SHARED`."""
    return _sum(texts, lambda family: True)


def counts_of(texts: Iterable[bytes]) -> bytes:
    """The same, of processes that have ended: what they counted lasts, what was so at the time does not."""
    return _sum(texts, lambda family: family.type in LASTING_TYPES)


def _sum(texts: Iterable[bytes], is_wanted: Callable[[Metric], bool]) -> bytes:
    families: dict[str, Metric] = {}
    sums: defaultdict[str, Counter[tuple[str, tuple[tuple[str, str], ...]]]] = defaultdict(Counter)
    for text in texts:
        for family in filter(is_wanted, text_string_to_metric_families(text.decode())):
            if family.name in SHARED and family.name in families:
                continue
            families.setdefault(family.name, family)
            for sample in family.samples:
                sums[family.name][sample.name, tuple(sample.labels.items())] += sample.value  # type: ignore[assignment]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Sums(families, sums))
    return generate_latest(registry)


class _Sums(Collector):
    def __init__(
        self,
        families: Mapping[str, Metric],
        sums: Mapping[str, Mapping[tuple[str, tuple[tuple[str, str], ...]], float]],
    ) -> None:
        self._families = families
        self._sums = sums

    def collect(self) -> Iterator[Metric]:
        for name, family in self._families.items():
            metric = Metric(name, family.documentation, family.type)
            for (sample, labels), value in self._sums[name].items():
                metric.add_sample(sample, dict(labels), value)
            yield metric
