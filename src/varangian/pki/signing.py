"""Signatures of a record with the key of a certificate, and their check."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from varangian.protos.identity.bundle import SCHEME, Bundle, Holder, parse_holder

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey


def can_sign() -> bool:
    """Whether the package `cryptography` is installed."""
    return find_spec("cryptography") is not None


class BundleSigner:
    """Signs with the key of a bundle, which may be renewed.

    Args:
        current: the bundle in use; may be asked from any thread.
    """

    def __init__(self, current: Callable[[], Bundle]) -> None:
        self._current = current
        self._bundle = current()
        self._key = _private_key(self._bundle.key)

    def certificate(self) -> str:
        """The certificate of the bundle in use, in PEM; `sign` uses its key until this is asked again."""
        bundle = self._current()
        if bundle is not self._bundle:
            self._key, self._bundle = _private_key(bundle.key), bundle
        return self._bundle.certificate.decode("ascii")

    def sign(self, data: bytes) -> bytes:
        """ECDSA with SHA-256, in DER."""
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
        from cryptography.hazmat.primitives.hashes import SHA256

        return self._key.sign(data, ECDSA(SHA256()))


class Verifier:
    """Checks signatures with the public key of a certificate.

    Its dates are not looked at: a record is read when its certificate has long expired.

    Args:
        certificate: in PEM.

    Raises:
        ValueError: it is none, or its key is of another kind.
    """

    def __init__(self, certificate: str) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

        self._certificate = x509.load_pem_x509_certificate(certificate.encode())
        key = self._certificate.public_key()
        if not isinstance(key, EllipticCurvePublicKey):
            raise ValueError("The key of a server should be one of an elliptic curve.")
        self._key = key

    @property
    def holder(self) -> Holder | None:
        """The holder that the certificate names; None where it names none of ours."""
        from cryptography import x509

        try:
            names = self._certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return None
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        return parse_holder(uri for uri in uris if uri.startswith(SCHEME))

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether the signature is that of the data by this key."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
        from cryptography.hazmat.primitives.hashes import SHA256

        try:
            self._key.verify(signature, data, ECDSA(SHA256()))
        except InvalidSignature:
            return False
        return True

    def is_issued_by(self, authorities: bytes) -> bool:
        """Whether one of these authorities, in PEM, has signed the certificate.

        Raises:
            ValueError: they are no certificates.
        """
        from cryptography import x509

        return any(
            _has_issued(authority, self._certificate)
            for authority in x509.load_pem_x509_certificates(authorities)
        )


def _has_issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _private_key(pem: bytes) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(pem, None)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ValueError("The key of a server should be one of an elliptic curve.")
    return key
