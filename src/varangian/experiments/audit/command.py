"""`varangian audit`: check the records of runs, and print what was found of each."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from varangian.cli.main import FAILED, OK, CommandError
from varangian.cli.views.terminal import NOTE, printable
from varangian.experiments.audit.chain_check import (
    FILE,
    Line,
    Signatures,
    Verifies,
    end_problem,
    is_chained,
    problems,
    read_lines,
    repetitions,
    torn,
)
from varangian.experiments.audit.difference import circumstances, first_difference
from varangian.experiments.audit.replay import replay
from varangian.experiments.results.run import CONFIG, MANIFEST, ROUNDS, ResultsError, Run
from varangian.files import user_path
from varangian.launch.checkpoints.folder import CheckpointFolder
from varangian.launch.output.chain import beginning, digest
from varangian.launch.output.saved_model import load_parameters
from varangian.launch.result import RunError
from varangian.pki.signing import Verifier, can_sign
from varangian.protos.identity.bundle import Role
from varangian.protos.payloads.encoding import payload_digest
from varangian.registry import ConfigError
from varangian.state_file import StateFileError

SHOWN = 20
"""Most problems of one run that are printed."""
INSTALL = "pip install 'varangian[certs]'"


@dataclass
class Findings:
    """The findings about one run."""

    problems: list[str] = field(default_factory=list[str])
    facts: list[str] = field(default_factory=list[str])


def command(args: argparse.Namespace) -> int:
    """Check each run; the exit code says whether all is as it was written."""
    authority = None if args.ca is None else _authority(args.ca)
    good = True
    for number, path in enumerate(args.runs):
        if number:
            print()
        findings = audit(user_path(path), authority, recompute=args.recompute)
        if args.against is not None:
            _compare(Run(user_path(path)), Run(user_path(args.against)), args.against, findings)
        _print(path, findings)
        good = good and not findings.problems
    return OK if good else FAILED


def audit(folder: Path, authority: bytes | None = None, *, recompute: bool = False) -> Findings:
    """What is to be found in a run folder.

    Args:
        folder: of the run.
        authority: certificates of authorities in PEM, one of which should have signed that of the server.
        recompute: compute rounds again from kept rows. That imports code of the user that is configured.

    Raises:
        CommandError: it is no folder of a run, or cannot be read.
    """
    try:
        documents = (folder / CONFIG).read_bytes(), (folder / MANIFEST).read_bytes()
        signatures = Signatures(_Certified(authority)) if can_sign() else None
        with (folder / ROUNDS).open("rb") as file:
            lines = read_lines(file, signatures)
    except OSError as error:
        what = f"{Path(error.filename or '').name}: {error.strerror}"
        raise CommandError(f"{folder} should be the folder of a run. {what}") from error
    found = Findings()
    run = Run(folder)
    if (last := torn(lines)) is not None:
        lines = lines[:-1]
        where = found.facts if run.running else found.problems
        where.append(
            f"{FILE}, line {last.number}, was not written to its end; a run that goes on cuts it off"
        )
    if not is_chained(lines):
        _check_form(lines, found)
        return found
    found.problems.extend(problems(lines, beginning(*documents), _lost(run)))
    found.problems.extend(_witnessed(folder, run, lines, bool(found.problems)))
    found.problems.extend(_settings(folder, lines))
    found.facts.append(_extent(lines))
    _check_signatures(signatures, lines, authority, found)
    found.facts.extend(repetitions(lines))
    _check_model(folder, run, lines, found)
    if recompute:
        _recompute(folder, run, lines, found)
    return found


def _compare(run: Run, other: Run, name: str, found: Findings) -> None:
    """See whether a run has the bits of another one.

    Raises:
        CommandError: the other one cannot be read.
    """
    try:
        difference = first_difference(run, other)
        if difference is None:
            found.facts.append(f"all rounds have the same bits as those of {name}")
            return
        found.problems.append(f"not the bits of {name}: {difference}")
        found.facts.extend(circumstances(run, other))
    except ResultsError as error:
        raise CommandError(f"--against {name}: {error}") from error


def _print(path: str, findings: Findings) -> None:
    print(printable(str(path), NOTE))
    for text in findings.facts:
        print(f"  {printable(text, NOTE)}")
    for text in findings.problems[:SHOWN]:
        print(f"  PROBLEM: {printable(text, NOTE)}")
    if len(findings.problems) > SHOWN:
        print(f"  PROBLEM: and {len(findings.problems) - SHOWN} more")


def _check_form(lines: list[Line], found: Findings) -> None:
    """A record of an earlier version: only its form can be checked."""
    if not lines:
        found.facts.append(f"{FILE} has no line yet")
        return
    checked = f"only the form of its {len(lines)} lines was checked"
    found.facts.append(f"{FILE} has no chain: an earlier version wrote it, so {checked}")
    bad = (line for line in lines if line.round < 0)
    found.problems.extend(f"{FILE}, {line.name}, should be the record of a round" for line in bad)


def _extent(lines: list[Line]) -> str:
    rounds = len({line.round for line in lines})
    first = next(line for line in lines if line.before is not None or line.known)
    free = f"; the first {first.number - 1} have no chain, as an earlier version wrote them"
    what = f"{len(lines)} lines of {rounds} rounds" + (free if first.number > 1 else "")
    return f"{what}; the digest of the last line is {lines[-1].digest}"


def _lost(run: Run) -> int:
    """Lines that could not be written until the end of a run, as its result says."""
    with contextlib.suppress(ResultsError):  # which is told elsewhere
        match (run.result or {}).get("record"):
            case {"lost": int(lost)}:
                return lost
            case _:
                pass
    return 0


def _witnessed(folder: Path, run: Run, lines: list[Line], broken: bool) -> Iterator[str]:
    """What the result and the checkpoints know of the record that is different now."""
    if broken:
        return  # the places of lines are not what they were, and what is wrong is named already
    told: list[tuple[str, Any]] = []
    with contextlib.suppress(ResultsError):  # which is told elsewhere
        if run.result is not None:
            told.append(("result.json", run.result.get("record")))
    told.extend((f"checkpoints/{name}", known) for name, known in _checkpoints(folder))
    places: list[tuple[int, str, str]] = []
    for witness, known in told:
        match known:
            case {"lines": int(count), "digest": str(expected)}:
                places.append((count, expected, witness))
            case _:
                pass
    for place in sorted(places, key=lambda place: place[0]):
        if (sentence := end_problem(lines, *place)) is not None:
            yield sentence
            return


def _checkpoints(folder: Path) -> Iterator[tuple[str, Any]]:
    """The names of the checkpoints that can be read, and the place in the record that each tells."""
    checkpoints = CheckpointFolder(folder)
    for round in sorted(checkpoints.rounds()):
        with contextlib.suppress(StateFileError, OSError):
            yield checkpoints.file(round).name, checkpoints.head(round).get("record")


def _settings(folder: Path, lines: list[Line]) -> Iterator[str]:
    """Settings with which a run went on, that are not those of its record any more."""
    for line in lines:
        for name, expected in line.configs.items():
            try:
                changed = digest((folder / name).read_bytes()) != expected
            except OSError:
                yield f"{name} is missing, with which the run went on in {line.name}"
                continue
            if changed:
                yield f"{name} was changed: {FILE}, {line.name}, names another digest"


def _check_signatures(
    signatures: Signatures | None, lines: list[Line], authority: bytes | None, found: Findings
) -> None:
    if signatures is None:
        found.facts.append(f"signatures were not checked: that needs {INSTALL}")
        return
    if not signatures.certificates:
        if authority is not None:
            found.problems.append(f"{FILE} is not signed")
        else:
            found.facts.append(f"{FILE} is not signed: whoever could write it could make up all of it")
        return
    first = signatures.certificates[0][0]
    if missing := [number for number in signatures.unsigned if number >= first]:
        many = f"line {missing[0]} has" if len(missing) == 1 else f"{len(missing)} lines have"
        found.problems.append(f"{FILE}: {many} no signature, line {missing[0]} the first of them")
    if authority is not None and first > 1:
        found.problems.append(f"{FILE}: the first {first - 1} lines have no signature")
    for number, certificate in signatures.certificates:
        said = _describe(certificate, authority)
        (found.facts if said.good else found.problems).append(f"{FILE}, line {number}, {said.text}")


@dataclass(frozen=True)
class _Said:
    text: str
    good: bool = True


def _describe(certificate: str, authority: bytes | None) -> _Said:
    """What a certificate says of its holder, and who made it."""
    verifier = _verifier(certificate)
    holder = None if verifier is None else verifier.holder
    if verifier is None or holder is None or holder.role is not Role.SERVER:
        return _Said("has a certificate that is not that of a server", False)
    name = f"and those behind it are signed by the server {holder.name} of the cluster {holder.cluster}"
    if authority is None:
        return _Said(f"{name}; --ca FILE checks whether that is your authority")
    if not verifier.is_issued_by(authority):
        return _Said("has a certificate that the authority of --ca has not made", False)
    return _Said(f"{name}, as the authority of --ca certifies")


class _Certified:
    """Keys of certificates of servers; with an authority, of those that it has made."""

    def __init__(self, authority: bytes | None) -> None:
        self._authority = authority

    def __call__(self, certificate: str) -> Verifies | None:
        verifier = _verifier(certificate)
        if verifier is None or not _describe(certificate, self._authority).good:
            return None
        return verifier


def _verifier(certificate: str) -> Verifier | None:
    try:
        return Verifier(certificate)
    except ValueError:
        return None


def _check_model(folder: Path, run: Run, lines: list[Line], found: Findings) -> None:
    """Whether the saved parameters are those with which the record ends."""
    try:
        result = run.result
    except ResultsError as error:
        found.problems.append(str(error))
        return
    if result is None:
        return
    try:
        payload = load_parameters(folder).contiguous().numpy().data
    except RunError as error:
        found.facts.append(f"the saved model was not checked: {error}")
        return
    if hashlib.blake2b(payload, digest_size=16).hexdigest() != result.get("digest"):
        found.problems.append("parameters.safetensors was changed: result.json names another digest")
    elif found.problems or not lines:
        return  # what the last line is, is not known
    elif lines[-1].parameters not in (None, payload_digest(payload.cast("B")).hex()):
        found.problems.append(f"parameters.safetensors is not that of {lines[-1].name} of {FILE}")
    else:
        found.facts.append("parameters.safetensors is that of the last line")


def _recompute(folder: Path, run: Run, lines: list[Line], found: Findings) -> None:
    """Compute rounds again, if their records can be read."""
    try:
        records = {record["round"]: record for record in run.records()}
        done = replay(folder, lines, records, run.manifest)
    except (ResultsError, ConfigError) as error:
        found.problems.append(f"no round was recomputed: {error}")
        return
    found.problems.extend(done.problems)
    found.facts.extend(done.left_out)
    if done.rounds:
        first, last = done.rounds[0], done.rounds[-1]
        which = f"round {first}" if first == last else f"{len(done.rounds)} rounds, {first} to {last}"
        found.facts.append(f"{which}: recomputed from kept rows, the same bits")
    elif not done.problems:
        found.facts.append("no rows were kept: server.keep_rows=10 keeps those of the last ten rounds")


def _authority(path: str) -> bytes:
    if not can_sign():
        raise CommandError(f"--ca needs the package `cryptography`: {INSTALL}")
    from cryptography import x509

    try:
        content = user_path(path).read_bytes()
        x509.load_pem_x509_certificates(content)
    except OSError as error:
        raise CommandError(f"--ca {path} should be readable: {error.strerror}") from error
    except ValueError as error:
        raise CommandError(f"--ca {path} should hold certificates in PEM, as ca.pem of a bundle") from error
    return content
