"""Certificates: whose they are, for how long and for which names, who can read the key, and revocation."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from varangian.cli.commands.doctor.finding import Finding, fail, passed
from varangian.pki.authority import HOME, SERVER
from varangian.protos.identity.bundle import (
    CERTIFICATE,
    KEY,
    REVOKED,
    Bundle,
    BundleError,
    Role,
    find_bundle,
)
from varangian.protos.identity.revocation import fingerprint, parse_fingerprints
from varangian.protos.network.address import EVERYWHERE

SOON = 3.0
"""Days before the end from which a certificate should be renewed."""
DAY = 86400.0
LISTS = (REVOKED, f"../{SERVER}/{REVOKED}", f"../{HOME}/{REVOKED}")
"""Places of lists of revoked certificates, relative to a bundle."""
SHOWN = 5
"""Names in a sentence."""
RENEW = "Renew it with `varangian certs issue --force`."


def bundles_in(path: Path) -> list[Path]:
    """The bundle itself, or all of those in a directory; the authority beside them is none."""
    if (path / CERTIFICATE).is_file():
        return [path]
    found = (inner.parent for inner in path.glob(f"*/{CERTIFICATE}"))
    return sorted(folder for folder in found if folder.name != HOME)


def check_certificates(
    path: Path, names: Sequence[str] | None = None, hosts: Sequence[str] = ()
) -> tuple[list[Finding], Bundle | None]:
    """The findings about a bundle, or about all bundles in a directory, and the one to connect with.

    Args:
        path: of the bundle or the directory.
        names: of the workers of the run; None where it is not known.
        hosts: names under which a server is to be reached.
    """
    folders = bundles_in(path)
    try:
        if not folders:
            find_bundle(path, SERVER)  # which says what should be there
    except BundleError as error:
        return [fail("certificate", str(error))], None
    good, findings = list[Bundle](), list[Finding]()
    for folder in folders:
        try:
            good.append(Bundle.load(folder))
        except (BundleError, OSError) as error:
            findings.append(fail("certificate", str(error)))
    if not good:
        return findings, None
    if len(folders) == 1:
        findings += _each(good[0])
    else:
        findings += _together(path, good)
    findings += _names(good, names, hosts)
    return findings, next((bundle for bundle in good if bundle.role is Role.SERVER), good[0])


def _each(bundle: Bundle) -> Iterator[Finding]:
    yield check_identity(bundle)
    yield check_expiry(bundle)
    yield check_standing(bundle)
    yield check_secrecy(bundle)


def _together(path: Path, bundles: Sequence[Bundle]) -> Iterator[Finding]:
    """One line for what all of them have, and one for each that has not."""
    clusters = {bundle.cluster for bundle in bundles}
    if len(clusters) > 1:
        yield fail(
            "certificate",
            f"{path} should have bundles of one authority. Found {len(clusters)}: "
            f"{_some(f'{bundle.name} of {bundle.cluster[:8]}' for bundle in bundles)}",
            "Issue all of them from one authority.",
        )
    else:
        who = _some(f"{bundle.role.value} {bundle.name}" for bundle in bundles)
        yield passed(
            "certificate", f"{len(bundles)} bundles in {path}: {who}, of cluster {bundles[0].cluster}"
        )
    for check in (check_expiry, check_standing, check_secrecy):
        found = [(bundle, check(bundle)) for bundle in bundles]
        bad = [
            Finding(one.what, one.result, f"{bundle.name}: {one.sentence}", one.todo)
            for bundle, one in found
            if not one.passed
        ]
        yield from bad
        if not bad:
            first, one = min(found, key=lambda pair: pair[0].ends)
            yield passed(one.what, f"all {len(bundles)}; the first, {first.name}: {one.sentence}")


def check_identity(bundle: Bundle) -> Finding:
    hosts = f" for {', '.join(bundle.hosts)}" if bundle.hosts else ""
    who = f"the {bundle.role.value} {bundle.name}{hosts}, of cluster {bundle.cluster}"
    return passed("certificate", f"{bundle.path}: {who}")


def check_expiry(bundle: Bundle) -> Finding:
    days = (bundle.ends - time.time()) / DAY
    found = f"in {days:.1f} days, on {time.strftime('%Y-%m-%d', time.gmtime(bundle.ends))}"
    return fail("expiry", f"{found}.", RENEW) if days < SOON else passed("expiry", found)


def check_secrecy(bundle: Bundle) -> Finding:
    key = bundle.path / KEY
    try:
        mode = stat.S_IMODE(key.stat().st_mode)
    except OSError as error:
        return fail("key", f"{key} should be readable by its owner. The system says: {error.strerror}.")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        found = f"{key} should be readable by its owner only. Found mode {mode:o};"
        return Finding("key", "FAIL", f"{found} chmod 600 {key}.")
    return passed("key", f"readable by its owner only, mode {mode:o}")


def check_standing(bundle: Bundle) -> Finding:
    """Whether a list of revoked certificates that lies here has this one on it."""
    mark, read = fingerprint(bundle.certificate), list[str]()
    for path in dict.fromkeys(bundle.path / place for place in LISTS):
        try:
            listed = mark in parse_fingerprints(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            return fail("revocation", f"{path} should be a list of revoked certificates: {error}")
        if listed:
            fix = f"Issue it again: varangian certs issue DIR {bundle.name} --force."
            return fail("revocation", f"{path} says that this certificate is revoked.", fix)
        read.append(str(path))
    found = f"not on {' or '.join(read)}" if read else "no list of revoked certificates lies here"
    return passed("revocation", found)


def _names(
    bundles: Sequence[Bundle], names: Sequence[str] | None, hosts: Sequence[str]
) -> Iterator[Finding]:
    """Whether the names on certificates are those of the run and of the server."""
    workers = [bundle.name for bundle in bundles if bundle.role is Role.WORKER]
    if names is not None:
        strange = [name for name in workers if name not in names]
        if strange:
            yield fail(
                "names",
                f"{_some(strange)} should be among the workers of the run: {_some(names)}",
                "Correct `workers` in the settings, or issue a certificate for one of these names.",
            )
        elif workers:
            yield passed("names", f"the run has {_some(workers)}")
    for bundle in bundles:
        if bundle.role is Role.SERVER:
            yield from (_host(bundle, host) for host in hosts if host != EVERYWHERE)


def _host(bundle: Bundle, host: str) -> Finding:
    if any(_covers(name, host) for name in bundle.hosts):
        return passed("names", f"the server's certificate is for {host}")
    return fail(
        "names",
        f"{bundle.path / CERTIFICATE} should be for {host}, as workers will call it. Found "
        f"{', '.join(bundle.hosts) or 'no name'}.",
        f"`varangian certs issue DIR --server {host} --force`.",
    )


def _covers(name: str, host: str) -> bool:
    """Whether a name on a certificate stands for a host; `*.` is one label."""
    return name == host or (name.startswith("*.") and name[1:] == host[host.find(".") :] and "." in host)


def _some(names: Iterator[str] | Sequence[str]) -> str:
    found = list(names)
    rest = len(found) - SHOWN
    return ", ".join(found[:SHOWN]) + (f" and {rest} others" if rest > 0 else "")
