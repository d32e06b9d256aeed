"""The report, line by line for people, or as one JSON object for programs."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import TextIO

from varangian import __version__
from varangian.cli.commands.doctor.finding import FAIL, NOTE, PASSED, Finding

COLOURS = {PASSED: "32", NOTE: "33", FAIL: "31"}
MARGIN = 22
"""Columns before a sentence."""
NARROW = 30
"""Columns that a sentence has at least, on whatever terminal."""


def show(findings: Iterable[Finding], format: str, out: TextIO | None = None) -> bool:
    """Print findings as they come; returns whether none has failed."""
    out = sys.stdout if out is None else out
    if format == "json":
        found = list(findings)
        good = not any(one.result == FAIL for one in found)
        print(json.dumps(_plain(found, good), indent=2), file=out)
        return good
    terminal = out is not None and out.isatty() and os.environ.get("TERM") != "dumb"
    rich = format == "rich" or (format == "auto" and terminal)
    results = list[str]()
    for one in findings:
        results.append(one.result)
        print("\n".join(_lines(one)) if rich else str(one), file=out, flush=True)
    failed, notes = results.count(FAIL), results.count(NOTE)
    parts = [
        f"{len(results)} checks",
        f"{results.count(PASSED)} passed",
        f"{notes} to note",
        f"{failed} failed",
    ]
    print(f"\n{parts[0]}: {', '.join(parts[1:])}", file=out, flush=True)
    return not failed


def _plain(found: Iterable[Finding], good: bool) -> dict[str, object]:
    return {
        "varangian": __version__,
        "result": PASSED if good else FAIL,
        "findings": [
            {"what": one.what, "result": one.result, "sentence": one.sentence, "todo": one.todo}
            for one in found
        ],
    }


def _lines(one: Finding) -> Iterator[str]:
    """A finding in colour, broken to the width of the terminal."""
    colour = "" if os.environ.get("NO_COLOR") else f"\x1b[{COLOURS[one.result]}m"
    width = max(NARROW, shutil.get_terminal_size().columns - MARGIN)
    first, *rest = textwrap.wrap(one.text, width, break_long_words=False, break_on_hyphens=False) or [""]
    yield f"{colour}{one.result:<6}{chr(27) + '[0m' if colour else ''}  {one.what:<12}  {first}"
    for line in rest:
        yield f"{' ' * MARGIN}{line}"
