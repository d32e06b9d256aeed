"""A run as its folder tells it, and as `varangian status` prints it."""

import json
import os
import socket

import pytest

import varangian
from varangian.cli.views.status import plain_lines, rich_view
from varangian.launch.monitoring.facts import byzantine_of, name_of, names_of, title_of
from varangian.launch.monitoring.folder import BOOT, FolderView
from varangian.launch.result import RunError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A short run against attackers."""
    result = varangian.run(
        rounds=12,
        workers=6,
        f=1,
        backend="simulate",
        evaluate={"every": 3},
        aggregator="median",
        byzantine={"count": 1, "attack": "sign_flip"},
        output=str(tmp_path_factory.mktemp("runs")),
    )
    return result.folder


def test_a_run_that_is_over(folder):
    state = json.loads(FolderView(folder).overview().json())
    result = json.loads((folder / "result.json").read_text())
    assert (state["state"], state["round"], state["rounds"]) == ("finished", 12, 12)
    assert state["sentence"] == result["reason"]
    assert [round for round, _ in state["curves"]["loss"]] == [2, 5, 8, 11]
    assert state["title"] == "median against 1 x sign_flip"
    assert [one["name"] for one in state["workers"]] == [f"w0{place}" for place in range(6)]
    assert [one["byzantine"] for one in state["workers"]] == [False] * 5 + [True]
    assert {one["outcome"] for one in state["workers"]} == {"counted"}
    assert state["facts"]["parameters"] == result["digest"]
    lines = list(plain_lines(state))
    assert lines[0] == f"{folder.name} median against 1 x sign_flip: finished"
    assert any(line.startswith("w05 (attacks)") for line in lines)
    rich_view(state)


def test_a_run_is_followed_while_it_goes_on(folder, tmp_path):
    lines = (folder / "rounds.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
    view = FolderView(tmp_path)
    assert (view.overview().round, view.overview().state) == (0, "stopped")
    record = tmp_path / "rounds.jsonl"
    record.write_bytes(b"".join(lines[:4]) + lines[4][:20])
    lock = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot": BOOT.read_text().strip(),
        "ended": None,
    }
    (tmp_path / "lock").write_text(json.dumps(lock) + "\n")
    assert (view.overview().round, view.overview().state) == (4, "running")
    record.write_bytes(b"".join(lines))
    assert view.overview().round == 12
    for ended in (
        {"ended": "2026-01-01T00:00:00+0000"},
        {"pid": 1 << 22, "ended": None},
        {"boot": "another"},
    ):
        (tmp_path / "lock").write_text(json.dumps({**lock, **ended}) + "\n")
        assert view.overview().state == "stopped"


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(RunError, match="should be the folder of a run"):
        FolderView(tmp_path)
    (tmp_path / "config.yaml").write_text("- 1\n")
    with pytest.raises(RunError, match="has no settings"):
        FolderView(tmp_path)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"krum": {"select": 3}}, "krum"),
        ({"mix": ["nnm"], "rule": {"krum": {}}}, "nnm+krum"),
        ({"name": "sgd", "lr": 1.0}, "sgd"),
        ("own.module:Rule", "Rule"),
        (None, "None"),
        ("\x1b[31m", "\\x1b[31m"),
    ],
)
def test_names_of_settings(value, name):
    assert name_of(value) == name


def test_workers_of_settings():
    assert names_of({"workers": 3, "names": None}) == ("w00", "w01", "w02")
    assert byzantine_of({"workers": 3, "names": ["a", "b", "c"], "byzantine": {"count": 1}}) == {"c"}
    assert title_of({"aggregator": {"mean": {}}}) == "mean"
