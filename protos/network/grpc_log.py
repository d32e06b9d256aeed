"""The log of gRPC, filtered: errors that callers cause, or a lack of file descriptors, cannot fill it.

A caller that hangs up before its answer, or whose metadata is no text, is no error of the server. gRPC logs
both as errors, with a traceback and up to 16 KB of what was sent, which would fill a disk before a quota is
noticed. At a worker it does so for each attempt to connect without a free file descriptor.
"""

from __future__ import annotations

import logging
from typing import Final

log = logging.getLogger(__name__)

SOURCE: Final = "grpc._cython.cygrpc"
POLLER: Final = "PollerCompletionQueue._handle_events"
"""What hands answers to event loops."""
CALLERS: Final = ("ExecuteBatchError", "InternalError", "UnicodeDecodeError")
"""Types of the exceptions that callers cause."""


class CallerFilter(logging.Filter):
    """Lets only errors of this process pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.exc_info and record.exc_info[0]
        if not kind or kind.__name__ not in CALLERS:
            return True
        log.debug("gRPC: %s", kind.__name__)
        return False


class PollerFilter(logging.Filter):
    """Leaves out that an answer came for an event loop that is closed, or that another loop had read it.

    In a program with several event loops, as of a server and of workers, gRPC lets any of them hand answers
    to the others.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        late = isinstance(error, BlockingIOError) or str(error) == "Event loop is closed"
        return not (late and POLLER in record.getMessage())


def install_log_filter() -> None:
    """Install the filters, once for the process; again changes nothing."""
    for source, kind in ((SOURCE, CallerFilter), ("asyncio", PollerFilter)):
        logger = logging.getLogger(source)
        if not any(isinstance(present, kind) for present in logger.filters):
            logger.addFilter(kind())
