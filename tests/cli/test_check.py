"""`varangian check` is a dry run: what would stop a run is said before it, and nothing is left behind."""

import socket

import pytest
import torch

from varangian.cli.arguments.main import parse
from varangian.files import user_path

SMALL = ("workers=4", "f=0", "aggregator=median", "model=softmax")


def test_a_dry_run_leaves_nothing_behind(varangian, tmp_path):
    code, out, err = varangian("check", *SMALL, "server.tls=false")
    assert (code, err) == (0, "")
    said = [line for line in out.splitlines() if line.startswith("# ")]
    for what in (
        "data and model: 1438 training samples, 650 parameters",
        "memory: ",
        "output: ",
        "server.port: ",
    ):
        assert any(line.startswith(f"# ok: {what}") for line in said), what
    assert any(line.startswith("# not tried: the ") and "worker processes" in line for line in said)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["data=nowhere_to_be_found:load"], "nowhere_to_be_found"),
        (["data.cifar10.path=nowhere"], "nowhere"),
        (["model=nowhere_to_be_found:build"], "nowhere_to_be_found"),
        (["output=file"], "output: run folders cannot be made in "),
        (["output=file/runs"], "output: run folders cannot be made in "),
        (["server.port={taken}"], "server: "),
        (["server.data_port={taken}"], "server: "),
        (["server.host=192.0.2.1", "server.tls=false"], "192.0.2.1"),
        pytest.param(
            ["worker.device=cuda"],
            "torch sees no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (["worker.device=abacus"], "abacus"),
    ],
)
@pytest.mark.parametrize("static", [False, True])
def test_what_would_stop_a_run_is_said_before_it(varangian, tmp_path, settings, said, static):
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        filled = [text.replace("{taken}", str(taken.getsockname()[1])) for text in settings]
        code, out, err = varangian("check", *SMALL, *filled, *(["--static"] if static else []))
    assert code == (0 if static else 2)
    assert (said in err) is not static
    assert out.startswith("seed: 1\n"), "the settings are printed whatever is wrong"
    assert "Traceback" not in err
    if static:
        assert "# not tried: data, model, device, memory" in out


def test_all_that_would_stop_a_run_is_said_at_once(varangian, monkeypatch):
    monkeypatch.setattr("varangian.launch.dry_run.available_memory", lambda: 1 << 20)
    code, _, err = varangian("check", *SMALL, "output=/dev/null")
    assert code == 2
    assert err.splitlines()[0] == "2 problems that would stop this run:"
    assert "memory: the server needs up to" in err


def test_home_is_found_in_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/runs") == tmp_path / "runs"
    assert str(user_path("~nobody-has-this-name/runs")) == "~nobody-has-this-name/runs"
    assert str(user_path("runs/~")) == "runs/~"


def test_home_is_found_in_arguments(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    home = str(tmp_path / "x")
    assert parse(["run", "--output=~/x"]).output == home
    assert parse(["certs", "issue", "~/x", "w00", "--into=~/x"]).into == home
    assert parse(["certs", "list", "~/x"]).dir == home
    assert parse(["health", "--server=localhost:1", "--certs=~/x"]).certs == home
    assert parse(["graph", "ring", "--png=~/x"]).png == home
    assert parse(["bench", "aggregators", "--json=~/x"]).json == home
