"""Traces of a server for OpenTelemetry: a span for each round, with its calls and phases below it.

All spans of a round are made when its record is there, from times that were taken anyway. The ids of the
round's own span are a function of the run, the start of the server and the round (`ids_of`), so another
program can hang spans of its own below it without being told anything.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from varangian import __version__
from varangian.server.observability.record import RoundRecord
from varangian.server.observability.traffic import OpenCall
from varangian.telemetry import open_telemetry

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.util.types import AnyValue

SERVICE = "varangian-server"
"""The name of the service unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` has one."""
MOST_CALLS = 4096
"""Calls that wait for the record of their round; the oldest are dropped."""
PHASES = ("wait", "gate", "gram", "rule", "step", "evaluate")
"""The phases of a round in their order."""
SECOND = 1_000_000_000
"""In nanoseconds."""


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
        self._provider = open_telemetry.provider(SERVICE, exporter, self._ids)
        self._tracer = self._provider.get_tracer("varangian", __version__)
        self._calls = deque[OpenCall](maxlen=MOST_CALLS)

    def trace_parent(self, round: int) -> str:
        """The span of a round as a worker is told it, which may hang spans of its own below it."""
        return open_telemetry.trace_parent(*ids_of(self._run, self._epoch, round))

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
        open_telemetry.close(self._provider)


def _phases(record: RoundRecord) -> dict[str, float]:
    """Seconds of the phases of a round, in their order; `rule` is all of an aggregation without parts."""
    parts = record.aggregation or {"rule": record.seconds.get("aggregate", 0.0)}
    found = {**record.seconds, **parts}
    return {phase: found[phase] for phase in PHASES if found.get(phase)}
