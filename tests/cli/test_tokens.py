"""Tokens from the command line: the server's secret stays at the server."""

import stat
from types import SimpleNamespace

import pytest

from varangian.cli import tokens
from varangian.cli.commands import worker as worker_command
from varangian.cli.main import CommandError
from varangian.protos.errors import Refused
from varangian.protos.refusals import Refusal
from varangian.server.identity.sessions import Sessions

SECRET = "a secret of this test"
ELSEWHERE = "ps.test:50051"


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """None of the variables, and a folder of its own; returns how to set a variable."""
    for name in ("SECRET", "SECRET_FILE", "TOKEN", "TOKEN_FILE", "CERTS", "INSECURE"):
        monkeypatch.delenv(f"VARANGIAN_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    return lambda name, value: monkeypatch.setenv(f"VARANGIAN_{name}", value)


@pytest.fixture
def shown(monkeypatch):
    """What `varangian worker` would show to the server: names and tokens."""
    calls = []
    monkeypatch.setattr(
        worker_command, "host", lambda server, names, proofs, *_, **__: calls.append(proofs) or 0
    )
    monkeypatch.setattr(worker_command, "task", lambda config: SimpleNamespace())
    monkeypatch.setattr(worker_command, "needs_classes", lambda config: False)
    return calls


def accepted(secret, proofs):
    """The names that a server with this secret hears, however often it was started."""
    sessions = Sessions(["w00", "w01", "w02"], secret.encode())
    headers = [
        [("varangian-worker", name), ("varangian-token", token), ("varangian-session", "0" * 32)]
        for name, token in proofs.items()
    ]
    return {sessions.authenticate(one) for one in headers}


def test_a_worker_elsewhere_needs_its_token_only(varangian, shown, environment):
    environment("SECRET", SECRET)
    code, token, _ = varangian("token", "w01")
    assert (code, token.startswith("w01:"), SECRET in token) == (0, True, False)
    environment("TOKEN", token)
    environment("SECRET", "")  # the worker's machine has none
    for typed in ((), ("--name", "w01"), ("--claim", "honest")):
        assert varangian("worker", "--server", ELSEWHERE, "--insecure", *typed)[0] == 0
    assert [accepted(SECRET, proofs) for proofs in shown] == [{"w01"}] * 3


def test_the_token_of_one_worker_is_worth_nothing_for_another(varangian, environment):
    environment("SECRET", SECRET)
    token = varangian("token", "w01")[1].strip().partition(":")[2]
    with pytest.raises(Refused) as caught:
        accepted(SECRET, {"w02": token})
    assert caught.value.refusal is Refusal.BAD_TOKEN
    with pytest.raises(Refused):
        accepted("another secret than that", {"w01": token})


def test_a_secret_file_is_made_once_and_read_by_its_owner_only(varangian, environment, tmp_path, shown):
    said = [varangian("token", "--secret", "s/secret", "--out", "t/tokens", "w00", "w01") for _ in range(2)]
    assert [(code, out) for code, out, _ in said] == [(0, "wrote 2 tokens to t/tokens\n")] * 2
    assert [err.startswith("made a new secret in s/secret") for _, _, err in said] == [True, False]
    for name in ("s/secret", "t/tokens"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    environment("SECRET_FILE", "s/secret")
    environment("TOKEN_FILE", "t/tokens")
    assert varangian("worker", "--server", ELSEWHERE, "--insecure", "--claim", "honest")[0] == 0
    assert accepted(tokens.secret().decode(), shown[0]) == {"w00", "w01"}


def test_the_tokens_of_a_configuration(varangian, environment):
    environment("SECRET", SECRET)
    settings = ("workers=[carol, alice, bob]", "f=1", "aggregator=median", "byzantine.count=1")
    found = [
        {line.partition(":")[0] for line in varangian("token", "--claim", kind, *settings)[1].splitlines()}
        for kind in ("honest", "byzantine")
    ]
    assert found[0] | found[1] == {"alice", "bob", "carol"}
    assert not found[0] & found[1]


def test_the_secret_of_all_works_at_a_worker_of_this_machine_only(varangian, environment, shown):
    environment("SECRET", SECRET)
    assert varangian("worker", "--server", "127.0.0.1:1", "--name", "w01")[0] == 0
    assert accepted(SECRET, shown[0]) == {"w01"}
    code, _, said = varangian("worker", "--server", ELSEWHERE, "--insecure", "--name", "w01")
    assert (code, len(shown)) == (1, 1)
    assert "should be at the server alone: whoever has it can be every worker" in said
    assert "varangian token w01" in said


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        (None, "Neither is set"),
        ("short", "at least 16 bytes. Found 5"),
        ("change-this-secret", "Found the one of an example, which everybody knows"),
    ],
)
@pytest.mark.parametrize("place", ["SECRET", "SECRET_FILE"])
def test_a_server_needs_a_secret_of_its_own(varangian, environment, tmp_path, place, secret, said):
    if secret is not None:
        (tmp_path / "file").write_text(f"{secret}\n")
        environment(place, secret if place == "SECRET" else str(tmp_path / "file"))
    for command in (["server"], ["token", "w00"], ["worker", "--server", "127.0.0.1:1", "--name", "w00"]):
        code, out, err = varangian(*command)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert said in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Found nothing in it"),
        ("hello", "Found something else"),
        (f"w00:{'g' * 64}", "Found something else"),
        (f"w00:{'0' * 64}\nw00:{'1' * 64}", "Found two of w00"),
        ("0" * 64, "Found one without a name"),
        (f"w07:{'0' * 64}", "should hold a token of w00. Found one of w07"),
    ],
)
def test_what_is_no_token_is_one_sentence_that_does_not_show_it(varangian, environment, text, said):
    environment("TOKEN", text)
    if not text:
        environment("TOKEN", " ")
    code, _, err = varangian("worker", "--server", "127.0.0.1:1", "--name", "w00")
    assert (code, err.count("\n")) == (1, 1)
    assert said in err
    assert "hello" not in err
    assert "0000" not in err


def test_a_file_that_cannot_be_read_is_named(environment, tmp_path):
    environment("TOKEN_FILE", str(tmp_path / "none"))
    with pytest.raises(CommandError, match=r"none should be readable. VARANGIAN_TOKEN_FILE names it"):
        tokens.tokens_of_environment()
    environment("TOKEN", "x")
    with pytest.raises(CommandError, match="should not be set both"):
        tokens.tokens_of_environment()


@pytest.mark.parametrize("words", [[], ["w00", "workers=3"], ["../w00"], ["w00", "--claim", "honest"]])
def test_a_token_needs_a_name(varangian, environment, words):
    environment("SECRET", SECRET)
    code, out, err = varangian("token", *words)
    assert (code, out, err.count("\n")) == (1, "", 1)
