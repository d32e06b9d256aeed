import errno
import json
import os
import ssl
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from varangian.pki import authority as module
from varangian.pki.authority import Authority, AuthorityError
from varangian.protos.identity.bundle import Bundle, Role, ssl_contexts
from varangian.protos.identity.revocation import fingerprint


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_can_read_a_key(authority):
    authority.issue("w00", Role.WORKER, days=1)
    for path in (authority.home, authority.path / "w00"):
        assert mode(path) == 0o700
        assert mode(path / "key.pem") == 0o600


def test_a_bundle_has_these_files_and_nothing_is_left_beside_it(authority):
    authority.issue("w00", Role.WORKER, days=1)
    authority.issue("server", Role.SERVER, days=1)
    assert {path.name for path in (authority.path / "w00").iterdir()} == {"ca.pem", "cert.pem", "key.pem"}
    assert (authority.path / "server/revoked").is_file()
    assert {path.name for path in authority.path.iterdir()} == {"authority", "w00", "server"}


def test_an_authority_is_never_replaced(authority):
    before = (authority.home / "key.pem").read_bytes()
    with pytest.raises(AuthorityError, match="should not be an authority yet"):
        Authority.create(authority.path, days=1)
    assert (authority.home / "key.pem").read_bytes() == before


def test_a_bundle_is_replaced_only_by_force(authority):
    authority.issue("w00", Role.WORKER, days=1)
    before = (authority.path / "w00/cert.pem").read_bytes()
    with pytest.raises(AuthorityError, match=r"w00 should not exist yet\. Add --force"):
        authority.issue("w00", Role.WORKER, days=1)
    assert (authority.path / "w00/cert.pem").read_bytes() == before
    authority.issue("w00", Role.WORKER, days=1, force=True)
    assert (authority.path / "w00/cert.pem").read_bytes() != before
    assert [one.name for one in authority.issued()] == ["w00", "w00"]


@pytest.mark.parametrize("name", ["", "../w00", "a b", "authority", "a" * 64, ".hidden", "w\n00"])
def test_names_that_could_harm_are_refused(authority, name):
    with pytest.raises(AuthorityError, match="A name should be"):
        authority.issue(name, Role.WORKER, days=1)
    assert not authority.issued()


def test_a_directory_that_is_no_authority_says_how_to_make_one(tmp_path):
    with pytest.raises(AuthorityError, match="varangian certs init"):
        Authority(tmp_path)


def test_no_certificate_outlives_its_authority(authority):
    assert authority.issue("w00", Role.WORKER, days=1000).ends == pytest.approx(
        Bundle.load(authority.path / "w00").ends
    )
    assert (
        Bundle.load(authority.path / "w00").ends - Bundle.load(authority.path / "w00").begins < 31 * 86400
    )


def test_the_book_names_every_certificate(authority):
    issued = authority.issue("w00", Role.WORKER, days=1)
    assert issued.fingerprint == fingerprint((authority.path / "w00/cert.pem").read_bytes())
    (line,) = (authority.home / "issued").read_text().splitlines()
    assert json.loads(line)["fingerprint"] == issued.fingerprint
    assert "PRIVATE" not in line


@pytest.mark.parametrize("line", ["no json", "[1]", '{"name": 1}', "3", "[" * 100_000, "9" * 9999])
def test_a_damaged_book_is_one_sentence(authority, line):
    with (authority.home / "issued").open("a") as book:
        book.write(f"{line}\n")
    with pytest.raises(AuthorityError, match="issued should have one certificate in each line"):
        authority.issued()


def test_revoking_a_name_reaches_all_its_certificates_and_every_server(authority, tmp_path):
    authority.issue("server", Role.SERVER, days=1, into=tmp_path / "elsewhere")
    first = authority.issue("w00", Role.WORKER, days=1)
    second = authority.issue("w00", Role.WORKER, days=1, force=True)
    other = authority.issue("w01", Role.WORKER, days=1)
    found, told = authority.revoke("w00")
    assert found == [first, second]
    assert told == [tmp_path / "elsewhere/server/revoked"]
    assert authority.revoked() == {first.fingerprint, second.fingerprint}
    assert told[0].read_text() == (authority.home / "revoked").read_text()
    authority.issue("w00", Role.WORKER, days=1, force=True)
    assert other.fingerprint not in authority.revoked()
    assert Bundle.load(authority.path / "w00").name == "w00"


def test_a_server_made_later_knows_who_was_revoked(authority):
    issued = authority.issue("w00", Role.WORKER, days=1)
    authority.revoke("w00")
    authority.issue("server", Role.SERVER, days=1)
    assert issued.fingerprint in (authority.path / "server/revoked").read_text()


def test_a_name_without_a_certificate_cannot_be_revoked(authority):
    authority.issue("w00", Role.WORKER, days=1)
    authority.revoke("w00")
    for name in ("w00", "w01"):
        with pytest.raises(AuthorityError, match=f"'{name}' should have a certificate that counts"):
            authority.revoke(name)


def handshake(server_path, client_path):
    """Both ends check each other, as gRPC does."""
    server, client = ssl_contexts(Path(server_path))[0], ssl_contexts(Path(client_path))[1]
    server.verify_mode = client.verify_mode = ssl.CERT_REQUIRED
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for end in ends:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return ends[1].getpeercert()


def test_a_worker_cannot_pose_as_the_server(bundles):
    assert handshake(bundles / "ours/server", bundles / "ours/w00")["subject"][-1] == (
        ("commonName", "w00"),
    )
    with pytest.raises(ssl.SSLCertVerificationError, match=r"unsuitable certificate purpose|unsupported"):
        handshake(bundles / "ours/w01", bundles / "ours/w00")


def test_without_the_package_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    from varangian.pki import x509

    monkeypatch.setattr(x509, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'varangian\[certs\]'"):
        Authority.create(tmp_path / "new", days=1)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("which", ["a name", "a fingerprint"])
def test_a_revocation_that_did_not_reach_every_server_is_completed_by_the_same_command(
    which, tmp_path, monkeypatch
):
    authority = Authority.create(tmp_path / "ca", days=1)
    for name in ("one", "two"):
        authority.issue(name, Role.SERVER, hosts=["127.0.0.1"], days=1)
    mark = authority.issue("w00", Role.WORKER, days=1).fingerprint
    written = module.write_atomically

    def full(path, *given):
        if path == authority.path.absolute() / "one" / "revoked":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        written(path, *given)

    def revoke():
        return authority.revoke("w00") if which == "a name" else authority.revoke_one(mark)

    def lists():
        return [mark in (authority.path / name / "revoked").read_text() for name in ("one", "two")]

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomically", full)
        with pytest.raises(
            AuthorityError, match=r"one/revoked: Too many open files.*give the same command"
        ):
            revoke()
    assert mark in authority.revoked()
    assert lists() == [False, True]
    _, told = revoke()
    assert [path.parent.name for path in told] == ["one"]
    assert lists() == [True, True]
    with pytest.raises(AuthorityError, match="Found none"):
        revoke()
