"""What of a span may leave this process.

In: spans as the instrumentations made them, which put prompts, code, tools' arguments and error texts into
them. Out: the same spans with the attributes listed here and the types of their errors, no more; with
content, all but what holds credentials.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Status

SAFE_NAMES = frozenset(
    {
        *("http.method", "http.request.method", "http.status_code", "http.response.status_code"),
        *("http.route", "http.scheme", "http.flavor", "url.scheme", "error.type"),
        *("network.protocol.version", "server.address", "server.port", "net.peer.name"),
        *("openinference.span.kind", "llm.model_name", "tool.name", "smolagents.max_steps"),
        *("exception.type", "exception.escaped"),
    }
)
SAFE_PREFIXES = ("llm.token_count.",)
CREDENTIALS = ("authorization", "api-key", "api_key", "cookie", "token_secret")

Attributes = Mapping[str, Any]


class SafeExporter(SpanExporter):
    """Hands spans on to another exporter, without what they must not tell."""

    def __init__(self, exporter: SpanExporter, *, with_content: bool) -> None:
        self._exporter = exporter
        self._with_content = with_content

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._exporter.export([self._safe(span) for span in spans])

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def _safe(self, span: ReadableSpan) -> ReadableSpan:
        status = span.status if self._with_content else Status(span.status.status_code)
        return ReadableSpan(
            name=span.name,
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            attributes=self._kept(span.attributes),
            events=[
                Event(event.name, self._kept(event.attributes), event.timestamp)
                for event in span.events
            ],
            links=span.links,
            kind=span.kind,
            status=status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    def _kept(self, attributes: Attributes | None) -> dict[str, Any]:
        return {name: value for name, value in (attributes or {}).items() if self._may_leave(name)}

    def _may_leave(self, name: str) -> bool:
        if any(word in name.lower() for word in CREDENTIALS):
            return False
        return self._with_content or name in SAFE_NAMES or name.startswith(SAFE_PREFIXES)
