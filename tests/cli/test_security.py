"""Commands about security, and their output."""

import argparse
import base64
import importlib
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import torch
from tests.cli.kit import answering

from varangian.cli.arguments.main import parse
from varangian.cli.commands.health import status as asking
from varangian.cli.credentials import check, read_choice
from varangian.config import loads
from varangian.config.build import learner
from varangian.launch.identities import with_identity
from varangian.protos import ps_pb2
from varangian.protos.identity.bundle import Bundle, Role
from varangian.protos.identity.credentials import SecurityChoice, warn_without_tls
from varangian.protos.identity.revocation import fingerprint
from varangian.protos.metadata_keys import CODE
from varangian.protos.network.address import is_loopback, split_address
from varangian.registry import ConfigError
from varangian.server.identity.tls import Security


@pytest.fixture
def varangian(varangian):
    """The command line: exit code, and both outputs together."""

    def run(*argv):
        code, *outputs = varangian(*argv)
        return code, "".join(outputs)

    return run


@pytest.fixture
def made(varangian):
    pytest.importorskip("cryptography")
    assert varangian("certs", "init", "ca")[0] == 0
    return varangian


def test_from_nothing_to_a_cluster(made, tmp_path):
    code, said = made("certs", "issue", "ca", "--server", "ps.test", "10.0.0.5")
    assert (code, said.startswith("made ca/server, valid until 20")) == (0, True)
    assert made("certs", "issue", "ca", "w00", "w01")[0] == 0
    assert Bundle.load(tmp_path / "ca/server").hosts[:2] == ("ps.test", "10.0.0.5")
    code, said = made("certs", "list", "ca")
    assert [line.split()[:2] for line in said.splitlines()] == [
        ["name", "role"],
        ["server", "server"],
        ["w00", "worker"],
        ["w01", "worker"],
    ]
    assert said.count("valid, 30 days left") == 3
    code, said = made("certs", "revoke", "ca", "w01")
    assert (code, "ca/server/revoked" in said) == (0, True)
    code, said = made("certs", "list", "ca")
    assert [line.split()[-1] for line in said.splitlines()] == ["state", "left", "left", "revoked"]


def test_no_command_shows_a_key(made, tmp_path):
    outputs = [made("certs", *words.split())[1] for words in ("issue ca w00", "list ca", "revoke ca w00")]
    secrets = [path.read_text().splitlines()[1] for path in (tmp_path / "ca").rglob("key.pem")]
    assert len(secrets) == 2
    assert not [out for out in outputs for text in secrets if text in out or "PRIVATE" in out]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("init ca", "ca should not be an authority yet"),
        ("issue ca", "say who gets a certificate"),
        ("issue ca w00 workers=3", "say who gets a certificate"),
        ("issue ca w00 --claim honest", "say who gets a certificate"),
        ("issue ca w00 w01 --server host", "a server has one name"),
        ("issue ca ../w00", "A name should be letters"),
        ("issue nowhere w00", "varangian certs init nowhere"),
        ("list nowhere", "varangian certs init nowhere"),
        ("revoke ca w00", "'w00' should have a certificate that counts"),
        ("revoke ca", "say what to revoke"),
        ("revoke ca w00 --fingerprint 0123", "say what to revoke"),
        ("revoke ca --fingerprint 0123", "A fingerprint should be 16 to 64 hexadecimal digits"),
        ("issue ca w00 --revoke-old", "Add --force"),
        ("sign ca w00 request.pem --revoke-old", "Add --force"),
        ("sign ca w00 nowhere.pem", "nowhere.pem: No such file"),
        ("request ../w00", "A name should be letters"),
        ("init /proc/nowhere", "/proc/nowhere"),
    ],
)
def test_a_certificate_that_cannot_be_made_is_one_line(made, words, said):
    code, out = made("certs", *words.split())
    assert (code, out.count("\n")) == (1, 1)
    assert said in out


@pytest.mark.parametrize("command", ["certs", "token"])
def test_a_reader_that_leaves_is_no_failure_of_a_file(monkeypatch, tmp_path, command):
    def leave(*_, **__):
        raise BrokenPipeError

    monkeypatch.setenv("VARANGIAN_SECRET", "a secret of this test")
    monkeypatch.setattr("builtins.print", leave)
    argv = ["token", "w00"] if command == "token" else ["certs", "request", "w00", "--into", str(tmp_path)]
    with pytest.raises(BrokenPipeError):
        importlib.import_module(f"varangian.cli.commands.{command}").command(parse(argv))


