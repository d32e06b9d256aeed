"""Enrolments of a run: invitations, requests, certificates, and what is on the disk."""

import json
import os
import stat

import pytest
from tests.refused import refused

from varangian.pki import x509
from varangian.protos.errors import Refused
from varangian.protos.identity.bundle import Role
from varangian.protos.identity.enrolment_token import EnrolmentToken
from varangian.protos.refusals import Refusal
from varangian.server.identity.enrolment import FILE, LASTS, REQUEST_LIMIT, Enrolment
from varangian.server.identity.tls import Security


class Clock:
    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def cluster(authority):
    authority.issue("server", Role.SERVER, days=1)
    return authority


@pytest.fixture
def made(cluster, tmp_path):
    """Enrolments in a run with the workers w00 and w01; again, they are those of a restarted server."""
    clock, members = Clock(1e9), ["w00", "w01"]

    def make():
        return Enrolment(tmp_path, Security(cluster.path), lambda: members, clock)

    make.clock, make.members, make.file = clock, members, tmp_path / FILE
    return make


def asked(name="w15"):
    return x509.make_request(x509.make_key(), name)


def signed(cluster, tmp_path, request, name="w15", **more):
    cluster.issue(name, Role.WORKER, days=1, request=request, into=tmp_path / "issued", **more)
    return (tmp_path / "issued" / name / "cert.pem").read_bytes()


def test_from_an_invitation_to_a_certificate(made, cluster, tmp_path):
    enrolment, request = made(), asked()
    token = enrolment.invite("w15", "alice")
    assert EnrolmentToken.parse(token).trusts(enrolment.authority)
    assert [one["state"] for one in enrolment.waiting()] == ["invited"]
    assert enrolment.ask(token, "w15", request) == b""
    (row,) = enrolment.waiting()
    assert row == {
        "name": "w15",
        "state": "waiting",
        "fingerprint": x509.key_fingerprint(request),
        "until": 1e9 + LASTS,
    }
    assert enrolment.request_of("w15") == request
    certificate = signed(cluster, tmp_path, request)
    enrolment.check("w15", certificate)
    assert enrolment.ask(token, "w15", request) == b""
    enrolment.deliver("w15", certificate)
    assert enrolment.ask(token, "w15", request) == certificate
    assert enrolment.waiting() == []
    assert enrolment.request_of("w15") == b""


def test_a_lost_answer_is_given_again_also_when_the_worker_is_a_member_by_then(made, cluster, tmp_path):
    enrolment, key = made(), x509.make_key()
    token = enrolment.invite("w15", "alice")
    requests = [x509.make_request(key, "w15") for _ in range(3)]
    assert len(set(requests)) == 3  # each has another signature of the same key
    enrolment.ask(token, "w15", requests[0])
    certificate = signed(cluster, tmp_path, requests[0])
    enrolment.deliver("w15", certificate)
    made.members.append("w15")
    assert {enrolment.ask(token, "w15", request) for request in requests} == {certificate}


def test_everything_survives_a_restart_between_request_and_approval(made, cluster, tmp_path):
    request = asked()
    token = made().invite("w15", "alice")
    assert made().ask(token, "w15", request) == b""
    assert made().request_of("w15") == request
    certificate = signed(cluster, tmp_path, request)
    made().deliver("w15", certificate)
    assert made().ask(token, "w15", request) == certificate


def test_the_file_is_for_its_owner_alone_and_holds_no_token(made):
    enrolment = made()
    token = enrolment.invite("w15", "alice")
    enrolment.ask(token, "w15", asked())
    assert stat.S_IMODE(made.file.stat().st_mode) == 0o600
    written = made.file.read_text()
    assert token not in written
    assert EnrolmentToken.parse(token).secret.hex() not in written
    assert json.loads(written)["invitations"][0]["by"] == "alice"


def test_a_token_is_good_for_one_key(made):
    enrolment = made()
    token = enrolment.invite("w15", "alice")
    first = asked()
    enrolment.ask(token, "w15", first)
    with pytest.raises(Refused, match=f"used with the key {x509.key_fingerprint(first)}") as caught:
        enrolment.ask(token, "w15", asked())
    assert caught.value.refusal is Refusal.ENROLMENT
    assert enrolment.request_of("w15") == first


def test_a_token_is_good_for_a_day(made):
    enrolment, request = made(), asked()
    token = enrolment.invite("w15", "alice")
    enrolment.ask(token, "w15", request)
    made.clock.now += LASTS
    with pytest.raises(Refused, match="That of w15 has expired"):
        enrolment.ask(token, "w15", request)
    assert (enrolment.waiting(), enrolment.request_of("w15")) == ([], b"")
    enrolment.invite("w16", "alice")
    assert [one["name"] for one in json.loads(made.file.read_text())["invitations"]] == ["w16"]


def test_a_second_invitation_of_a_name_makes_the_first_void(made):
    enrolment = made()
    first, second = (enrolment.invite("w15", "alice") for _ in range(2))
    assert refused(enrolment.ask, first, "w15", asked()) is Refusal.ENROLMENT
    assert enrolment.ask(second, "w15", asked()) == b""


def test_a_token_of_another_server_is_refused(made, bundles):
    enrolment = made()
    enrolment.invite("w15", "alice")
    theirs = EnrolmentToken.make("w15", (bundles / "ours/server/ca.pem").read_bytes())
    ours = EnrolmentToken.make("w15", enrolment.authority)
    for token in (theirs.text, ours.text, "", "w15", "A" * 300):
        assert refused(enrolment.ask, token, "w15", asked()) is Refusal.ENROLMENT
    assert enrolment.request_of("w15") == b""


