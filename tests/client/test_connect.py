"""Connecting: names and proofs, what the server does not take, and arguments that cannot be used."""

import pytest
import torch
from tests.client.rig import model, serving
from torch import nn

from varangian import ClientError, connect
from varangian.client.credentials import credentials
from varangian.protos.contract import Terms
from varangian.protos.shared_settings import SharedSettings
from varangian.server.identity.tls import Security

DIGITS = "ab" * 32
PARTICIPATION = {"workers": "3", "model": "mlp", "participation": "vectors"}


def test_a_worker_with_another_model_is_told_what_differs():
    with serving(model()) as rig, pytest.raises(ClientError, match=r"Found '2x3 0.weight'") as caught:
        rig.connect(nn.Sequential(nn.Linear(3, 2)))
    assert "w00 could not join" in str(caught.value)


def test_a_worker_that_the_run_does_not_have_is_refused():
    with serving(model()) as rig:
        for options, code in [({"name": "w09"}, "UNKNOWN_WORKER"), ({"token": DIGITS}, "BAD_TOKEN")]:
            with pytest.raises(ClientError, match=code):
                rig.connect(model(), **{"token": DIGITS} | options)


def test_a_server_that_cannot_be_reached_is_awaited_as_long_as_patience_lasts(unused_port):
    address = f"127.0.0.1:{unused_port}"
    with pytest.raises(ClientError, match=f"could not join at {address} after"):
        connect(address, model(), name="w00", token=DIGITS, patience=0.01)


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as held:  # bound and not listening
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_the_certificate_says_who_it_is(bundles):
    module = model()
    ours = bundles / "ours"
    with serving(module, "w00", "w01", security=Security(ours / "server")) as rig:
        for options in ({"certs": ours / "w00", "name": None}, {"certs": ours, "name": "w01"}):
            with rig.connect(module, **options) as worker:
                assert worker.name == (options["name"] or "w00")
                assert worker.pull()
                assert worker.push(torch.zeros(worker.layout.numel))
        with pytest.raises(ClientError, match="could not join"):
            rig.connect(module, token=DIGITS, patience=0.01)


def test_only_what_concerns_a_loop_of_ones_own_is_compared():
    module = model()
    with serving(module, common=SharedSettings(PARTICIPATION)) as rig, rig.connect(module):
        pass
    other = SharedSettings(PARTICIPATION | {"participation": "models"})
    with serving(module, common=other) as rig, pytest.raises(ClientError, match="should be models"):
        rig.connect(module)


def test_a_program_that_connects_again_has_the_new_connection(caplog):
    module = model()
    with serving(module) as rig:
        before = rig.connect(module)
        assert before.pull()
        with rig.connect(module) as worker:
            assert worker.pull()
            assert worker.push(torch.zeros(worker.layout.numel))
            with pytest.raises(ClientError, match="Worker w00 is closed"):
                before.pull()
        before.close()
    said = [one.getMessage() for one in caplog.records if "by this program before" in one.getMessage()]
    assert said == [f"w00 was connected to {rig.address} by this program before; that connection is closed"]


def test_momentum_is_that_of_the_settings_unless_another_is_asked_for():
    module, terms = model(), Terms(momentum=0.25, deadline=60.0)
    with serving(module, "w00", "w01", "w02", terms=terms) as rig:
        for name, asked, used in [("w00", None, 0.25), ("w01", 0.5, 0.5), ("w02", 0, 0)]:
            with rig.connect(module, name, momentum=asked) as worker:
                assert worker.momentum == used
                assert worker.terms.deadline == 60.0
        for wrong in (1, -0.1, float("nan"), "0.9"):
            with pytest.raises(ClientError, match="`momentum` should be a number from 0 to below 1"):
                rig.connect(module, momentum=wrong)


def who(server="127.0.0.1:1", certs=None, name=None, token=None, insecure=False, **environment):
    return credentials(server, certs, name, token, insecure, environment)


def test_a_token_comes_from_the_argument_or_the_environment(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"w01:{DIGITS}\nw02:{DIGITS[::-1]}\n")
    assert who(name="w03", token=DIGITS) == ("w03", DIGITS)
    assert who(token=f"w03:{DIGITS}") == ("w03", DIGITS)
    assert who(VARANGIAN_TOKEN=f"w04:{DIGITS}") == ("w04", DIGITS)
    assert who(name="w02", VARANGIAN_TOKEN_FILE=str(file)) == ("w02", DIGITS[::-1])
    assert who("far.example:1", name="w0", token=DIGITS, insecure=True) == ("w0", DIGITS)
    assert who("far.example:1", name="w0", token=DIGITS, VARANGIAN_INSECURE="1") == ("w0", DIGITS)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"server": "localhost"}, r"`server` should be HOST:PORT. Found 'localhost'. Did you mean"),
        ({}, "Found neither, nor VARANGIAN_CERTS or VARANGIAN_TOKEN in the environment"),
        ({"token": "secret"}, "`token` should hold tokens as `varangian token` prints them"),
        ({"token": f"w0:{DIGITS} w0:{DIGITS[::-1]}"}, "one for each name. Found two of w0"),
        ({"token": DIGITS}, "`name` should say which worker this is. Found a token without a name"),
        ({"token": f"w00:{DIGITS} w01:{DIGITS}"}, "Found w00, w01"),
        ({"token": f"w00:{DIGITS}", "name": "w01"}, "`token` should be that of w01. Found that of w00"),
        ({"token": DIGITS, "name": "w0", "certs": "x"}, "should not be given both"),
        (
            {"token": DIGITS, "name": "w0", "server": "far.example:1"},
            "`certs` is needed beyond this machine: without TLS anybody",
        ),
        ({"token": 3}, "`token` should be a text, NAME:DIGITS. Found int"),
        ({"token": DIGITS, "name": 3}, "`name` should be a text, that of the worker. Found 3"),
        (
            {"token": DIGITS, "name": "w0", "insecure": "no"},
            "`insecure` should be True or False. Found 'no'",
        ),
        ({"certs": b"w00"}, "`certs` should be a path. Found b'w00'"),
        ({"VARANGIAN_TOKEN_FILE": "/no/such"}, "/no/such should be readable"),
        ({"VARANGIAN_TOKEN_FILE": "x", "VARANGIAN_TOKEN": "x"}, "should not be set both"),
        ({"certs": "/no/such"}, "`certs` cannot be used. /no/such"),
        ({"VARANGIAN_CERTS": "/no/such"}, "`certs` cannot be used"),
        ({"certs": "/no/such", "name": "w0"}, "or a directory w0 that does"),
    ],
)
def test_what_proves_nothing_is_an_error_of_one_sentence(given, says):
    with pytest.raises(ClientError, match=says) as caught:
        who(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [3, b"x", [1]])
def test_a_folder_of_states_is_a_path(value):
    with pytest.raises(ClientError, match="`state` should be a path"):
        connect("127.0.0.1:1", model(), name="w0", token=DIGITS, state=value)


def test_a_folder_of_bundles_needs_a_name(bundles):
    with pytest.raises(ClientError, match=r"`name` should say which bundle in .* Found .*w00"):
        who(certs=bundles / "ours")
    with pytest.raises(ClientError, match=r"should be the bundle of w01. Found that of w00"):
        who(certs=bundles / "ours" / "w00", name="w01")
