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


def install_log_filter() -> None:
    """Install the filter, once for the process; again changes nothing."""
    logger = logging.getLogger(SOURCE)
    if not any(isinstance(present, CallerFilter) for present in logger.filters):
        logger.addFilter(CallerFilter())
