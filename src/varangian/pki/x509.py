"""X.509: keys, certificates and requests, made with the package `cryptography`."""

from __future__ import annotations

import hashlib
import ipaddress
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING

from varangian.protos.identity.bundle import Role, identity_uri

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

LEEWAY = timedelta(minutes=5)
"""A certificate is valid from a little before it is made, as clocks differ."""
LOCAL = ("localhost", "127.0.0.1", "::1")
"""Names of the machine itself, for health checks of a server."""


LARGEST_REQUEST = 1 << 16
"""Bytes of a request at most."""


class RequestError(ValueError):
    """A request cannot be signed, or cannot be made; the text continues a sentence about a file."""


class MissingExtra(ImportError):
    """`cryptography` is not installed."""


@dataclass(frozen=True)
class Credentials:
    """A certificate and its private key, in PEM."""

    certificate: bytes
    key: bytes
    """Empty where the key is on another machine."""
    dates: tuple[float, float] = (0.0, 0.0)
    """Seconds since 1970 between which it is valid."""

    def __repr__(self) -> str:
        return "Credentials(...)"


def require() -> None:
    """Check that certificates can be made here.

    Raises:
        MissingExtra: they cannot; the text says what to install.
    """
    if find_spec("cryptography") is None:
        raise MissingExtra(
            "making certificates needs the package `cryptography`: pip install 'varangian[certs]'"
        )


def make_authority(days: float) -> Credentials:
    """Make an authority, with a key on the curve P-256."""
    require()
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    # A name of its own: the error of a foreign certificate then is "unknown issuer", not "bad signature".
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()[:12]
    name = _name(f"Varangian authority {key_id}", None)
    builder = (
        _builder(name, name, key.public_key(), key, days)
        .add_extension(x509.BasicConstraints(True, 0), critical=True)
        .add_extension(_key_usage(signs=True), critical=True)
    )
    return _sign(builder, key, key)


def cluster_id(certificate: bytes) -> str:
    """The id of an authority: the beginning of SHA-256 of its public key."""
    require()
    from cryptography import x509

    return _fingerprint(x509.load_pem_x509_certificate(certificate).public_key())[:32]


def make_certificate(
    signer: Credentials,
    role: Role,
    name: str,
    hosts: tuple[str, ...],
    days: float,
    request: bytes | None = None,
) -> Credentials:
    """Make a certificate for one program, never valid for longer than its authority.

    Args:
        signer: the authority.
        role: what its holder may do.
        name: of the holder; a name in the request is ignored.
        hosts: where a server is reached.
        days: until it expires.
        request: of a holder that has a key, in PEM; None makes a key.

    Raises:
        RequestError: the request is none, or not that of the key's owner.
    """
    require()
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509.oid import ExtendedKeyUsageOID as Use

    parent = x509.load_pem_x509_certificate(signer.certificate)
    signing = load_pem_private_key(signer.key, None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1()) if request is None else None
    public = key.public_key() if key is not None else _key_of_request(request or b"")
    uri = identity_uri(cluster_id(signer.certificate), role, name)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
    uses = [Use.CLIENT_AUTH]
    if role is Role.SERVER:
        names += [_host(host) for host in dict.fromkeys((*hosts, *LOCAL))]
        uses.append(Use.SERVER_AUTH)
    builder = _builder(_name(name, role), parent.subject, public, signing, days, parent.not_valid_after_utc)
    builder = (
        builder.add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(_key_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    return _sign(builder, key, signing)


def make_key() -> bytes:
    """Make a private key on the curve P-256, in PEM."""
    require()
    from cryptography.hazmat.primitives.asymmetric import ec

    return _private_pem(ec.generate_private_key(ec.SECP256R1()))


def make_request(key: bytes, name: str) -> bytes:
    """Make a certificate signing request (PKCS #10) with a key, in PEM.

    Raises:
        RequestError: the key cannot be used.
    """
    require()
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    try:
        loaded = load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        raise RequestError(f"should be a private key in PEM without a password: {error}") from None
    if not isinstance(loaded, ec.EllipticCurvePrivateKey) or not isinstance(loaded.curve, ec.SECP256R1):
        raise RequestError("should be a key on the curve P-256. Found one of another kind")
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(name, None))
    return builder.sign(loaded, hashes.SHA256()).public_bytes(Encoding.PEM)


def key_fingerprint(request: bytes) -> str:
    """SHA-256 of the public key in a request, for two people to compare.

    Raises:
        RequestError: the request is none, or not that of the key's owner.
    """
    require()
    return _fingerprint(_key_of_request(request))


def name_of_request(request: bytes) -> str:
    """The common name in a request; empty where it has none, or several.

    Raises:
        RequestError: the request is none, or not that of the key's owner.
    """
    require()
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    _key_of_request(request)
    names = x509.load_pem_x509_csr(request).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def check_answer(certificate: bytes, request: bytes, authorities: bytes, uri: str) -> None:
    """Check that a certificate answers a request.

    Args:
        certificate: in PEM.
        request: for which it was made, in PEM.
        authorities: one of which has to have signed it, in PEM.
        uri: the one among its alternative names that has to say whose it is.

    Raises:
        RequestError: it does not.
    """
    require()
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        (found,) = x509.load_pem_x509_certificates(certificate)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        raise RequestError("should be one certificate of `varangian certs`. Found something else") from None
    if _fingerprint(found.public_key()) != key_fingerprint(request):
        raise RequestError("should be for the key in the request. Found another key")
    if (said := names.get_values_for_type(x509.UniformResourceIdentifier)) != [uri]:
        raise RequestError(f"should be that of {uri}. Found {', '.join(said) or 'no URI'}")
    for authority in x509.load_pem_x509_certificates(authorities):
        with suppress(ValueError, TypeError, InvalidSignature):
            found.verify_directly_issued_by(authority)
            break
    else:
        raise RequestError("should be signed by the authority of the server. Found another signature")
    if found.not_valid_after_utc <= datetime.now(UTC):
        raise RequestError(f"should not have expired. Found one valid until {found.not_valid_after_utc}")


def _key_of_request(request: bytes) -> EllipticCurvePublicKey:
    """The key that a request is for. Its signature proves that whoever made it has the private key."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec

    if len(request) > LARGEST_REQUEST:
        raise RequestError(f"should have at most {LARGEST_REQUEST} bytes. Found {len(request)}")
    try:
        found = x509.load_pem_x509_csr(request)
        key, valid = found.public_key(), found.is_signature_valid
    except (ValueError, UnsupportedAlgorithm):
        rule = "should be a request for a certificate, as `varangian certs request` makes it"
        raise RequestError(f"{rule}. Found something else") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RequestError("should be for a key on the curve P-256. Found one of another kind")
    if not valid:
        raise RequestError("should be signed with the key that it is for. Found another signature")
    return key


def _fingerprint(key: CertificatePublicKeyTypes) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    found = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(found).hexdigest()


def _private_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


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


def _key_usage(*, signs: bool) -> x509.KeyUsage:
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
    key: EllipticCurvePublicKey,
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
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, ends) - LEEWAY)
        .not_valid_after(min(ends, latest) if latest else ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False
        )
    )


def _sign(
    builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey | None, signing: EllipticCurvePrivateKey
) -> Credentials:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    certificate = builder.sign(signing, hashes.SHA256())
    dates = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return Credentials(
        certificate.public_bytes(Encoding.PEM),
        b"" if key is None else _private_pem(key),
        (dates[0].timestamp(), dates[1].timestamp()),
    )