def test_a_key_stays_where_it_was_made(made, tmp_path):
    code, said = made("certs", "request", "w03", "--into", "site")
    assert (code, said.startswith("made the key site/w03/key.pem; it stays on this machine")) == (0, True)
    key = tmp_path / "site/w03/key.pem"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (key, key.parent)] == [0o600, 0o700]
    before = key.read_bytes()
    code, signed = made("certs", "sign", "ca", "w03", "site/w03/request.pem")
    assert code == 0
    assert said.split("public key ")[1].split()[0] == signed.split("public key ")[1].split()[0]
    assert {path.name for path in (tmp_path / "ca/w03").iterdir()} == {"ca.pem", "cert.pem"}
    for name in ("ca.pem", "cert.pem"):
        shutil.copy(tmp_path / "ca/w03" / name, tmp_path / "site/w03" / name)
    assert Bundle.load(tmp_path / "site/w03", Role.WORKER).name == "w03"
    # For a renewal the key stays, and the bundle can be used meanwhile.
    assert made("certs", "request", "w03", "--into", "site")[1].startswith("kept the key")
    assert (key.read_bytes(), Bundle.load(key.parent).name) == (before, "w03")
    code, said = made("certs", "sign", "ca", "w03", "site/w03/request.pem")
    assert (code, "Add --force" in said) == (1, True)
    assert made("certs", "sign", "ca", "w03", "site/w03/request.pem", "--force", "--revoke-old")[0] == 0
    states = [line.split()[-1] for line in made("certs", "list", "ca")[1].splitlines()[1:]]
    assert states == ["revoked", "left"]


def test_the_name_of_a_certificate_is_what_was_typed_and_never_what_was_asked_for(made, tmp_path):
    made("certs", "request", "server", "--into", "site")
    assert made("certs", "sign", "ca", "w01", "site/server/request.pem")[0] == 0
    shutil.copy(tmp_path / "site/server/key.pem", tmp_path / "ca/w01/key.pem")
    bundle = Bundle.load(tmp_path / "ca/w01")
    assert (bundle.role, bundle.name, bundle.hosts) == (Role.WORKER, "w01", ())
    assert made("certs", "sign", "ca", "ps", "site/server/request.pem", "--server", "ps.test")[0] == 0
    shutil.copy(tmp_path / "site/server/key.pem", tmp_path / "ca/ps/key.pem")
    assert Bundle.load(tmp_path / "ca/ps", Role.SERVER).hosts[0] == "ps.test"
    assert (tmp_path / "ca/ps/revoked").is_file()


def forged(request):
    """The same request with the last byte of its signature changed."""
    lines = request.decode().split("-----")
    der = bytearray(base64.b64decode(lines[2]))
    der[-1] ^= 1
    return f"-----{lines[1]}-----\n{base64.encodebytes(der).decode()}-----{lines[3]}-----\n".encode()


def of_another_curve():
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    asked = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = asked.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (forged, "The request should be signed with the key that it is for"),
        (lambda request: b"hello", "The request should be a request for a certificate"),
        (lambda request: request * 1000, "The request should have at most 65536 bytes"),
        (lambda request: of_another_curve(), "The request should be for a key on the curve P-256"),
    ],
)
def test_a_request_that_is_none_is_not_signed(made, tmp_path, change, said):
    made("certs", "request", "w03")
    path = tmp_path / "w03/request.pem"
    path.write_bytes(change(path.read_bytes()))
    code, out = made("certs", "sign", "ca", "w03", "w03/request.pem")
    assert (code, out.count("\n")) == (1, 1)
    assert said in out
    assert not (tmp_path / "ca/w03").exists()
    assert made("certs", "list", "ca")[1].count("\n") == 1


def test_one_certificate_of_several_is_revoked_by_its_fingerprint(made, tmp_path):
    made("certs", "issue", "ca", "--server", "localhost")
    made("certs", "issue", "ca", "w00")
    old = fingerprint((tmp_path / "ca/w00/cert.pem").read_bytes())
    made("certs", "issue", "ca", "w00", "--force")
    new = fingerprint((tmp_path / "ca/w00/cert.pem").read_bytes())
    typed = ":".join(old[i : i + 2] for i in range(0, 32, 2)).upper()
    code, said = made("certs", "revoke", "ca", "--fingerprint", typed)
    assert (code, said.startswith(f"revoked the certificate {old[:16]} of w00")) == (0, True)
    listed = (tmp_path / "ca/server/revoked").read_text()
    assert (old in listed, new in listed) == (True, False)
    code, said = made("certs", "revoke", "ca", "--fingerprint", typed)
    assert (code, "Found none" in said) == (1, True)
    assert made("certs", "issue", "ca", "w00", "--force", "--revoke-old")[0] == 0
    assert new in (tmp_path / "ca/server/revoked").read_text()


