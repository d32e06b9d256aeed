"""Samples of parametrised tests: few combinations in which every value of every parameter occurs."""

from collections.abc import Iterable, Sequence
from zlib import crc32

FEWEST = 16
"""Combinations that a test has at least; one with no more of them runs whole."""


def sample(combinations: Sequence[Sequence[str]], names: Sequence[str]) -> set[int]:
    """Places of a covering sample: for each value of each parameter one combination at least.

    A combination is the identifiers of its values, one for each `parametrize`.
    The same for the same names, whatever runs beside them: ties are decided by a checksum of the name.
    Parameters that one `parametrize` gives together count as one: a plain list of cases is never reduced.
    """
    if len(combinations) <= FEWEST:
        return set(range(len(combinations)))
    wanted = [frozenset(enumerate(combination)) for combination in combinations]
    order = sorted(range(len(wanted)), key=lambda place: crc32(names[place].encode()))
    missing, chosen = frozenset().union(*wanted), set()
    while missing:
        best = max(order, key=lambda place: len(wanted[place] & missing))
        chosen.add(best)
        missing -= wanted[best]
    chosen.update([place for place in order if place not in chosen][: max(0, FEWEST - len(chosen))])
    return chosen


def named(argument: str) -> bool:
    """Whether an argument of the command line names a test, not a file or a folder."""
    return "::" in argument


def asked_for(nodeid: str, arguments: Iterable[str]) -> bool:
    """Whether a test was named on the command line: then all its combinations run."""
    return any(named(each) and nodeid.startswith(each.removeprefix("./")) for each in arguments)
