"""A run sends a trace of each round to a collector."""

from collections import Counter

import pytest
from tests.extent import for_everybody
from tests.server.observability.test_tracing import collector  # noqa: F401

from varangian.server.observability.tracing import ids_of

# tests/server/observability/test_tracing.py makes the same spans from records.
pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]


def spans_of(collector, service):  # noqa: F811
    """What has come from the processes of a service."""
    return [
        span
        for request in collector.found
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
        if any(one.value.string_value == service for one in resource.resource.attributes)
    ]


def test_rounds_with_their_calls_and_phases(started, collector, monkeypatch, tmp_path):  # noqa: F811
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    settings = ("workers=5", "f=1", "aggregator=multi_krum", "rounds=3", "output=runs")
    run = started("run", *settings, *for_everybody(), "server.traces=true", "worker.traces=true")
    _, errors = run.communicate()
    assert run.returncode == 0, errors
    (folder,) = (tmp_path / "runs").iterdir()
    spans, of_workers = spans_of(collector, "varangian-server"), spans_of(collector, "varangian-worker")
    rounds = {int.from_bytes(span.span_id, "big"): span for span in spans if span.name == "round"}
    assert rounds.keys() == {ids_of(folder.name, 0, round)[1] for round in range(3)}
    for id, top in rounds.items():
        below = [span for span in spans if int.from_bytes(span.parent_span_id or b"\0", "big") == id]
        names = Counter(span.name for span in below)
        assert names["push"] == 5
        assert names["pull"] >= 5
        assert {"wait", "gram", "rule", "step"} <= names.keys()
        assert {span.trace_id for span in below} == {top.trace_id}
        made = [span for span in of_workers if int.from_bytes(span.parent_span_id, "big") == id]
        assert Counter(span.name for span in made) == {"compute": 5, "push": 5}
        assert {span.trace_id for span in made} == {top.trace_id}
        assert all(top.start_time_unix_nano <= span.start_time_unix_nano for span in below)
