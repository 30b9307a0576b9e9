"""OpenTelemetry traces of requests, runs, steps, tools, model calls and what goes upstream.

In: `OTEL_EXPORTER_OTLP_ENDPOINT` and the extra `otel`. Out: spans, sent by OTLP over HTTP from a thread of the
SDK's. The spans are those of aiohttp's and smolagents' own instrumentations; of what they hold only what is
listed in `span_content.py` leaves this process, unless `TRACE_CONTENT` is 1.
"""

import contextvars
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from server import __version__
from server.setting_values import BadSetting
from server.settings import Settings
from streaming.loop_model import LoopModel

TRACES_PATH = "/v1/traces"


@contextmanager
def tracing(settings: Settings) -> Iterator[None]:
    """Trace the applications that are made while inside, if the settings ask for it.

    What is left to be sent is sent at the end. Raises BadSetting where the extra is not installed.
    """
    if settings.otlp_endpoint is None:
        yield
        return
    try:
        from openinference.instrumentation import TraceConfig
        from openinference.instrumentation.smolagents import SmolagentsInstrumentor
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
        from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise BadSetting(
            f"OTEL_EXPORTER_OTLP_ENDPOINT is set, but {error.name} is not installed; "
            "allowed is an installation with the extra 'otel' (pip install 'smolgate[otel]')"
        ) from None
    from server.span_content import SafeExporter

    resource = Resource.create({"service.name": "smolgate", "service.version": __version__})
    provider = TracerProvider(resource=resource)
    exporter = OTLPSpanExporter(endpoint=_traces_url(settings.otlp_endpoint))
    safe = SafeExporter(exporter, with_content=settings.trace_content)
    provider.add_span_processor(BatchSpanProcessor(safe))
    hidden = not settings.trace_content
    config = TraceConfig(hide_inputs=hidden, hide_outputs=hidden)
    instrumentors = (
        SmolagentsInstrumentor(),
        AioHttpClientInstrumentor(),
        AioHttpServerInstrumentor(),
    )
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=provider, config=config)
    untrace = _trace_loop_model(
        provider.get_tracer("smolgate"), with_content=settings.trace_content
    )
    try:
        yield
    finally:
        untrace()
        for instrumentor in instrumentors:
            instrumentor.uninstrument()
        provider.shutdown()


def _traces_url(endpoint: str) -> str:
    return endpoint if endpoint.endswith(TRACES_PATH) else endpoint + TRACES_PATH


def _trace_loop_model(tracer: Any, *, with_content: bool) -> Callable[[], None]:
    """smolagents' instrumentation knows smolagents' own models; ours is traced here.

    Returns what undoes it.
    """
    from openinference.semconv.trace import OpenInferenceSpanKindValues, SpanAttributes
    from opentelemetry import context as otel_context

    generate, call_context = LoopModel.generate, LoopModel.call_context

    def traced(self: LoopModel, messages: list[Any], *args: Any, **kwargs: Any) -> Any:
        attributes = {
            SpanAttributes.OPENINFERENCE_SPAN_KIND: OpenInferenceSpanKindValues.LLM.value,
            SpanAttributes.LLM_MODEL_NAME: str(self.model_id),
        }
        if with_content:
            attributes[SpanAttributes.INPUT_VALUE] = str(messages)
        with tracer.start_as_current_span("LoopModel.generate", attributes=attributes) as span:
            message = generate(self, messages, *args, **kwargs)
            if (usage := message.token_usage) is not None:
                span.set_attribute(SpanAttributes.LLM_TOKEN_COUNT_PROMPT, usage.input_tokens)
                span.set_attribute(SpanAttributes.LLM_TOKEN_COUNT_COMPLETION, usage.output_tokens)
            if with_content:
                span.set_attribute(SpanAttributes.OUTPUT_VALUE, str(message.content))
            return message

    def traced_context(self: LoopModel) -> contextvars.Context:
        """The call's context knows its span, and still nothing else of the run."""
        context = call_context(self)
        context.run(otel_context.attach, otel_context.get_current())
        return context

    LoopModel.generate = traced  # type: ignore[method-assign]
    LoopModel.call_context = traced_context  # type: ignore[method-assign]

    def untrace() -> None:
        LoopModel.generate = generate  # type: ignore[method-assign]
        LoopModel.call_context = call_context  # type: ignore[method-assign]

    return untrace
