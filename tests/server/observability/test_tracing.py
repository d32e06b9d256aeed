import gzip
import os
import socket
import threading
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from varangian.protos.errors import Refused
from varangian.protos.refusals import Refusal
from varangian.server.observability.record import RoundRecord
from varangian.server.observability.tracing import Tracing, ids_of
from varangian.server.observability.traffic import OpenCall, Traffic
from varangian.telemetry import open_telemetry

pytest.importorskip("opentelemetry.sdk")

MILLI = 1_000_000
RECORD = RoundRecord(
    round=3,
    dropped={},
    missing=("w02",),
    seconds={"wait": 0.050, "aggregate": 0.030, "step": 0.010, "evaluate": 0.020},
    aggregation={"gram": 0.025, "rule": 0.005},
)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in [*os.environ]:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def exporter():
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    return InMemorySpanExporter()


def spans_of(exporter, made):
    made.close()
    return {span.name: span for span in exporter.get_finished_spans()}


def times(span):
    return span.start_time // MILLI, span.end_time // MILLI


def test_a_round_and_what_is_below_it(exporter):
    made = Tracing("a-run", 0, exporter, now=lambda: 1000 * MILLI)
    made.note_call(OpenCall("pull", "w00", 3, began=880 * MILLI, ended=885 * MILLI))
    made.note_call(OpenCall("push", "w00", 3, began=930 * MILLI, ended=939 * MILLI))
    made.note_call(OpenCall("pull", "w00", 4, began=995 * MILLI, ended=999 * MILLI))
    made.observe(RECORD)
    spans = spans_of(exporter, made)
    assert [*spans] == ["pull", "push", "wait", "gram", "rule", "step", "evaluate", "round"]
    top = spans.pop("round")
    assert times(top) == (880, 1000), "it begins with its first call"
    assert {name: times(span) for name, span in spans.items()} == {
        "pull": (880, 885),
        "push": (930, 939),
        "wait": (890, 940),
        "gram": (940, 965),
        "rule": (965, 970),
        "step": (970, 980),
        "evaluate": (980, 1000),
    }
    assert {span.parent.span_id for span in spans.values()} == {top.context.span_id}
    assert (top.context.trace_id, top.context.span_id) == ids_of("a-run", 0, 3)
    assert spans["push"].attributes["varangian.worker"] == "w00"
    assert (top.attributes["varangian.round"], top.attributes["varangian.missing"]) == (3, 1)
    assert top.resource.attributes["service.name"] == "varangian-server"


def test_calls_for_later_rounds_wait_for_them(exporter):
    made = Tracing("a-run", 0, exporter)
    made.note_call(OpenCall("pull", "w00", 4, began=5, ended=6))
    made.observe(RECORD)
    made.observe(replace(RECORD, round=4))
    pull = spans_of(exporter, made)["pull"]
    assert pull.parent.span_id == ids_of("a-run", 0, 4)[1]


def test_a_round_without_parts_or_update(exporter):
    from opentelemetry.trace import StatusCode

    made = Tracing("a-run", 0, exporter, now=lambda: 1000 * MILLI)
    made.observe(replace(RECORD, aggregation={}))
    made.observe(replace(RECORD, round=4, seconds={"wait": 0.1}, aggregation={}, skipped="too few"))
    made.close()
    first, second = exporter.get_finished_spans()[:5], exporter.get_finished_spans()[5:]
    assert [span.name for span in first] == ["wait", "rule", "step", "evaluate", "round"]
    assert times(first[1]) == (940, 970), "all of the aggregation"
    spans = {span.name: span for span in second}
    assert [*spans] == ["wait", "round"]
    assert spans["round"].status.status_code is StatusCode.ERROR
    assert spans["round"].status.description == "too few"


def refuse(traffic, refusal, worker):
    with suppress(Refused), traffic.push() as push:
        push.worker, push.round = worker, 3
        raise Refused(refusal)


def test_calls_are_timed_only_where_somebody_asks(exporter):
    traffic = Traffic()
    with traffic.push() as push:
        pass
    assert (push.began, push.ended) == (0, 0)
    made = Tracing("a-run", 0, exporter)
    traffic.on_call = made.note_call
    refuse(traffic, Refusal.STALE, "w00")
    refuse(traffic, Refusal.UNIDENTIFIED, "")  # without a name there is no span
    with traffic.pull("w01", 3):
        pass
    made.observe(RECORD)
    spans = spans_of(exporter, made)
    assert spans["push"].status.description == "STALE"
    assert spans["push"].attributes["varangian.outcome"] == "refused"
    assert spans["pull"].attributes["varangian.worker"] == "w01"


def test_the_ids_of_a_round_are_a_function_of_run_start_and_round():
    found = {ids_of(run, epoch, round) for run in "ab" for epoch in (0, 1) for round in range(3)}
    assert len(found) == 12
    trace, span = ids_of("a", 0, 0)
    assert 0 < trace < 1 << 128
    assert 0 < span < 1 << 64
    assert ids_of("a", 0, 0) == (trace, span)


class Collector(HTTPServer):
    """A collector of OpenTelemetry that keeps what it is sent."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Receiver)
        self.found = []
        self.paths = []


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            data = gzip.decompress(data)
        self.server.found.append(ExportTraceServiceRequest.FromString(data))
        self.server.paths.append(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def collector():
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_spans_go_where_the_environment_says(collector, monkeypatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    made = Tracing("a-run", 1, now=lambda: 1000 * MILLI)
    made.observe(RECORD)
    made.close()
    assert collector.paths == ["/v1/traces"]
    (resource,) = collector.found[0].resource_spans
    assert "mine" in {attribute.value.string_value for attribute in resource.resource.attributes}
    spans = {span.name: span for span in resource.scope_spans[0].spans}
    assert int.from_bytes(spans["round"].trace_id, "big") == ids_of("a-run", 1, 3)[0]
    assert spans["gram"].parent_span_id == spans["round"].span_id
    assert spans["round"].end_time_unix_nano == 1000 * MILLI


def test_a_collector_that_does_not_answer_delays_no_round_and_no_end(monkeypatch, caplog):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setattr(open_telemetry, "FLUSH", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections and says nothing
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        made = Tracing("a-run", 0)
        made.observe(RECORD)
        made.close()
    assert "the last spans were not sent" in caplog.text


def test_what_is_missing_is_said_before_a_run(monkeypatch):
    open_telemetry.require()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(open_telemetry.MissingTracing, match=r"otlp, console, none\. Found 'zipkin'"):
        open_telemetry.require()
    monkeypatch.setattr(open_telemetry, "find_spec", lambda name: None)
    with pytest.raises(open_telemetry.MissingTracing, match=r"pip install 'varangian\[otel\]'"):
        open_telemetry.require()
