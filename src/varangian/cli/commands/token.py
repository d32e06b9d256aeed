"""`varangian token`: print the tokens of some workers, or write them to a file."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from varangian.cli.main import OK, CommandError
from varangian.cli.tokens import read_or_make_secret, secret, token_lines, write_tokens
from varangian.cli.worker_names import configured_names
from varangian.protos.identity.bundle import NAME


def command(args: argparse.Namespace) -> int:
    """Print the tokens of some workers, or write them to a file that only its owner can read."""
    names = _names(args)
    try:
        key = secret() if args.secret is None else read_or_make_secret(Path(args.secret))
        if args.out is None:
            print(token_lines(names, key), end="")
        else:
            write_tokens(names, key, Path(args.out))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(f"{error.filename or args.out}: {error.strerror}") from error
    return OK


def _names(args: argparse.Namespace) -> tuple[str, ...]:
    """The workers to make tokens for: named, or all of a kind in a configuration."""
    names = tuple(dict.fromkeys(text for text in args.names if "=" not in text))
    settings = [text for text in args.names if "=" in text]
    if args.claim and not names:
        return configured_names(args.claim, settings)
    if not names or args.claim or settings:
        raise CommandError(
            "say whose token it is: names (w00 w01), or --claim honest|byzantine with the settings of the "
            "run (workers=10)"
        )
    return tuple(_check_names(names))


def _check_names(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        if not NAME.fullmatch(name):
            rule = "letters, digits, '.', '_' and '-', at most 63, the first a letter or a digit"
            raise CommandError(f"The name of a worker should be {rule}. Found {name!r:.100}")
        yield name
