"""Traces, as OpenTelemetry's own exporter for tests sees them."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.testclient import TestClient

from hpsearch.coordinator import Coordinator
from hpsearch.testing import MemoryStore
from hpsearch_api.app import create_app
from hpsearch_api.telemetry.tracing import OtelTracer, Tracer, tracer_from_environment


def test_each_request_is_a_span_named_by_its_route(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    store = MemoryStore()
    app = create_app(Coordinator(store), tracer=OtelTracer(provider))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"  # of W3C's Trace Context, 3.2
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        client.get("/api/v1/studies/nothing", headers={"traceparent": parent})
        monkeypatch.setattr(store, "studies", lambda **_: 1 / 0)
        client.get("/api/v1/studies")
    missing, broken = exporter.get_finished_spans()
    assert (missing.name, missing.kind) == ("GET /api/v1/studies/{name}", SpanKind.SERVER)
    assert missing.attributes is not None
    assert dict(missing.attributes) == {
        "http.request.method": "GET",
        "http.route": "/api/v1/studies/{name}",
        "http.response.status_code": 404,
    }
    assert missing.context is not None
    assert missing.parent is not None
    assert f"{missing.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert f"{missing.parent.span_id:016x}" == "b7ad6b7169203331"
    assert missing.status.status_code is StatusCode.UNSET
    assert broken.status.status_code is StatusCode.ERROR


def test_nothing_is_traced_unless_the_environment_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    assert type(tracer_from_environment()) is Tracer
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    tracer = tracer_from_environment()
    assert type(tracer) is OtelTracer
    tracer.close()
