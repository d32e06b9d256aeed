"""The command line: parse, import the command, run it, and turn errors into sentences and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from varangian.cli.arguments.main import parse
from varangian.files import settings_file
from varangian.registry import ConfigError
from varangian.structured_logs import VARIABLE, json_line

OK, FAILED, USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""Errors of a disk that takes no more."""
EXHAUSTED = (errno.EMFILE, errno.ENFILE)
"""Errors of a process, or a machine, that has no more file descriptors."""


CLEANING = 30.0
"""Seconds that a process has to clean up after SIGTERM, when it ends by an error, before it just ends."""


class Terminated(KeyboardInterrupt):
    """SIGTERM has come: handled as Ctrl-C, so that everything begun is cleaned up."""


class CommandError(Exception):
    """A command cannot go on; the sentence is for the user and there is nothing to trace."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    _open_closed_streams()
    _escape(sys.stdout)
    # Otherwise gRPC writes a line for every handshake that fails, and strangers can fail without end.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    args = argparse.Namespace()
    try:
        with _terminable(last=argv is None):
            args = parse(sys.argv[1:] if argv is None else argv)
            module, _, function = args.run.partition(":")
            return _run_command(module, function, args)
    except Terminated:
        _complain(args, "varangian: terminated")
        return TERMINATED
    except KeyboardInterrupt:
        _complain(args, "varangian: interrupted")
        return INTERRUPTED


def _run_command(module: str, function: str, args: argparse.Namespace) -> int:
    try:
        here = getattr(args, "engine", None) is None  # and on no node of an engine
        if here and "prepare" in args and (getattr(args, "forks", False) or not _simulates(args)):
            importlib.import_module(args.prepare).start()
        command = _import_quickly(module)
        code = int(getattr(command, function or "command")(args))
        sys.stdout.flush()  # a full disk should be told of here, not by the interpreter as it leaves
        return code
    except ConfigError as error:
        many = "Problem" if len(error.problems) == 1 else f"{len(error.problems)} problems"
        _complain(args, f"{many} in the configuration:", *(f"  {problem}" for problem in error.problems))
        return USAGE
    except CommandError as error:
        _complain(args, f"varangian: {error}")
        return FAILED
    except BrokenPipeError:
        _discard_output()  # its reader (head, a pager) has left
        return FAILED
    except OSError as error:
        if error.errno in EXHAUSTED:
            what = f"{error.filename} cannot be opened" if error.filename else "nothing more can be opened"
            todo = "Raise the limit with `ulimit -n 4096` in the shell that starts this command"
            print(f"varangian: {what}: {error.strerror}. {todo}", file=sys.stderr)
            return FAILED
        if error.errno not in FULL:
            raise
        _discard_output()
        what = error.filename or "the output"
        print(f"varangian: {what} cannot be written: {error.strerror}", file=sys.stderr)
        return FAILED


def _complain(args: argparse.Namespace, *lines: str) -> None:
    """Print why a command ends: a sentence on standard error, or one log line where these are JSON."""
    if "log_format" in args and (args.log_format or os.environ.get(VARIABLE)) == "json":
        text = "; ".join(line.strip() for line in lines)
        lines = (json_line("error", "command_failed", text, {"command": args.command}),)
    for line in lines:
        print(line, file=sys.stderr)


def _simulates(args: argparse.Namespace) -> bool:
    """Whether a run seems to be a simulation; a wrong guess costs processor time and nothing else."""
    names = ("VARANGIAN__BACKEND", "VARANGIAN_SETTINGS")
    texts = [*getattr(args, "settings", ()), *(os.environ.get(name, "") for name in names)]
    resumed = getattr(args, "resume", None)
    file = settings_file(Path(resumed)) if resumed else os.devnull
    with contextlib.suppress(OSError, TypeError, ValueError):
        texts.append(Path(getattr(args, "config", None) or file).read_text(encoding="utf-8"))
    return getattr(args, "backend", None) == "simulate" or any("simulate" in text for text in texts)


def _import_quickly(module: str) -> ModuleType:
    """Import the module of a command without the garbage collector, which would take a tenth of the time.

    What is imported stays, so the collector need not search it later, either.
    """
    if "torch" in sys.modules:
        return importlib.import_module(module)  # a part of another program
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.freeze()
        gc.enable()


def _discard_output() -> None:
    """Discard what is still to be written, so that the interpreter does not complain at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_closed_streams() -> None:
    """Open standard streams that were closed when the process began, on the null device.

    Otherwise the next files or sockets would have their numbers, and take what is printed here or in a
    child.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _escape(stream: object) -> None:
    """Characters that the encoding of a stream lacks are escaped, as on standard error; not an error."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


@contextmanager
def _terminable(last: bool) -> Generator[None]:
    """Let SIGTERM raise an error here, unless the process was told what to do with it.

    By default it ends a process between two instructions, and the first one of a container not at all.

    Args:
        last: whether the process ends after this, which takes longer than an instant; SIGTERM, which asks
            for nothing else, does not change its exit code then.
    """
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return

    late = threading.Timer(CLEANING, os._exit, [TERMINATED])
    late.daemon = True

    def terminate(*_: Any) -> None:
        # An error between any two instructions may leave a lock held, for which what cleans up would wait,
        # or come up in a callback that swallows it.
        if late.ident is None:
            late.start()
        raise Terminated

    untold = before is signal.SIG_DFL
    if untold:
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        if not last:
            late.cancel()
        signal.signal(signal.SIGTERM, signal.SIG_IGN if untold and last else before)


def ignore_sigterm() -> None:
    """Ignore SIGTERM until the command ends, as nothing is left to do but to end."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
