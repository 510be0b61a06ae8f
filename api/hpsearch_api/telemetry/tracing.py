"""Traces by OpenTelemetry, where the extra ``otel`` is installed and the environment says where they go.

The SDK reads its standard variables: ``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_SERVICE_NAME``, ``OTEL_TRACES_SAMPLER`` …
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

from starlette.types import Scope

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Span(Protocol):
    """One request, while it is answered."""

    def ended(self, status: int) -> None:
        """It was answered."""
        ...


class Tracer:
    """Traces nothing."""

    def span(
        self,
        scope: Scope,  # noqa: ARG002 - nothing is traced
        method: str,  # noqa: ARG002
        route: str,  # noqa: ARG002
    ) -> AbstractContextManager[Span]:
        """Around one request."""
        return _UNTRACED

    def close(self) -> None:
        """Send what is left."""


class _Untraced:
    def ended(self, status: int) -> None:
        pass


_UNTRACED = nullcontext(_Untraced())


class OtelTracer(Tracer):
    """One span per request, a child of the client's if that sent a ``traceparent``."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("hpsearch")

    @contextmanager
    def span(self, scope: Scope, method: str, route: str) -> Iterator[Span]:
        """See Tracer."""
        from opentelemetry.propagate import extract  # of an extra
        from opentelemetry.trace import SpanKind

        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        attributes = {"http.request.method": method, "http.route": route}
        context = extract(carrier)
        name = f"{method} {route}"
        with self._tracer.start_as_current_span(name, context, SpanKind.SERVER, attributes) as span:
            yield _Traced(span)

    def close(self) -> None:
        """See Tracer."""
        self._provider.shutdown()


class _Traced:
    def __init__(self, span: OtelSpan) -> None:
        self._span = span

    def ended(self, status: int) -> None:
        from opentelemetry.trace import StatusCode  # of an extra

        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)


def tracer_from_environment() -> Tracer:
    """A tracer that exports by OTLP over HTTP if the environment names an endpoint, else one that does nothing."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return Tracer()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # of an extra
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        log.warning("no traces: %s is not installed: pip install 'hpsearch[otel]'", error.name)
        return Tracer()
    service = os.environ.get("OTEL_SERVICE_NAME", "hpsearch")
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OtelTracer(provider)
