"""From the command line to an exit code."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence

from varangian.cli.parser import parse
from varangian.registry import ConfigError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class CommandError(Exception):
    """A command cannot go on; the sentence is for the user and there is nothing to trace."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    _escape(sys.stdout)
    args = parse(sys.argv[1:] if argv is None else argv)
    # Otherwise gRPC writes a line for every handshake that fails, and strangers can fail without end.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    module, _, function = args.run.partition(":")
    try:
        command = importlib.import_module(f"varangian.cli.{module}")
        return int(getattr(command, function or "command")(args))
    except ConfigError as error:
        many = "Problem" if len(error.problems) == 1 else f"{len(error.problems)} problems"
        print(f"{many} in the configuration:", file=sys.stderr)
        for problem in error.problems:
            print(f"  {problem}", file=sys.stderr)
        return USAGE
    except CommandError as error:
        print(f"varangian: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("varangian: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, a pager) has left; nothing else may be written to it.
        sys.stderr.close()
        return FAILED


def _escape(stream: object) -> None:
    """Characters that the encoding of a stream lacks are escaped, as on standard error; not an error."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