def test_all_workers_of_a_configuration(made, tmp_path):
    settings = ("workers=5", "f=1", "aggregator=median", "byzantine.count=2")
    made("certs", "issue", "ca", "--claim", "honest", "--into", "honest", *settings)
    made("certs", "issue", "ca", "--claim", "byzantine", "--into", "byzantine", *settings)
    assert sorted(path.name for path in (tmp_path / "honest").iterdir()) == ["w00", "w01", "w02"]
    assert sorted(path.name for path in (tmp_path / "byzantine").iterdir()) == ["w03", "w04"]


def test_what_is_good_is_kept(made, tmp_path):
    def certificate():
        return (tmp_path / "ca/w00/cert.pem").read_text()

    made("certs", "issue", "ca", "w00", "--keep")
    first = certificate()
    assert made("certs", "issue", "ca", "w00", "--keep") == (0, "kept ca/w00\n")
    assert made("certs", "init", "ca", "--keep") == (0, "kept the authority in ca/authority\n")
    (tmp_path / "empty/authority").mkdir(parents=True)  # as a volume is at first
    assert made("certs", "init", "empty", "--keep")[1].startswith("made the authority empty/authority")
    assert certificate() == first
    made("certs", "revoke", "ca", "w00")
    made("certs", "issue", "ca", "w00", "--keep")
    assert certificate() != first


@pytest.mark.parametrize("change", ["expired", "other", "hosts"])
def test_what_is_not_good_any_more_is_not_kept(made, change):
    made("certs", "issue", "ca", "--server", "a.test", "--keep")
    assert made("certs", "issue", "ca", "--server", "a.test", "--keep")[1].startswith("kept")
    if change == "expired":
        made("certs", "issue", "ca", "--server", "a.test", "--force", "--days", "0.0001")
    if change == "other":
        made("certs", "init", "ca2")
        made("certs", "issue", "ca2", "--server", "a.test", "--into", "ca", "--force")
    host = "b.test" if change == "hosts" else "a.test"
    assert made("certs", "issue", "ca", "--server", host, "--keep")[1].startswith("made")


def test_certificates_of_operators(made):
    code, said = made("certs", "issue", "ca", "--operator", "alice")
    assert (code, said.partition(",")[0]) == (0, "made ca/alice")
    assert Bundle.load(Path("ca/alice")).role is Role.OPERATOR
    assert made("certs", "issue", "ca", "--operator", "alice", "--keep") == (0, "kept ca/alice\n")
    assert made("certs", "list", "ca")[1].splitlines()[1].split()[:2] == ["alice", "operator"]
    made("certs", "request", "bob", "--into", "site")
    code, said = made("certs", "sign", "ca", "bob", "site/bob/request.pem", "--operator")
    assert (code, "signed for the operator bob the public key" in said) == (0, True)
    assert made("certs", "issue", "ca", "--operator")[0] == 1
    code, said = made("certs", "issue", "ca", "--operator", "--server", "a.test")
    assert (code, "not allowed with argument" in said) == (2, True)


def args(certs=None, insecure=False):
    return argparse.Namespace(certs=certs, insecure=insecure)


@pytest.mark.parametrize(
    ("typed", "environment", "tls", "insecure"),
    [
        (args(), {}, False, False),
        (args("c"), {}, True, False),
        (args(insecure=True), {}, False, True),
        (args(), {"VARANGIAN_CERTS": "c"}, True, False),
        (args(), {"VARANGIAN_CERTS": "c", "VARANGIAN_INSECURE": "1"}, False, True),
        (args(), {"VARANGIAN_CERTS": "c", "VARANGIAN_INSECURE": "0"}, True, False),
        (args("c"), {"VARANGIAN_INSECURE": "1"}, True, False),
        (args(insecure=True), {"VARANGIAN_CERTS": "c"}, False, True),
    ],
)
def test_what_is_typed_counts_before_the_environment(typed, environment, tls, insecure, monkeypatch):
    for name in ("VARANGIAN_CERTS", "VARANGIAN_INSECURE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = read_choice(typed)
    assert (found.certs is not None, found.insecure) == (tls, insecure)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_needs_no_certificates(host):
    assert is_loopback(host)
    check(SecurityChoice(None, insecure=False), host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "server", "localhost.example.test"])
