"""Traces of a server for OpenTelemetry: a span for each round, with its calls and phases below it.

All spans of a round are made when its record is there, from times that were taken anyway. The ids of the
round's own span are a function of the run, the start of the server and the round (`ids_of`), so another
program can hang spans of its own below it without being told anything.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from varangian import __version__
from varangian.server.observability.record import RoundRecord
from varangian.server.observability.traffic import OpenCall
from varangian.structured_logs import event

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.util.types import AnyValue

log = logging.getLogger(__name__)

EXTRA = "traces need the packages of OpenTelemetry: pip install 'varangian[otel]'"
SERVICE = "varangian-server"
"""The name of the service unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` has one."""
MOST_CALLS = 4096
"""Calls that wait for the record of their round; the oldest are dropped."""
PHASES = ("wait", "gram", "rule", "step", "evaluate")
"""The phases of a round in their order."""
FLUSH = 5.0
"""Seconds for the last spans at the end of a run."""
SECOND = 1_000_000_000
"""In nanoseconds."""


class MissingTracing(ImportError):
    """OpenTelemetry is not installed, or not set up for this server; the text says what to do."""


def require() -> None:
    """See that traces can be made.

    Raises:
        MissingTracing: they cannot.
    """
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        raise MissingTracing(EXTRA)
    chosen = _chosen()
    if chosen not in EXPORTERS:
        names = ", ".join(EXPORTERS)
        raise MissingTracing(f"OTEL_TRACES_EXPORTER should be one of {names}. Found {chosen!r:.100}.")
    if chosen == "otlp" and find_spec("opentelemetry.exporter.otlp.proto.http") is None:
        raise MissingTracing(EXTRA)


def ids_of(run: str, epoch: int, round: int) -> tuple[int, int]:
    """The ids of the trace and of the span of a round: W3C `traceparent` without its other fields.

    Args:
        run: the name of the run folder.
        epoch: how often the run went on before this start of the server; both are in the reply to Join.
        round: of the run.
    """
    digest = hashlib.blake2b(f"varangian/{run}/{epoch}/{round}".encode(), digest_size=24).digest()
    return int.from_bytes(digest[:16], "big") or 1, int.from_bytes(digest[16:], "big") or 1


class Tracing:
    """The traces of one server. For its event loop; spans leave the process in a thread of their own.

    Args:
        run: the name of the run folder.
        epoch: how often the run went on before.
        exporter: where spans go; by default what the variables `OTEL_*` say.
        now: nanoseconds since 1970.
    """

    def __init__(
        self,
        run: str,
        epoch: int,
        exporter: SpanExporter | None = None,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        class Ids(RandomIdGenerator):
            """Random ids, but for the span of a round."""

            of_round: tuple[int, int] | None = None

            def generate_trace_id(self) -> int:
                return super().generate_trace_id() if self.of_round is None else self.of_round[0]

            def generate_span_id(self) -> int:
                return super().generate_span_id() if self.of_round is None else self.of_round[1]

        self._run, self._epoch, self._now = run, epoch, now
        self._ids = Ids()
        resource = Resource.create({"service.version": __version__})
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: SERVICE}))
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        exporter = exporter or EXPORTERS[_chosen()]()
        if exporter is not None:
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("varangian", __version__)
        self._calls = deque[OpenCall](maxlen=MOST_CALLS)

    def note_call(self, call: OpenCall) -> None:
        """Keep a push or a pull for the span of its round."""
        if call.worker:
            self._calls.append(call)

    def observe(self, record: RoundRecord) -> None:
        """Make the spans of a round that has ended just now."""
        from opentelemetry import trace

        ended = self._now()
        seconds = _phases(record)
        began = ended - round(SECOND * sum(seconds.values()))
        calls = [call for call in self._calls if call.round <= record.round]
        rest = [call for call in self._calls if call.round > record.round]
        self._calls.clear()
        self._calls.extend(rest)
        first = min([began, *(call.began for call in calls if call.round == record.round)])
        attributes: dict[str, AnyValue] = {
            "varangian.run": self._run,
            "varangian.round": record.round,
            "varangian.outcome": "skipped" if record.skipped is not None else "update",
            "varangian.missing": len(record.missing),
            "varangian.dropped": len(record.dropped),
            "varangian.declined": len(record.declined),
        }
        self._ids.of_round = ids_of(self._run, self._epoch, record.round)
        try:
            span = self._tracer.start_span("round", attributes=attributes, start_time=first)
        finally:
            self._ids.of_round = None
        if record.skipped is not None:
            span.set_status(trace.StatusCode.ERROR, record.skipped)
        below = trace.set_span_in_context(span)
        for call in calls:
            self._call(call, below)
        at = began
        for phase, duration in seconds.items():
            until = at + round(SECOND * duration)
            self._tracer.start_span(phase, below, start_time=at).end(until)
            at = until
        span.end(ended)

    def _call(self, call: OpenCall, below: Context) -> None:
        from opentelemetry import trace

        attributes: dict[str, AnyValue] = {
            "varangian.worker": call.worker,
            "varangian.round": call.round,
            "varangian.outcome": call.outcome,
        }
        span = self._tracer.start_span(call.name, below, attributes=attributes, start_time=call.began)
        if call.code:
            span.set_status(trace.StatusCode.ERROR, call.code)
        span.end(call.ended)

    def close(self) -> None:
        """Send what is left, for a few seconds at most. Not for the event loop."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(FLUSH)
        if sending.is_alive():
            log.warning("the last spans were not sent within %g s", FLUSH, extra=event("spans_lost"))


def _phases(record: RoundRecord) -> dict[str, float]:
    """Seconds of the phases of a round, in their order; `rule` is all of an aggregation without parts."""
    parts = record.aggregation or {"rule": record.seconds.get("aggregate", 0.0)}
    found = {**record.seconds, **parts}
    return {phase: found[phase] for phase in PHASES if found.get(phase)}


def _chosen() -> str:
    return os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"


def _otlp() -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _console() -> SpanExporter:
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    return ConsoleSpanExporter()


def _none() -> SpanExporter | None:
    return None


EXPORTERS: Mapping[str, Callable[[], SpanExporter | None]] = {
    "otlp": _otlp,
    "console": _console,
    "none": _none,
}
"""By the values of `OTEL_TRACES_EXPORTER`."""
