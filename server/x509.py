"""Keys and certificates; the only place that needs the package `cryptography`."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING

from varangian.protos.bundle import Role, identity_uri

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

LEEWAY = timedelta(minutes=5)
"""Clocks differ: a certificate is valid a little before it was made."""
LOCAL = ("localhost", "127.0.0.1", "::1")
"""A server is asked for its health from its own machine."""


class MissingExtra(ImportError):
    """`cryptography` is not installed."""


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, in PEM."""

    certificate: bytes
    key: bytes
    dates: tuple[float, float] = (0.0, 0.0)
    """Seconds since 1970 between which it is valid."""

    def __repr__(self) -> str:
        return "Pair(...)"


def require() -> None:
    """Find out early whether certificates can be made.

    Raises:
        MissingExtra: with what to install.
    """
    if find_spec("cryptography") is None:
        raise MissingExtra(
            "making certificates needs the package `cryptography`: pip install 'varangian[certs]'"
        )


def authority(days: float) -> Pair:
    """A new authority, on the curve P-256."""
    require()
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    # A name of its own: the error of a foreign certificate then is "unknown issuer", not "bad signature".
    mark = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()[:12]
    name = _name(f"Varangian authority {mark}", None)
    builder = (
        _builder(name, name, key, key, days)
        .add_extension(x509.BasicConstraints(True, 0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
    )
    return _signed(builder, key, key)


def leaf(signer: Pair, role: Role, name: str, hosts: tuple[str, ...], days: float) -> Pair:
    """A certificate for one program, never valid for longer than its authority."""
    require()
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509.oid import ExtendedKeyUsageOID as Use

    parent = x509.load_pem_x509_certificate(signer.certificate)
    signing = load_pem_private_key(signer.key, None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity_uri(role, name))]
    uses = [Use.CLIENT_AUTH]
    if role is Role.SERVER:
        names += [_host(host) for host in dict.fromkeys((*hosts, *LOCAL))]
        uses.append(Use.SERVER_AUTH)
    builder = _builder(_name(name, role), parent.subject, key, signing, days, parent.not_valid_after_utc)
    builder = (
        builder.add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    return _signed(builder, key, signing)


def _name(name: str, role: Role | None) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    unit = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role.value)] if role else []
    return x509.Name([*unit, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: EllipticCurvePrivateKey,
    signing: EllipticCurvePrivateKey,
    days: float,
    latest: datetime | None = None,
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(UTC)
    ends = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, ends) - LEEWAY)
        .not_valid_after(min(ends, latest) if latest else ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False
        )
    )


def _signed(
    builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey, signing: EllipticCurvePrivateKey
) -> Pair:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    certificate = builder.sign(signing, hashes.SHA256())
    dates = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return Pair(
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        (dates[0].timestamp(), dates[1].timestamp()),
    )
