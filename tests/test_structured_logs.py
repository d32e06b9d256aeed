"""Log lines as JSON: one line an event, whatever is in it."""

import asyncio
import json
import logging
import math
import re

import pytest

from varangian.registry import ConfigError
from varangian.structured_logs import (
    LONGEST,
    VARIABLE,
    JsonFormatter,
    about,
    enter,
    event,
    in_format,
    json_line,
    log_format,
)


@pytest.fixture
def logged():
    """The lines of a logger of its own, as they are written and as they are read."""
    lines, logger = [], logging.Logger("varangian.server.somewhere")
    handler = logging.Handler()
    handler.setFormatter(JsonFormatter("the-run"))
    handler.emit = lambda record: lines.append(handler.format(record))
    logger.addHandler(handler)

    def log(level, message, *arguments, **more):
        logger.log(level, message, *arguments, **more)
        line = lines.pop()
        assert line.isascii()
        assert line.isprintable()
        return json.loads(line)

    return log


def test_a_line_has_time_level_event_and_message(logged):
    found = logged(logging.WARNING, "refused %s", "w01", extra=event("refused", worker="w01", code="AGE"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found.pop("process") > 0
    assert found == {
        "level": "warning",
        "event": "refused",
        "message": "refused w01",
        "run": "the-run",
        "worker": "w01",
        "code": "AGE",
        "logger": "varangian.server.somewhere",
    }


@pytest.mark.parametrize(
    "text", ["a\nb", "\r\x1b[2J", "\u2028\u202e", "\ud800", "\x00\x85", '"}\n{"level": "x"']
)
def test_a_hostile_text_is_one_line_of_ascii(logged, text):
    assert logged(logging.INFO, "%s says so", text)["message"] == f"{text} says so"
    assert logged(logging.INFO, "x", extra=event("e", worker=text))["worker"] == text


def test_a_line_of_other_libraries_is_one_too(logged):
    try:
        raise ValueError("no\nway")
    except ValueError:
        found = logged(logging.ERROR, "it failed", exc_info=True)
    assert (found["event"], found["level"]) == ("log", "error")
    assert "ValueError: no\nway" in found["exception"]


def test_long_and_odd_values_are_no_obstacle():
    line = json_line(
        "info", "e", 3 * LONGEST * "x", {"a": math.nan, "b": [math.inf], "c": None, "d": object}
    )
    found = json.loads(line)
    assert len(found["message"]) == LONGEST
    assert (found["a"], found["b"], found["d"]) == (None, [None], "<class 'object'>")
    assert "c" not in found


async def test_what_is_entered_holds_for_the_tasks_of_a_run_alone(logged):
    async def work(worker):
        here = enter("a-run", worker)
        for here.round in range(3):
            await asyncio.sleep(0)
        found = logged(logging.INFO, "done")
        return found["run"], found["worker"], found["round"]

    assert await asyncio.gather(work("w00"), work("w01")) == [("a-run", "w00", 2), ("a-run", "w01", 2)]
    assert about().worker is None
    about().round = 7  # without effect, as nothing was entered here
    assert about().round is None


def test_the_format_is_that_of_the_option_or_the_environment(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert log_format() == "text"
    with in_format("json"):
        assert log_format() == "json"
        assert log_format("text") == "text"
    assert log_format() == "text"
    monkeypatch.setenv(VARIABLE, "xml")
    with pytest.raises(ConfigError, match=f"{VARIABLE}: should be text or json. Found 'xml'"):
        log_format()
