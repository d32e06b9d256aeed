"""Spans of a worker for OpenTelemetry: its computation and its push, below the span of their round.

The server says with the parameters which span that is (`traceparent`, in the words of W3C Trace Context).
Whatever it says is read by OpenTelemetry alone; without anything of use a span begins a trace of its own.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from varangian.protos.metadata_keys import TRACE_PARENT
from varangian.telemetry import open_telemetry

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.util.types import AnyValue

SERVICE = "varangian-worker"
"""The name of the service unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` has one."""


@dataclass
class OpenSpan:
    """A span that has not ended."""

    outcome: str = ""
    error: str = ""
    """The code of a refusal, or why nothing was sent."""


class Spans:
    """Of a process that makes none."""

    @contextmanager
    def span(self, name: str, parent: str, worker: str, round: int) -> Generator[OpenSpan]:
        """A span for as long as this context is open.

        Args:
            name: of what is done.
            parent: the text with which the server names the span of the round; empty where it names none.
            worker: who does it.
            round: of the run.
        """
        del name, parent, worker, round
        yield OpenSpan()

    def close(self) -> None:
        """Send what is left."""


class TracedSpans(Spans):
    """Of a process with `worker.traces`.

    Args:
        exporter: where spans go; by default what the variables `OTEL_*` say.
    """

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = open_telemetry.provider(SERVICE, exporter)
        self._tracer = self._provider.get_tracer("varangian")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, name: str, parent: str, worker: str, round: int) -> Generator[OpenSpan]:
        from opentelemetry.context import Context
        from opentelemetry.trace import StatusCode

        below = self._propagator.extract({TRACE_PARENT: parent}, Context())
        attributes: dict[str, AnyValue] = {"varangian.worker": worker, "varangian.round": round}
        span = self._tracer.start_span(name, below, attributes=attributes)
        found = OpenSpan()
        try:
            yield found
        except BaseException as error:
            found.outcome, found.error = "error", type(error).__name__
            raise
        finally:
            if found.outcome:
                span.set_attribute("varangian.outcome", found.outcome)
            if found.error:
                span.set_status(StatusCode.ERROR, found.error)
            span.end()

    def close(self) -> None:
        open_telemetry.close(self._provider)
