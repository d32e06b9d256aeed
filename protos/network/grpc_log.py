"""gRPC's own log, without what the other end, or a lack of files, could fill it with.

A caller that hangs up before its answer, or whose metadata is no text, is no error of the server. gRPC logs
either one as an error, with a traceback and up to 16 KB of what was sent: a disk is full of that before a
quota is noticed. At a worker it does so for each attempt to connect without a free file descriptor.
"""

from __future__ import annotations

import logging
from typing import Final

log = logging.getLogger(__name__)

SOURCE: Final = "grpc._cython.cygrpc"
CALLERS: Final = ("ExecuteBatchError", "InternalError", "UnicodeDecodeError")
"""Types of the exceptions that callers cause."""


class CallerFilter(logging.Filter):
    """Lets errors of the server pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.exc_info and record.exc_info[0]
        if not kind or kind.__name__ not in CALLERS:
            return True
        log.debug("gRPC: %s", kind.__name__)
        return False


def install_log_filter() -> None:
    """Once for the process; again changes nothing."""
    logger = logging.getLogger(SOURCE)
    if not any(isinstance(present, CallerFilter) for present in logger.filters):
        logger.addFilter(CallerFilter())
