import os

import pytest

from varangian.protos.identity.bundle import Bundle, BundleError, Holder, Role, find_bundle, parse_holder


def refused(path, role=None):
    with pytest.raises(BundleError) as caught:
        Bundle.load(path, role)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_bundle_says_who_its_holder_is(bundles):
    server = Bundle.load(bundles / "ours/server", Role.SERVER)
    assert (server.role, server.name) == (Role.SERVER, "server")
    assert server.hosts == ("parameter-server.test", "localhost", "127.0.0.1", "::1")
    worker = Bundle.load(bundles / "ours/w00", Role.WORKER)
    assert (worker.role, worker.name, worker.hosts) == (Role.WORKER, "w00", ())
    assert worker.ca == server.ca
    assert worker.ends - worker.begins == pytest.approx(10 * 86400 + 300)


def test_a_key_is_never_shown(bundles):
    assert "PRIVATE" in Bundle.load(bundles / "ours/w00").key.decode()
    assert "PRIVATE" not in repr(Bundle.load(bundles / "ours/w00"))


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
def test_a_missing_file_is_named(copied, name):
    path = copied("ours/w00")
    (path / name).unlink()
    assert f"{path / name} should be readable. The system says: No such file" in refused(path)


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
@pytest.mark.parametrize("text", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_damaged_file_is_a_sentence(copied, name, text):
    path = copied("ours/w00")
    (path / name).write_bytes(text)
    assert "should" in refused(path)


def test_the_key_of_another_certificate_is_refused(copied):
    path = copied("ours/w00")
    os.replace(copied("ours/w01") / "key.pem", path / "key.pem")
    assert f"{path / 'key.pem'} should be the key of {path / 'cert.pem'}. Found another key" in refused(
        path
    )


def test_the_certificate_of_another_authority_is_refused(copied):
    path = copied("ours/w00")
    os.replace(copied("theirs/w00") / "ca.pem", path / "ca.pem")
    assert f"should be signed by {path / 'ca.pem'}" in refused(path)


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(copied):
    from cryptography.hazmat.primitives import serialization as keys

    path = copied("ours/w00")
    key = keys.load_pem_private_key((path / "key.pem").read_bytes(), None)
    locked = keys.BestAvailableEncryption(b"secret")
    (path / "key.pem").write_bytes(key.private_bytes(keys.Encoding.PEM, keys.PrivateFormat.PKCS8, locked))
    assert "its key without a password" in refused(path)


@pytest.mark.parametrize("name", ["ours/expired", "expired/server"])
def test_an_expired_certificate_is_refused(bundles, name):
    assert "should not have expired" in refused(bundles / name)


def test_a_certificate_of_the_future_asks_about_the_clock(authority, monkeypatch):
    from datetime import timedelta

    from varangian.pki import x509

    monkeypatch.setattr(x509, "LEEWAY", timedelta(days=-1))
    authority.issue("w00", Role.WORKER, days=10)
    assert "Is the clock of this machine right?" in refused(authority.path / "w00")


@pytest.mark.parametrize(("name", "role"), [("server", Role.WORKER), ("w00", Role.SERVER)])
def test_a_bundle_of_another_role_is_refused(bundles, name, role):
    assert f"should be the certificate of a {role.value}" in refused(bundles / "ours" / name, role)


ID = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("uris", "found"),
    [
        ([f"varangian:{ID}:worker:w00"], Holder(ID, Role.WORKER, "w00")),
        (["https://example.test", f"varangian:{ID}:server:s"], Holder(ID, Role.SERVER, "s")),
        ([], None),
        (["w00"], None),
        (["varangian:worker:w00"], None),
        ([f"varangian:{ID}:admin:w00"], None),
        ([f"varangian:{ID}:worker:"], None),
        ([f"varangian:{ID}:worker"], None),
        ([f"varangian:{ID[1:]}:worker:w00"], None),
        ([f"varangian:{ID}:worker:w00\0"], None),
        ([f"varangian:{ID}:worker:w00\n"], None),
        ([f"varangian:{ID}:worker:w00", "https://example.test\0"], None),
        ([f"varangian:{ID}:worker:w00", f"varangian:{ID}:worker:w01"], None),
        ([f"varangian:{ID}:worker:w00", "varangian:worker:w01"], None),
    ],
)
def test_a_certificate_names_one_holder(uris, found):
    assert parse_holder(uris) == found


def test_a_bundle_names_its_cluster(bundles):
    ours, theirs = (Bundle.load(bundles / name).cluster for name in ("ours/w00", "theirs/w00"))
    assert ours == Bundle.load(bundles / "ours/server").cluster != theirs


def test_a_directory_of_bundles_will_do(bundles, tmp_path):
    assert find_bundle(bundles / "ours/w00", "w00") == bundles / "ours/w00"
    assert find_bundle(bundles / "ours", "w00") == bundles / "ours/w00"
    with pytest.raises(BundleError, match="or a directory w00 that does"):
        find_bundle(tmp_path, "w00")