def test_a_network_without_tls_must_be_asked_for(host, tmp_path):
    with pytest.raises(ConfigError, match=r"without TLS anybody who sees the traffic.*or add --insecure"):
        check(SecurityChoice(None, insecure=False), host)
    check(SecurityChoice(None, insecure=True), host)
    check(SecurityChoice(tmp_path, insecure=False), host)


@pytest.mark.parametrize(("host", "certs", "said"), [("a.test", 0, 1), ("::1", 0, 0), ("a.test", 1, 0)])
def test_a_network_without_tls_is_a_warning(host, certs, said, caplog, tmp_path):
    warn_without_tls(SecurityChoice(tmp_path if certs else None, insecure=not certs), host)
    assert len(caplog.messages) == said
    assert all(
        "without TLS tokens and digests protect against accidents only" in m for m in caplog.messages
    )


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("a.test:1", ("a.test", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("::1:5", None),
        ("a:65536", None),
        ("a:٣", None),
        ("a", None),
        (":1", None),
        ("[]:1", None),
    ],
)
def test_an_address_is_host_and_port(address, found):
    assert split_address(address) == found


SMALL = {"workers": 3, "f": 0, "model": "softmax", "aggregator": {"mix": ["bucketing"], "rule": "mean"}}


def test_a_server_of_a_cluster_draws_from_a_secret_and_keeps_it():
    first, second = (with_identity(loads(SMALL), False, "--certs DIR") for _ in range(2))
    assert first.server.seed != second.server.seed
    assert first.seed == second.seed == 1
    assert with_identity(first, False, "--certs DIR").server.seed == first.server.seed
    assert loads(first.resolved()) == first


def test_the_seed_of_the_server_decides_what_it_draws():
    rows = {f"w{i:02}": torch.randn(8) for i in range(3)}

    def step(**server):
        config = loads(SMALL | {"server": server, "aggregator": {"mix": ["bucketing"], "rule": "median"}})
        built = learner(config, torch.zeros(8))
        built.step(0, rows, {})
        return built.digest()

    assert step() == step(seed=1)
    assert len({step(seed=seed) for seed in range(20)}) > 1


def health(varangian, address, *options):
    return varangian("health", "--server", address, "--timeout", "5", *options)


def test_health_over_tls(varangian, bundles):
    with answering(Security(bundles / "ours").credentials()) as address:
        for certs in ("ours", "ours/server", "ours/w00"):
            code, said = health(varangian, address, "--certs", str(bundles / certs))
            assert (code, said) == (0, f"{address} serves: round 2 of 9, 1 of 3 workers are connected\n")
        code, said = health(varangian, address)
        assert (code, "speaks TLS, and this end does not. Add --certs DIR" in said) == (1, True)
        code, said = health(varangian, address, "--certs", str(bundles / "theirs"))
        assert (code, "bundles of the same authority?" in said) == (1, True)
        code, said = health(varangian, address, "--certs", str(bundles / "ours/expired"))
        assert (code, "should not have expired" in said) == (1, True)


def test_health_shows_what_was_refused(varangian):
    with answering(None, refusals="FUTURE 1\nTICKET 3\x1b[2J\n") as address:
        code, said = health(varangian, address)
    assert code == 0
    assert said.endswith("workers are connected\nrefused so far: FUTURE 1, TICKET 3\\x1b[2J\n")


@pytest.mark.parametrize(
    ("status", "trailing"),
    [
        (grpc.StatusCode.CANCELLED, ()),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ((CODE, "CALLS"),)),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ((CODE, "STREAMS"),)),
    ],
)
def test_health_tries_again_when_the_server_has_too_much_to_do(monkeypatch, status, trailing):
    asked = []

    class Dropped(grpc.RpcError, grpc.Call):
        code, details, trailing_metadata = (lambda _: status), (lambda _: ""), (lambda _: trailing)
        initial_metadata = is_active = time_remaining = cancel = add_callback = None

    def once(server, timeout, bundle):
        asked.append(timeout)
        if len(asked) < 3:
            raise Dropped
        return ps_pb2.StatusReply(round=4)

    monkeypatch.setattr("varangian.cli.commands.health._ask_once", once)
    monkeypatch.setattr("varangian.cli.commands.health.RETRY_PAUSE", 0.0)
    if dict(trailing).get(CODE) == "STREAMS":
        with pytest.raises(grpc.RpcError):
            asking("nowhere:1", 1000.0)
    else:
        assert asking("nowhere:1", 1000.0).round == 4


