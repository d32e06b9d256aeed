"""Certificate authority of a cluster: issues certificates and revokes them.

DIR/authority/cert.pem   the authority itself, which every bundle carries as ca.pem
DIR/authority/key.pem    its private key; whoever has it can pose as anybody
DIR/authority/issued     one line of JSON for each certificate
DIR/authority/revoked    fingerprints of revoked certificates
DIR/NAME/                a bundle for each program; see `varangian.protos.identity.bundle`. Without
                         key.pem where the key was made on the machine that uses it
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from varangian.files import write_atomically
from varangian.pki import x509
from varangian.protos.identity.bundle import CA, CERTIFICATE, KEY, NAME, REQUEST, REVOKED, Role
from varangian.protos.identity.revocation import fingerprint, parse_fingerprints
from varangian.protos.text import escape

HOME, ISSUED = "authority", "issued"
PRIVATE, PUBLIC, FOLDER = 0o600, 0o644, 0o700
SERVER = "server"
"""The name of a server's bundle, unless it is given another."""
DAY = 86400.0
PREFIX = 16
"""The fewest digits of a fingerprint that stand for all of them."""
DIGITS = re.compile(r"[0-9a-f]{1,64}")


NOTHING_REVOKED = b"# fingerprints of revoked certificates, one a line\n"
"""A list without a fingerprint. It is not empty, as some engines take no empty file."""


class AuthorityError(ValueError):
    """A certificate cannot be made or revoked; the sentence is for the operator."""


@dataclass(frozen=True)
class Issued:
    """A certificate in the register of the authority."""

    name: str
    role: str
    fingerprint: str
    """SHA-256 of the certificate."""
    begins: float
    ends: float
    bundle: str
    """The directory of its bundle."""


