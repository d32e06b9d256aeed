"""OpenTelemetry as a process sets it up: whether it is there, where spans go, and how they leave.

Where they go is said by the variables `OTEL_*`. They leave the process in a thread of their own, so that no
round waits for a collector.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from varangian import __version__
from varangian.structured_logs import event

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.sdk.trace.id_generator import IdGenerator

log = logging.getLogger(__name__)

EXTRA = "traces need the packages of OpenTelemetry: pip install 'varangian[otel]'"
FLUSH = 5.0
"""Seconds for the last spans at the end of a run."""


class MissingTracing(ImportError):
    """OpenTelemetry is not installed, or not set up for this process; the text says what to do."""


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


def provider(
    service: str, exporter: SpanExporter | None = None, ids: IdGenerator | None = None
) -> TracerProvider:
    """What makes the spans of a process.

    Args:
        service: its name, unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` has one.
        exporter: where spans go; by default what the variables `OTEL_*` say.
        ids: of spans; random by default.
    """
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.version": __version__})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: service}))
    made = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
    exporter = exporter or EXPORTERS[_chosen()]()
    if exporter is not None:
        made.add_span_processor(BatchSpanProcessor(exporter))
    return made


def close(made: TracerProvider) -> None:
    """Send what is left, for a few seconds at most. Not for an event loop."""
    sending = threading.Thread(target=made.shutdown, daemon=True)
    sending.start()
    sending.join(FLUSH)
    if sending.is_alive():
        log.warning("the last spans were not sent within %g s", FLUSH, extra=event("spans_lost"))


def trace_parent(trace: int, span: int) -> str:
    """The ids of a span as another process is told them, in the words of W3C Trace Context."""
    return f"00-{trace:032x}-{span:016x}-01"


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
