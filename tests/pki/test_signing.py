"""Signatures with the key of a certificate."""

from dataclasses import replace

import pytest

from varangian.protos.identity.bundle import Bundle, Holder, Role

pytest.importorskip("cryptography")
from varangian.pki.signing import BundleSigner, Verifier


@pytest.fixture
def bundle(bundles):
    return Bundle.load(bundles / "ours" / "server")


def test_a_signature_is_that_of_the_certificate_and_of_the_data(bundle, bundles):
    signer = BundleSigner(lambda: bundle)
    verifier = Verifier(signer.certificate())
    signature = signer.sign(b"data")
    assert verifier.verifies(signature, b"data")
    assert not verifier.verifies(signature, b"other data")
    assert not verifier.verifies(b"", b"data")
    theirs = Bundle.load(bundles / "theirs" / "server")
    assert not Verifier(theirs.certificate.decode()).verifies(signature, b"data")


def test_the_holder_and_the_authority_of_a_certificate(bundle, bundles):
    verifier = Verifier(bundle.certificate.decode())
    assert verifier.holder == Holder(bundle.cluster, Role.SERVER, "server")
    assert verifier.is_issued_by(bundle.ca)
    theirs = Bundle.load(bundles / "theirs" / "server").ca
    assert not verifier.is_issued_by(theirs)
    assert verifier.is_issued_by(theirs + bundle.ca)


def test_a_renewed_key_signs_when_its_certificate_is_asked_for(bundle, bundles):
    used = [bundle]
    signer = BundleSigner(lambda: used[-1])
    first = signer.certificate()
    used.append(replace(Bundle.load(bundles / "theirs" / "server")))
    assert Verifier(first).verifies(signer.sign(b"x"), b"x")
    second = signer.certificate()
    assert second != first
    assert Verifier(second).verifies(signer.sign(b"x"), b"x")


@pytest.mark.parametrize("text", ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        Verifier(text)