@pytest.mark.parametrize(
    ("name", "request_of", "said"),
    [
        ("w16", lambda: asked("w16"), "Found the token of w15 with the name 'w16'"),
        ("w15", lambda: asked("w16"), "Found a request of 'w16' with the token of w15"),
        ("w15", lambda: b"", "should be a request for a certificate"),
        ("w15", lambda: b"-----BEGIN CERTIFICATE REQUEST-----\n", "should be a request for a certificate"),
        ("w15", lambda: asked() + b" " * REQUEST_LIMIT, f"where {REQUEST_LIMIT} are read"),
        ("w15\x00", lambda: asked(), "Found the token of w15 with the name"),
    ],
)
def test_hostile_requests_change_nothing(made, name, request_of, said):
    enrolment = made()
    token = enrolment.invite("w15", "alice")
    before = made.file.read_bytes()
    with pytest.raises(Refused, match=said) as caught:
        enrolment.ask(token, name, request_of())
    assert caught.value.refusal is Refusal.ENROLMENT
    assert made.file.read_bytes() == before


def test_a_request_with_a_changed_bit_is_refused(made):
    enrolment = made()
    token = enrolment.invite("w15", "alice")
    lines = asked().splitlines(keepends=True)
    for place in (1, 2, -2):
        changed = bytearray(lines[place])
        changed[5] = ord("A") if changed[5] != ord("A") else ord("B")
        damaged = b"".join([*lines[:place], bytes(changed), *lines[place:][1:]])
        assert refused(enrolment.ask, token, "w15", damaged) is Refusal.ENROLMENT


@pytest.mark.parametrize("name", ["w00", "authority", "", "../w15", "a b", "a" * 64])
def test_names_that_cannot_be_invited(made, name):
    assert refused(made().invite, name, "alice") is Refusal.ENROLMENT
    assert not made.file.exists()


def test_the_token_of_a_name_that_has_become_a_member_gets_nothing(made):
    enrolment = made()
    token = enrolment.invite("w15", "alice")
    made.members.append("w15")
    with pytest.raises(Refused, match="w15 is a worker of this run already"):
        enrolment.ask(token, "w15", asked())


def test_a_certificate_that_does_not_answer_the_request_is_refused(made, cluster, tmp_path, bundles):
    from varangian.pki.authority import Authority

    enrolment, request = made(), asked()
    enrolment.ask(enrolment.invite("w15", "alice"), "w15", request)
    other = Authority.create(tmp_path / "other", days=1)
    into = tmp_path / "issued"

    def of(name, role, asked_by, by=cluster, days=1.0):
        by.issue(name, role, days=days, request=asked_by, into=into, force=True)
        return (into / name / "cert.pem").read_bytes()

    wrong = {
        "another key": of("w15", Role.WORKER, asked()),
        "operator:w15": of("w15", Role.OPERATOR, request),
        "server:w15": of("w15", Role.SERVER, request),
        "worker:w16": of("w16", Role.WORKER, request),
        "not have expired": of("w15", Role.WORKER, request, days=-1),
        "Found varangian:": of("w15", Role.WORKER, request, other),
        "something else": b"-----BEGIN CERTIFICATE-----\n",
    }
    for said, certificate in wrong.items():
        for ask in (enrolment.check, enrolment.deliver):
            with pytest.raises(Refused, match=said):
                ask("w15", certificate)
    right = of("w15", Role.WORKER, request)
    for twice in (right + right, b""):
        assert refused(enrolment.check, "w15", twice) is Refusal.ENROLMENT
    assert refused(enrolment.check, "w16", right) is Refusal.ENROLMENT
    enrolment.deliver("w15", right)
    assert refused(enrolment.deliver, "w15", right) is Refusal.ENROLMENT


def test_a_certificate_with_the_right_uri_that_another_authority_has_signed_is_refused(cluster, tmp_path):
    request = asked()
    certificate, uri = signed(cluster, tmp_path, request), f"varangian:{cluster.cluster()}:worker:w15"
    other = x509.make_authority(1).certificate
    x509.check_answer(certificate, request, other + (cluster.home / "cert.pem").read_bytes(), uri)
    with pytest.raises(x509.RequestError, match="signed by the authority of the server"):
        x509.check_answer(certificate, request, other, uri)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"invitations": [{"name": "w15"}]}', b"\xff"])
def test_a_damaged_file_voids_its_invitations_and_says_so(made, content, caplog):
    made.file.write_bytes(content)
    assert made().waiting() == []
    assert "enrolment.json cannot be read, so earlier invitations are void" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to any folder")
def test_a_folder_that_takes_nothing_is_said(made, caplog):
    made.file.parent.chmod(0o500)
    try:
        made().invite("w15", "alice")
    finally:
        made.file.parent.chmod(0o700)
    assert "cannot be written, and a restart forgets it" in caplog.text


def test_a_full_disk_costs_the_memory_of_restarts_alone(made, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("varangian.server.identity.enrolment.write_atomically", full)
    enrolment, request = made(), asked()
    token = enrolment.invite("w15", "alice")
    assert enrolment.ask(token, "w15", request) == b""
    assert enrolment.request_of("w15") == request
    assert "a restart forgets it: No space left on device" in caplog.text
