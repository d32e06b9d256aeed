"""`varangian workers`, and workers that join a run later, as far as neither needs a server."""

from argparse import Namespace

import pytest

from varangian.cli.arguments.main import parse
from varangian.cli.commands.worker import with_newcomer
from varangian.config import load

SERVER = ("--server", "127.0.0.1:9")


@pytest.mark.parametrize("action", ["list", "admit", "drain", "expel"])
def test_only_operators_change_members(varangian, bundles, action, monkeypatch):
    monkeypatch.delenv("VARANGIAN_CERTS", raising=False)
    words = ("workers", action, *(() if action == "list" else ("w00",)), *SERVER)
    code, _, err = varangian(*words)
    assert code == 1
    assert f"varangian workers {action} needs --certs with an operator's certificate" in err
    assert "`varangian certs issue DIR --operator NAME` makes one" in err
    code, _, err = varangian(*words, "--certs", str(bundles / "ours/w00"))
    assert (code, "should be the certificate of an operator. Found that of the worker w00" in err) == (
        1,
        True,
    )


def test_a_worker_leaves_with_its_own_certificate(varangian, monkeypatch):
    monkeypatch.delenv("VARANGIAN_CERTS", raising=False)
    code, _, err = varangian("workers", "leave", *SERVER)
    assert (code, "needs --certs with a worker's certificate" in err) == (1, True)


def test_a_server_that_is_not_there_is_named(varangian, bundles):
    code, _, err = varangian("workers", "leave", *SERVER, "--certs", str(bundles / "ours/w00"))
    assert code == 1
    assert "Nothing listens at 127.0.0.1:9" in err


@pytest.mark.parametrize(("text", "f"), [("0", 0), ("3", 3), ("-1", None), ("x", None)])
def test_f_is_a_number(text, f, capsys):
    words = ["workers", "drain", "w00", *SERVER, "--f", text]
    if f is None:
        with pytest.raises(SystemExit):
            parse(words)
        assert "should be a whole number, at least 0" in capsys.readouterr().err or text == "-1"
    else:
        assert parse(words).f == f


@pytest.mark.parametrize(
    ("settings", "joins"),
    [
        ((), True),
        (("partition=private",), True),
        (("partition=iid",), False),
        (("byzantine={count: 1, attack: sign_flip}",), False),
    ],
)
def test_a_worker_that_was_admitted_later_has_the_name_on_its_certificate(bundles, settings, joins):
    config = load(None, ["workers=[alice, bob, carol]", "f=0", *settings], whole=False)
    args = Namespace(name=None, claim=None)
    found = with_newcomer(args, config, bundles / "ours/w00")
    assert ("w00" in found.worker_names) == joins
    assert found.workers == len(found.worker_names) == 3 + joins
    assert with_newcomer(Namespace(name=["w00"], claim=None), config, bundles / "ours/w00") is config
