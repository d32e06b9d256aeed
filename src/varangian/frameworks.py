"""Parts that rules inside other frameworks share: aggregator, randomness of a step, state, records."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from varangian.aggregators import Aggregator, aggregator_from
from varangian.plugins import describe_error

log = logging.getLogger(__name__)
T = TypeVar("T")
ANOTHER = "Take another rule, such as nnm+trimmed_mean."


def aggregator_of(given: str | Mapping[str, object] | Aggregator, f: int, who: str) -> Aggregator:
    """The aggregator that was asked for, where there are no data that everybody trusts.

    Args:
        given: by name, as a mapping of a configuration, or an `Aggregator`, whose own f counts.
        f: so many may be Byzantine.
        who: would have to trust the data, as "the server trusts".

    Raises:
        ConfigError: it is none.
        ValueError: it needs a gradient on data of the server.
    """
    built = given if isinstance(given, Aggregator) else aggregator_from(given, "aggregator", f=f)
    if getattr(built.rule, "needs_root", False):
        raise ValueError(
            f"aggregator: {built.rule!r} needs a gradient on data that {who}, and there is none. {ANOTHER}"
        )
    return built


def generator_of(seed: int, number: int) -> torch.Generator:
    """The randomness of one step or round."""
    digest = hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)


def check_state(state: object, needed: set[str], version: int, seed: int) -> None:
    """See that a state is what `state_dict` gave: with these keys, of this version, made with this seed.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(state, Mapping):
        found = type(state).__name__
        raise ValueError(f"state: should be what state_dict() returned, a dict. Found {found}.")
    missing = {"version", "seed", *needed} - {*state}
    of_another = state.get("version", version) != version
    if missing or of_another:
        found = f"is of version {state['version']}" if of_another else f"lacks {', '.join(sorted(missing))}"
        raise ValueError(f"state: should be what state_dict() of version {version} returned. It {found}.")
    if state["seed"] != seed:
        raise ValueError(
            f"seed: should be {state['seed']}, as when the state was made, for the same choices. "
            f"Found {seed}."
        )


def line_appender(path: str | Path) -> Callable[[str, str], None]:
    """A function that appends a line to a file, which is whole after each, and takes what the line is of.

    Where a later line cannot be written there is a warning, and training goes on: one process alone must
    not leave a step that the others take.

    Raises:
        OSError: the file cannot be written.
    """
    file = Path(path)
    file.open("a", encoding="utf-8").close()

    def append(line: str, of: str) -> None:
        try:
            with file.open("a", encoding="utf-8") as opened:
                opened.write(f"{line}\n")
        except OSError as error:
            warnings.warn(
                f"log: {file} cannot be written, and lacks {of}. The system says: {error.strerror}.",
                RuntimeWarning,
                stacklevel=3,
            )

    return append


class Callbacks:
    """Calls functions of a user, and goes on where they raise: the first error of each is logged."""

    def __init__(self) -> None:
        self._told = set[str]()

    def call(self, name: str, act: Callable[[T], object], about: T) -> None:
        """Call one that the user gave as the argument `name`."""
        try:
            act(about)
        except Exception as error:
            if name not in self._told:
                self._told.add(name)
                log.warning("%s raised, and is called on: %s", name, describe_error(error), exc_info=error)
