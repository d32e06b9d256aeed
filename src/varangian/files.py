"""Files that are replaced as a whole, and paths as people write them."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path

LATER = re.compile(r"config\.epoch-(\d+)\.yaml")
"""The settings with which a run goes on, where they are others than before."""


def user_path(text: str | os.PathLike[str]) -> Path:
    """A path in which `~` is the home folder, as in a shell."""
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:  # the home of an unknown user, as ~nobody-of-this-name/runs
        return path


def expanded(text: str) -> str:
    """The same as text, for an argument of a command."""
    return str(user_path(text))


def by_own_name(path: Path) -> Path:
    """The same folder under its own name, which `.`, `..` and a link do not have."""
    return path.resolve() if path.name in ("", "..") or path.is_symlink() else path


def settings_file(run: Path) -> Path:
    """The file with all settings of a run: those of its start, or others with which it went on.

    A start that has done no round does not count: its settings may be the reason.
    """
    later = {
        int(found[1]): path
        for path in run.glob("config.epoch-*.yaml")
        if (found := LATER.fullmatch(path.name))
    }
    known = later.keys() & _changed_in(run) if later else ()
    return later[max(known)] if known else run / "config.yaml"


def _changed_in(run: Path) -> set[int]:
    """The starts of a run that went on with other settings, as its record says."""
    found = set[int]()
    with contextlib.suppress(OSError), (run / "rounds.jsonl").open("rb") as lines:
        for line in lines:
            if b'"resumed": {' not in line:
                continue
            with contextlib.suppress(ValueError):  # a line that was cut off
                match json.loads(line):
                    case {"resumed": {"epoch": int(epoch), "config": str() | {}}}:
                        found.add(epoch)
                    case _:
                        pass
    return found


def fsync(descriptor: int) -> None:
    """Wait until a file, or the names in a folder, are on the disk and not in memory alone.

    An error means that something was lost which the system will not write again, so the file is to be
    thrown away and not tried once more.
    """
    os.fsync(descriptor)


def write_atomically(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write the whole file or none of it, also when the machine stops half way; no other file is left.

    Args:
        path: of the file, in a folder that exists.
        content: all of it.
        mode: its permissions, which hold before there is any content; by default those of the umask.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        descriptor, named = _open_temporary(path.parent, temporary, 0o666 if mode is None else 0o600)
        with open(descriptor, "wb") as stream:
            if mode is not None:
                os.fchmod(descriptor, mode)
            stream.write(content)
            stream.flush()
            fsync(descriptor)
            if not named:
                temporary.unlink(missing_ok=True)
                # With a folder given, Python follows the link to the file behind the descriptor.
                os.link(f"/proc/self/fd/{descriptor}", temporary.name, dst_dir_fd=folder)
        temporary.replace(path)
        fsync(folder)  # without this a new name may be lost although its content is safe
    finally:
        temporary.unlink(missing_ok=True)
        os.close(folder)


def _open_temporary(folder: Path, temporary: Path, mode: int) -> tuple[int, bool]:
    """Open a file without a name, which vanishes with this process; else a named one. Says which."""
    if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            return os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, mode), False
    return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode), True