class Authority:
    """An authority, in a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.home = path / HOME
        if not (self.home / KEY).is_file():
            raise AuthorityError(
                f"{path} should be an authority. Found no {HOME}/{KEY} in it. "
                f"Make one: varangian certs init {path}"
            )

    @classmethod
    def create(cls, path: Path, days: float) -> Authority:
        """Make an authority.

        Raises:
            AuthorityError: there is one already; its certificates would count no longer.
        """
        if (path / HOME / KEY).exists():
            raise AuthorityError(
                f"{path} should not be an authority yet. Found {HOME}/{KEY}, without which every bundle "
                "that it signed would be worthless. Choose another directory."
            )
        made = x509.make_authority(days)
        home = path / HOME
        home.mkdir(mode=FOLDER, parents=True, exist_ok=True)
        write_atomically(home / REVOKED, NOTHING_REVOKED, PUBLIC)
        write_atomically(home / CERTIFICATE, made.certificate, PUBLIC)
        write_atomically(home / KEY, made.key, PRIVATE)
        return cls(path)

    def issue(
        self,
        name: str,
        role: Role,
        *,
        hosts: Iterable[str] = (),
        days: float,
        into: Path | None = None,
        force: bool = False,
        request: bytes | None = None,
        revoke_old: bool = False,
    ) -> Issued:
        """Make a bundle.

        Args:
            name: of its holder.
            role: what its holder may do.
            hosts: where a server is reached.
            days: until it expires.
            into: the folder of the bundle's folder.
            force: replace a bundle that exists.
            request: from a holder that keeps its key; the bundle is made without one.
            revoke_old: then revoke every other certificate of that name.

        Raises:
            AuthorityError: it exists, cannot be named so, or the request cannot be signed.
        """
        check_name(name)
        bundle = (into or self.path) / name
        if bundle.exists() and not force:
            raise AuthorityError(
                f"{bundle} should not exist yet. Add --force to replace it; the old certificate counts "
                "until it expires or is revoked."
            )
        signer = x509.Credentials((self.home / CERTIFICATE).read_bytes(), (self.home / KEY).read_bytes())
        try:
            made = x509.make_certificate(signer, role, name, tuple(hosts), days, request)
        except x509.RequestError as error:
            raise AuthorityError(f"The request {error}.") from None
        digest, where = fingerprint(made.certificate), str(bundle.absolute())
        issued = Issued(name, role.value, digest, *made.dates, where)
        # First the register: a certificate that nobody knows of could never be revoked.
        with (self.home / ISSUED).open("a", encoding="utf-8") as register:
            register.write(json.dumps(asdict(issued)) + "\n")
            register.flush()
            os.fsync(register.fileno())
        files = {CA: signer.certificate, CERTIFICATE: made.certificate}
        if made.key:
            files[KEY] = made.key
        if role is Role.SERVER:
            files[REVOKED] = (self.home / REVOKED).read_bytes()
        _replace_bundle(bundle, files)
        if revoke_old:
            self._revoke([one for one in self._not_revoked(name) if one.fingerprint != digest])
        return issued

    def cluster(self) -> str:
        """The id of the authority, which every certificate names."""
        return x509.cluster_id((self.home / CERTIFICATE).read_bytes())

    def issued(self) -> list[Issued]:
        """Every certificate that was ever made, oldest first.

        Raises:
            AuthorityError: the list of them is damaged.
        """
        try:
            lines = (self.home / ISSUED).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        try:
            return [Issued(**json.loads(line)) for line in lines]
        except (TypeError, ValueError, RecursionError) as error:
            raise AuthorityError(
                f"{self.home / ISSUED} should have one certificate in each line, as JSON. "
                f"Reading it says: {escape(str(error))}."
            ) from None

    def revoked(self) -> frozenset[str]:
        """Fingerprints of the revoked certificates."""
        return parse_fingerprints((self.home / REVOKED).read_text(encoding="utf-8"))

    def revoke(self, name: str) -> tuple[list[Issued], list[Path]]:
        """Revoke every certificate of a name; returns them, and the lists of servers that were updated.

        If they were revoked before, and a server was not reached, it is reached now.

        Raises:
            AuthorityError: no certificate of that name counts, or a list could not be written.
        """
        found = self._not_revoked(name)
        if found:
            return found, self._revoke(found)
        known = [one for one in self.issued() if one.name == name]
        updated = self._publish() if known else []
        if not updated:
            raise AuthorityError(f"{name!r:.100} should have a certificate that counts. Found none.")
        return known, updated

    def revoke_one(self, digits: str) -> tuple[Issued, list[Path]]:
        """Revoke one certificate, by its fingerprint or the first digits of it.

        Raises:
            AuthorityError: there is no such certificate, or it counts no longer, or there are several; or a
                list could not be written.
        """
        wanted = digits.replace(":", "").lower()
        if not DIGITS.fullmatch(wanted) or len(wanted) < PREFIX:
            raise AuthorityError(
                f"A fingerprint should be {PREFIX} to 64 hexadecimal digits, as `varangian certs list` "
                f"shows it. Found {digits!r:.100}."
            )
        found = [one for one in self._not_revoked() if one.fingerprint.startswith(wanted)]
        known = [one for one in self.issued() if one.fingerprint.startswith(wanted)]
        if not found and len(known) == 1 and (updated := self._publish()):
            return known[0], updated
        if len(found) != 1:
            many = f"{len(found)} of them" if found else "none"
            raise AuthorityError(
                f"One certificate that counts should have the fingerprint {digits:.100}. Found {many}."
            )
        return found[0], self._revoke(found)

    def _not_revoked(self, name: str | None = None) -> list[Issued]:
        """Certificates, of everybody or of one name, that were not revoked."""
        revoked = self.revoked()
        return [
            one
            for one in self.issued()
            if one.fingerprint not in revoked and (name is None or one.name == name)
        ]

    def _revoke(self, found: Iterable[Issued]) -> list[Path]:
        listed = (self.home / REVOKED).read_text(encoding="utf-8")
        lines = "".join(f"{one.fingerprint}  {one.name}\n" for one in found)
        write_atomically(self.home / REVOKED, (listed + lines).encode(), PUBLIC)
        return self._publish()

    def _publish(self) -> list[Path]:
        """Copy the list to every server's bundle on this machine that has another one; returns which.

        Raises:
            AuthorityError: one of them could not be written, and the others were.
        """
        content = (self.home / REVOKED).read_bytes()
        updated, failures = list[Path](), list[str]()
        for bundle in sorted({one.bundle for one in self.issued() if one.role == Role.SERVER.value}):
            path = Path(bundle) / REVOKED
            try:
                if path.parent.is_dir() and not (path.exists() and path.read_bytes() == content):
                    write_atomically(path, content, PUBLIC)
                    updated.append(path)
            except OSError as error:
                failures.append(f"{path}: {error.strerror}")
        if failures:
            raise AuthorityError(
                f"The list of revoked certificates should reach every server. Found {'; '.join(failures)}. "
                f"It is complete in {self.home / REVOKED}; give the same command again."
            )
        return updated


def check_name(name: str) -> None:
    """Raise AuthorityError unless a certificate may have this name, which is that of a folder, too."""
    if not NAME.fullmatch(name) or name == HOME:
        raise AuthorityError(
            f"A name should be letters, digits, '.', '_' and '-', at most 63, and not {HOME!r}. "
            f"Found {name!r:.100}."
        )


def request_certificate(folder: Path, name: str) -> tuple[bool, str]:
    """Make a key where it is used, and a request for the authority beside it; an existing key is kept.

    Returns:
        Whether there is a new key, and the fingerprint of its public part.

    Raises:
        AuthorityError: it cannot be named so, or the key that is there cannot be used.
    """
    check_name(name)
    x509.require()
    folder.mkdir(mode=FOLDER, parents=True, exist_ok=True)
    try:
        key, fresh = (folder / KEY).read_bytes(), False
    except FileNotFoundError:
        key, fresh = x509.make_key(), True
    try:
        request = x509.make_request(key, name)
    except x509.RequestError as error:
        raise AuthorityError(f"{folder / KEY} {error}.") from None
    if fresh:
        write_atomically(folder / KEY, key, PRIVATE)
    write_atomically(folder / REQUEST, request, PUBLIC)
    return fresh, x509.key_fingerprint(request)


def days_left(one: Issued) -> float:
    """Days until a certificate expires; negative afterwards."""
    return (one.ends - time.time()) / DAY


def _replace_bundle(bundle: Path, files: Mapping[str, bytes]) -> None:
    """A bundle appears whole: a certificate beside the key of another would be of no use."""
    bundle.parent.mkdir(parents=True, exist_ok=True)
    place = tempfile.TemporaryDirectory(
        dir=bundle.parent, prefix=f".{bundle.name}.", ignore_cleanup_errors=True
    )
    with place as scratch:
        fresh = Path(scratch) / "new"
        fresh.mkdir(mode=FOLDER)
        for name, content in files.items():
            write_atomically(fresh / name, content, PRIVATE)
        if bundle.exists():
            bundle.rename(Path(scratch) / "old")
        fresh.rename(bundle)
