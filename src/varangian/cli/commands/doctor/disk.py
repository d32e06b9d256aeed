"""The folders that a program writes to: whether it can, how much room they have, how fast they are."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from varangian.cli.commands.doctor.finding import Finding, fail, note, passed, within
from varangian.files import fsync, user_path
from varangian.resources import readable

OUTPUT, TEMPORARY, STATE, ROWS = "output", "temporary", "state", "rows"
PATIENCE = 20.0
"""Seconds after which a folder does not answer."""
BLOCK, MOST, LONGEST = 1 << 20, 32, 2.0
"""Bytes that are written at once, how often, and seconds for all."""
LITTLE = 1 << 30
"""Bytes of free space below which a note says so."""
LITTLE_TEMPORARY = 100 << 20
SLOW = 20e6
"""Bytes in a second below which a note says so."""
LONG = 10.0
"""Seconds for a checkpoint from which a note says so."""


def check_output(
    folder: Path, needed: int = 0, checkpoint: int = 0, bad: Callable[[str, str, str], Finding] = fail
) -> Finding:
    """The folder of run folders.

    Args:
        folder: that may have to be made.
        needed: bytes that a run keeps there.
        checkpoint: bytes of each checkpoint.
        bad: makes the finding where nothing can be written.
    """
    try:
        free, speed = within(PATIENCE, lambda: _measure(folder, MOST))
    except OSError as error:
        return bad(
            OUTPUT,
            f"{folder} should take files. {_said(error)}",
            "Choose another place with output=DIR, or make it writable for this user.",
        )
    found = f"{folder} can be written, {readable(free)} free, {readable(round(speed))} a second"
    if free < needed:
        return fail(
            OUTPUT,
            f"{found}, and the run may keep {readable(needed)} there",
            "Make room, choose another place with output=DIR, or lower server.checkpoint.keep.",
        )
    if free < LITTLE:
        return note(OUTPUT, found, "That is little: make room, or choose another place with output=DIR.")
    if checkpoint > LONG * speed:
        seconds = f"each checkpoint of {readable(checkpoint)} takes {checkpoint / speed:.0f} s to write"
        return note(
            OUTPUT, f"{found}: {seconds}", "Raise server.checkpoint.every, or choose a faster disk."
        )
    if speed < SLOW:
        return note(
            OUTPUT, found, "That is slow: a local disk is better for checkpoints than a shared one."
        )
    return passed(OUTPUT, found)


def check_rows(folder: Path, needed: int | None) -> Finding:
    """The folder of the file in which the vectors of a round lie.

    Args:
        folder: that has to exist.
        needed: bytes of the file, where the model is known.
    """
    try:
        if not folder.is_dir():
            raise NotADirectoryError(0, "there is no such folder")
        free, speed = within(PATIENCE, lambda: _measure(folder, MOST))
    except OSError as error:
        advice = "Make the folder, or choose another place with server.rows_folder=DIR."
        return fail(ROWS, f"{folder} should take the vectors of a round. {_said(error)}", advice)
    found = f"{folder} can be written, {readable(free)} free, {readable(round(speed))} a second"
    if needed is None:
        return passed(ROWS, found)
    if free < needed:
        return fail(
            ROWS,
            f"{found}, and the vectors of a round take {readable(needed)}",
            "Make room, choose another place with server.rows_folder=DIR, or set server.rows=bfloat16.",
        )
    if speed < SLOW:
        return note(ROWS, found, "That is slow, and each round writes all vectors there and reads them.")
    return passed(ROWS, f"{found}; the vectors of a round take {readable(needed)}")


def check_temporary(bad: Callable[[str, str, str], Finding] = fail) -> Finding:
    """The folder of temporary files, as TMPDIR names it."""
    try:
        folder = Path(tempfile.gettempdir())
        free, _ = within(PATIENCE, lambda: _measure(folder))
    except OSError as error:
        return bad(
            TEMPORARY,
            f"there should be a folder for temporary files. {_said(error)}",
            "Set TMPDIR to a folder that can be written; in a container, mount a tmpfs at /tmp.",
        )
    found = f"{folder} can be written, {readable(free)} free"
    if free < LITTLE_TEMPORARY:
        return note(TEMPORARY, found, "That is little: set TMPDIR to a folder with more.")
    return passed(TEMPORARY, found)


def check_state(setting: str | None = "auto") -> Iterator[Finding]:
    """The folder where a worker keeps what it needs to go on after a crash, if it does."""
    if setting is None:
        return
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    folder = user_path(home) / "varangian" if setting == "auto" else user_path(setting)
    try:
        free, _ = within(PATIENCE, lambda: _measure(folder))
    except OSError as error:
        yield note(
            STATE,
            f"{folder} should take files. {_said(error)} Without it a worker that crashes starts anew",
            "Set worker.state=DIR to a folder that lasts, or worker.state=null.",
        )
    else:
        yield passed(STATE, f"workers keep their state in {folder}, {readable(free)} free")


def _measure(folder: Path, blocks: int = 1) -> tuple[int, float]:
    """The bytes free there, and bytes in a second. Nothing is left behind.

    Raises:
        OSError: no file can be made there, or not one of this size.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    block = os.urandom(BLOCK)  # some file systems pack what they are given
    free = shutil.disk_usage(there).free
    with tempfile.TemporaryFile(dir=there) as file:
        written, began = 0, time.monotonic()
        while written < blocks * BLOCK and time.monotonic() - began < LONGEST:
            written += file.write(block)
            file.flush()
        fsync(file.fileno())
        return free, written / max(time.monotonic() - began, 1e-6)


def _said(error: OSError) -> str:
    return f"The system says: {error.strerror or error}."