def test_health_without_tls(varangian, bundles):
    with answering(None) as address:
        assert health(varangian, address)[0] == 0
        code, said = health(varangian, address, "--certs", str(bundles / "ours"))
        assert (code, "does not speak TLS" in said) == (1, True)


def worker(varangian, address, *options):
    settings = ("workers=3", "f=0", "aggregator=mean", "data=synthetic")
    return varangian("worker", "--server", address, *options, *settings)


def test_a_worker_that_cannot_connect_says_why_at_once(varangian, bundles, monkeypatch, caplog):
    monkeypatch.setenv("VARANGIAN_SECRET", "x" * 32)
    ours = ("--certs", str(bundles / "ours"))
    with answering(Security(bundles / "theirs").credentials()) as address:
        assert worker(varangian, address, "--name", "w00", *ours)[0] == 1
        assert "bundles of the same authority?" in caplog.text
        assert worker(varangian, address, "--name", "w00")[0] == 1
        assert "Add --certs DIR" in caplog.text
    code, said = worker(varangian, "127.0.0.1:1", "--name", "w02", *ours)
    assert (code, "or a directory w02 that does. Found neither" in said) == (1, True)
    code, said = worker(varangian, "127.0.0.1:1", "--name", "w01", "--certs", str(bundles / "ours/w00"))
    assert (code, "should be the bundle of w01. Found that of w00" in said) == (1, True)
    code, said = worker(varangian, "127.0.0.1:1", "--claim", "honest", "--certs", str(bundles / "expired"))
    assert (code, "should have the bundle of one of w00, w01, w02. Found none." in said) == (1, True)


@pytest.mark.parametrize("name", ["ours/w00", "expired"])
def test_a_server_does_not_start_with_a_bad_bundle(varangian, bundles, name):
    code, said = varangian("server", "--certs", str(bundles / name), "workers=3", "f=0", "aggregator=mean")
    assert code == 1
    assert "should" in said
    assert "Traceback" not in said


def test_workers_have_names_of_their_own(made, tmp_path):
    settings = ("workers=[carol, alice, bob]", "byzantine.count=1", "f=1", "aggregator=median")
    assert made("certs", "issue", "ca", "--claim", "honest", *settings)[0] == 0
    assert made("certs", "issue", "ca", "--claim", "byzantine", *settings)[0] == 0
    assert Bundle.load(tmp_path / "ca/carol").name == "carol"
    assert {path.name for path in (tmp_path / "ca").iterdir()} == {"authority", "alice", "bob", "carol"}
    code, said = made("worker", "--server", "127.0.0.1:1", "--name", "dave", "--certs", "ca", *settings)
    assert (code, "there is no such worker. Found 'dave'" in said) == (2, True)


@pytest.mark.slow
def test_a_run_with_tls_has_the_numbers_of_a_simulation(tmp_path):
    pytest.importorskip("cryptography")
    from varangian.launch import run

    settings = SMALL | {"rounds": 2, "data": "synthetic", "output": str(tmp_path), "server": {"tls": True}}
    found = {
        backend: run(loads(settings | {"backend": backend}), observe=lambda record: None, note=print)
        for backend in ("processes", "simulate")
    }
    assert found["processes"].outcome == "finished"
    assert found["processes"].digest == found["simulate"].digest
    assert not [
        path for path in tmp_path.rglob("*") if stat.S_ISREG(path.stat().st_mode) and "pem" in path.name
    ]


def test_a_run_that_needs_certificates_says_what_to_install(tmp_path, monkeypatch):
    from varangian.launch.identities import make_identities, uses_tls
    from varangian.launch.result import RunError
    from varangian.pki import x509

    monkeypatch.setattr(x509, "find_spec", lambda name: None)
    config = loads(SMALL | {"server": {"host": "0.0.0.0"}})
    assert uses_tls(config)
    with (
        pytest.raises(RunError, match=r"varangian\[certs\].*Or set server.tls=false"),
        make_identities(config),
    ):
        pass
    plain = loads(SMALL | {"server": {"host": "0.0.0.0", "tls": False}})
    with make_identities(plain) as known:
        assert known.security is None
    assert replace(known, security=None) == known
