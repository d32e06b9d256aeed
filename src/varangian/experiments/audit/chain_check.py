"""Check of the chain of a record: which lines were changed, removed or put in, and where it ends."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from varangian.launch.output.chain import LOST, Link, links

FILE = "rounds.jsonl"
CONFIG = re.compile(r"config\.epoch-\d+\.yaml")


class Verifies(Protocol):
    """The public key of a certificate."""

    def verifies(self, signature: bytes, data: bytes, /) -> bool:
        """Whether the signature is that of the data."""
        ...


Certified = Callable[[str], Verifies | None]
"""The key of a certificate in PEM; None of one that does not count."""


@dataclass(frozen=True)
class Line:
    """A line of a record, without what is checked already."""

    number: int
    round: int
    """-1 where the line is no record."""
    digest: str
    before: str | None
    whole: bool
    signed: bool | None
    """Whether its signature is good; None without one, or where signatures cannot be checked."""
    resumed: Mapping[str, Any] | None
    lost: int
    parameters: str | None
    updated: bool
    """Whether the round had an update."""
    known: bool
    """Whether it has the fields of a version that chains its lines."""

    @property
    def name(self) -> str:
        """The line as sentences name it."""
        return f"line {self.number}" + (f" (round {self.round})" if self.round >= 0 else "")

    @property
    def configs(self) -> dict[str, str]:
        """Other settings with which the run went on in it: the name of their file, and its digest."""
        told = self.resumed or {}
        found = told.get("config")
        if isinstance(found, str):  # as an earlier version wrote it
            found = {f"config.epoch-{told.get('epoch')}.yaml": found}
        pairs = found.items() if isinstance(found, dict) else ()
        return {name: value for name, value in pairs if CONFIG.fullmatch(name) and isinstance(value, str)}


@dataclass
class Signatures:
    """The signatures of a record, checked in its order.

    Args:
        certified: the key of a certificate.
    """

    certified: Certified
    key: Verifies | None = None
    certificates: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    """The line in which each is new, and the certificate."""
    unsigned: list[int] = field(default_factory=list[int])
    """Lines without a signature."""

    def check(self, link: Link) -> bool | None:
        """Whether the signature of a line is good; None where it has none."""
        if link.certificate is not None:
            self.certificates.append((link.number, link.certificate))
            self.key = self.certified(link.certificate)
        if link.signature is None:
            self.unsigned.append(link.number)
            return None
        return self.key is not None and self.key.verifies(link.signature, link.signed)


def read_lines(lines: Iterable[bytes], signatures: Signatures | None) -> list[Line]:
    """The lines of a record. Without `signatures` they are not looked at."""
    return [_line(link, None if signatures is None else signatures.check(link)) for link in links(lines)]


def _line(link: Link, signed: bool | None) -> Line:
    record = link.record or {}
    resumed, lost, parameters = record.get("resumed"), record.get(LOST), record.get("parameters")
    return Line(
        number=link.number,
        round=link.round,
        digest=link.digest,
        before=link.before,
        whole=link.whole,
        signed=signed,
        resumed=resumed if isinstance(resumed, dict) else None,
        lost=lost if type(lost) is int else 0,
        parameters=parameters if isinstance(parameters, str) else None,
        updated=record.get("skipped") is None,
        known="pushes" in record,
    )


def is_chained(lines: Sequence[Line]) -> bool:
    """Whether the record has a chain: those of earlier versions have none."""
    return any(line.before is not None or line.known for line in lines)


def torn(lines: Sequence[Line]) -> Line | None:
    """The last line, if it was not written to its end."""
    return lines[-1] if lines and not lines[-1].whole else None


def problems(lines: Sequence[Line], beginning: str, lost: int = 0) -> Iterator[str]:
    """What is wrong with the chain of a record, a sentence each, in the order of its lines.

    Args:
        lines: of the record, without one that was torn.
        beginning: the digest that the first one should carry.
        lost: lines that the last start could not write, as it said at its end.
    """
    places = {line.digest: line for line in reversed(lines)}
    written = _count_lost(lines, lost) - sum(_gap(*pair) for pair in _pairs(lines))
    for before, line in _pairs(lines):
        follows = line.before == (beginning if before is None else before.digest)
        gap = _gap(before, line)
        if line.round < 0:
            yield f"{FILE}, {line.name}, should be the record of a round"
            continue
        if line.signed is False:
            yield f"{FILE}, {line.name}, is not signed by the server"
        is_elsewhere = line.before in places or places[line.digest] is not line
        if not follows and gap and not is_elsewhere:
            yield _missing(before, line, gap, lost=written >= 0)
        elif not follows:
            if sentence := _break(before, line, _is_suspect(lines, line), places):
                yield sentence
        elif gap:
            yield f"{FILE}, {line.name}, should be of round {line.round - gap}"
        elif before is not None and line.resumed is None and line.round <= before.round:
            yield f"{FILE}, {line.name}, is out of order: line {before.number} is of round {before.round}"
        elif before is not None and line.resumed is None and _moved(before, line):
            yield f"{FILE}, {line.name}, had no update, but other parameters than the line before"


def _pairs(lines: Sequence[Line]) -> Iterator[tuple[Line | None, Line]]:
    """Each line with the one before it, from the first one that belongs to the chain."""
    # A run of an earlier version that goes on has lines without a chain before.
    start = next((at for at, line in enumerate(lines) if line.before is not None or line.known), len(lines))
    for at in range(start, len(lines)):
        yield (lines[at - 1] if at else None), lines[at]


def _gap(before: Line | None, line: Line) -> int:
    """The number of rounds that are missing before a line."""
    if line.round < 0 or (before is not None and before.round < 0):
        return 0
    expected = 0 if before is None else before.round + 1
    return max(0, line.round - expected)


def _count_lost(lines: Sequence[Line], at_end: int) -> int:
    """The number of lines that the servers of a run have lost, as they say; each counts from 0."""
    total = highest = 0
    for line in lines:
        if line.resumed is not None:
            total, highest = total + highest, 0
        highest = max(highest, line.lost)
    return total + max(highest, at_end)


def _is_suspect(lines: Sequence[Line], line: Line) -> bool:
    """Whether the line behind this one names another digest of it: then it may name a wrong one itself."""
    return line.number < len(lines) and lines[line.number].before not in (None, line.digest)


def _missing(before: Line | None, line: Line, gap: int, *, lost: bool) -> str:
    first = line.round - gap
    rounds = f"round {first}" if gap == 1 else f"rounds {first} to {line.round - 1}"
    if lost:
        return (
            f"{FILE}: lost by the server, whose disk did not take them: {rounds}, before line {line.number}"
        )
    if before is None:
        return f"{FILE}: the beginning is missing: {rounds}, before {line.name}"
    lines = "a line is" if gap == 1 else f"{gap} lines are"
    between = f"between rounds {before.round} and {line.round}"
    return f"{FILE}: {lines} missing {between}, before line {line.number}"


def _break(before: Line | None, line: Line, suspect: bool, places: Mapping[str, Line]) -> str | None:
    """The sentence about a line that does not follow the one before it; None if another has said it."""
    if line.before is None:
        return f"{FILE}, {line.name}, carries no digest of the line before"
    if before is None:
        which = "config.yaml or manifest.json was changed" + (", or the line itself" if suspect else "")
        return f"{which}: {FILE}, {line.name}, names another digest of them"
    if (first := places[line.digest]) is not line:
        return f"{FILE}, {line.name}, is a copy of line {first.number}"
    if (follows := places.get(line.before)) is not None:
        if follows.number < before.number:
            many = f"lines {follows.number + 1} to {before.number}, were"
            what = many if before.number > follows.number + 1 else f"{before.name}, was"
            return f"{FILE}, {what} put in: line {line.number} follows line {follows.number}"
        return f"{FILE}, {line.name}, is out of order: it follows line {follows.number}"
    if before.signed:
        if not line.signed:
            return None  # its signature has told that it was changed
        return f"{FILE}: lines are missing between line {before.number} and line {line.number}"
    names = f"line {line.number} names another digest"
    if line.resumed is not None:
        return f"{FILE}, {before.name}, was changed, or lines behind it are missing: {names}"
    if suspect:
        return (
            f"{FILE}, {before.name}, was changed, or line {line.number} itself, which names another digest"
        )
    return f"{FILE}, {before.name}, was changed: {names}"


def _moved(before: Line, line: Line) -> bool:
    return (
        not line.updated
        and None not in (before.parameters, line.parameters)
        and (before.parameters != line.parameters)
    )


def end_problem(lines: Sequence[Line], count: int, digest: str, witness: str) -> str | None:
    """What is wrong with a place in a record that another file tells; None if nothing is.

    Args:
        lines: of the record.
        count: the number of lines at that place.
        digest: of the last of them.
        witness: the file, as a sentence names it.
    """
    if len(lines) < count:
        what = "a line is" if count - len(lines) == 1 else f"{count - len(lines)} lines are"
        ends = f"it ends with {lines[-1].name}" if lines else "it is empty"
        return f"{FILE}: {what} missing: {ends}, and {witness} names line {count}"
    if count and lines[count - 1].digest != digest:
        return f"{FILE}, {lines[count - 1].name}, was changed: {witness} names another digest"
    return None


def repetitions(lines: Sequence[Line]) -> Iterator[str]:
    """Each start of a run that went on, and whether the rounds that it did again came out as before."""
    valid: dict[int, Line] = {}
    for at, line in enumerate(lines):
        if line.resumed is not None:
            again = [round for round in valid if round >= line.round]
            yield _repetition(line, valid, _since(lines, at), again)
            for round in again:
                del valid[round]
        valid[line.round] = line


def _since(lines: Sequence[Line], at: int) -> dict[int, Line]:
    """The rounds of one start."""
    found: dict[int, Line] = {}
    for line in lines[at:]:
        if found and line.resumed is not None:
            break
        found[line.round] = line
    return found


def _repetition(
    line: Line, valid: Mapping[int, Line], since: Mapping[int, Line], again: Sequence[int]
) -> str:
    told = line.resumed or {}
    mended = told.get("mended")
    cut = f", and cut off {mended} bytes of a line that was not whole" if mended else ""
    went = f"the run went on with round {line.round} in line {line.number}{cut}"
    both = [round for round in again if round in since]
    if not both:
        return went
    other = next((round for round in both if valid[round].parameters != since[round].parameters), None)
    rounds = f"round {both[0]} was" if len(both) == 1 else f"rounds {both[0]} to {both[-1]} were"
    how = "the same parameters" if other is None else f"others from round {other} on"
    return f"{went}; {rounds} done twice, with {how}"
