"""Structured logs: one line of JSON for each event, with the run, the round and the worker it is about.

A call of `logging` names its event and its facts with `extra=event("refused", worker=name, code=code)`.
What holds for many lines is entered once: `enter(run=...)` for the tasks that are started from then on.
Texts of workers are escaped by who logs them; the lines here are ASCII, and no line has a line end in it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from varangian.registry import ConfigError, Problem

VARIABLE: Final = "VARANGIAN_LOG_FORMAT"
Format = Literal["text", "json"]
FORMATS: Final[tuple[Format, ...]] = ("text", "json")
LONGEST: Final = 10_000
"""Characters of a message or of a traceback."""


@dataclass
class About:
    """What lines are about; what is not known is None. It changes while a run goes on."""

    run: str | None = None
    round: int | None = None
    worker: str | None = None


_about: ContextVar[About | None] = ContextVar("varangian.about", default=None)


def enter(run: str | None = None, worker: str | None = None) -> About:
    """Say what the lines of this task, and of those that it starts from now on, are about."""
    about = About(run, None, worker)
    _about.set(about)
    return about


def about() -> About:
    """What the lines of this task are about; one of its own, without effect, where nothing was entered."""
    return _about.get() or About()


def event(name: str, /, **facts: Any) -> dict[str, Any]:
    """For `extra=`: the name of an event, and facts besides its message, as `worker` and `code`."""
    return {"event": name, "facts": facts}


@contextmanager
def in_format(form: Format) -> Generator[None]:
    """Write the logs of runs that begin meanwhile in this format."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = form
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def log_format(chosen: str | None = None) -> Format:
    """The format of log lines: that of `--log-format`, or of the environment, or text.

    Raises:
        ConfigError: there is no such format.
    """
    value = chosen or os.environ.get(VARIABLE) or "text"
    for known in FORMATS:
        if value == known:
            return known
    path = "--log-format" if chosen else VARIABLE
    raise ConfigError([Problem(path, f"should be {' or '.join(FORMATS)}", value)])


def json_line(
    level: str, name: str, message: str, facts: Mapping[str, Any], at: float | None = None
) -> str:
    """One event as a line of JSON, without its end: ASCII, control characters escaped, null for NaN.

    Args:
        level: debug, info, warning, error or critical.
        name: of the event.
        message: of it.
        facts: more about it; those that are None are left out.
        at: seconds since the epoch; by default now.
    """
    moment = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    line = {
        "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": level,
        "event": name,
        "message": message[:LONGEST],
        **{key: _plain(value) for key, value in facts.items() if value is not None},
    }
    return json.dumps(line, default=str)


class JsonFormatter(logging.Formatter):
    """Log records as lines of JSON.

    Args:
        run: that lines are about where nothing else is entered.
    """

    def __init__(self, run: str | None = None) -> None:
        super().__init__()
        self._run = run

    def format(self, record: logging.LogRecord) -> str:
        here = about()
        given: dict[str, Any] = getattr(record, "facts", None) or {}
        facts = {
            "run": here.run or self._run,
            "round": here.round,
            "worker": here.worker,
            **given,
            "logger": record.name,
            "process": record.process,
        }
        if record.exc_info and record.exc_info[0] is not None:
            facts["exception"] = self.formatException(record.exc_info)[-LONGEST:]
        name = str(getattr(record, "event", "log"))
        return json_line(record.levelname.lower(), name, record.getMessage(), facts, record.created)


def _plain(value: Any) -> Any:
    """The value with null for the floats that JSON cannot write."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
