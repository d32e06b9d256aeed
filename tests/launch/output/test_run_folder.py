import csv
import json
import os
import shutil
import stat

import pytest
import torch
import yaml

from varangian.aggregators.kernels import kernels_in_use
from varangian.config import load, loads
from varangian.files import write_atomically
from varangian.launch import RunError, RunResult
from varangian.launch.output.run_folder import RunFolder, short_name
from varangian.server.observability.record import RoundRecord

MODELS = {"parameters.safetensors": b"model", "ema.safetensors": b"average"}


@pytest.fixture
def folder(small):
    made = RunFolder.create(small(), ["varangian", "run"])
    yield made
    made.close()


def record(round, **fields):
    return RoundRecord(**{"round": round, "dropped": {}, "missing": (), "seconds": {}} | fields)


def test_a_new_folder_says_what_will_run(folder, small):
    assert loads(yaml.safe_load((folder.path / "config.yaml").read_text())) == small()
    manifest = json.loads((folder.path / "manifest.json").read_text())
    assert manifest["packages"]["torch"] == torch.__version__
    assert manifest["seed"] == 1
    assert manifest["threads"] == {"server": 1, "worker": 1}
    assert manifest["kernels"] == kernels_in_use()
    assert manifest["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert manifest["command"] == ["varangian", "run"]
    assert not (folder.path / "result.json").exists()


def test_a_run_folder_is_readable_by_its_owner_only(folder):
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    shutil.rmtree(folder.path)
    saved = folder.save(MODELS)
    assert (saved, stat.S_IMODE(saved.stat().st_mode)) == (folder.path, 0o700)


def test_a_folder_of_a_given_path_is_made_and_must_be_empty(small, tmp_path):
    path = tmp_path / "below" / "here"
    made = RunFolder.create(small(), path=path)
    made.close()
    assert (made.path, stat.S_IMODE(path.stat().st_mode)) == (path, 0o700)
    with pytest.raises(RunError, match=r"below' cannot be written: here is not empty\. .*output=DIR"):
        RunFolder.create(small(), path=path)
    assert (path / "config.yaml").exists()


def test_runs_of_the_same_second_have_folders_of_their_own(small):
    folders = [RunFolder.create(small()) for _ in range(3)]
    assert len({made.path for made in folders}) == 3
    for made in folders:
        made.close()


def test_rounds_are_on_disk_soon(folder):
    folder.observe(
        record(
            0,
            loss=1.5,
            train_loss=1.25,
            lr=0.5,
            accuracy=0.25,
            update_norm=2.0,
            seconds={"wait": 0.5, "step": 0.25},
        )
    )
    folder.observe(record(1, dropped={"w01": "not finite\n"}))
    folder.flush()
    lines = (folder.path / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1]
    first, second = csv.DictReader((folder.path / "metrics.csv").read_text().splitlines())
    assert float(first.pop("time")) >= 0
    assert first == {
        "round": "0",
        "lr": "0.5",
        "train_loss": "1.25",
        "loss": "1.5",
        "accuracy": "0.25",
        "update_norm": "2.0",
        "seconds": "0.750000",
    }
    assert second["loss"] == ""


def test_metrics_are_columns_by_name(small):
    made = RunFolder.create(small("ema.reference_batch=8"), metrics=("mae", "mine"))
    made.observe(record(0, loss=1.5, ema_loss=1.25, metrics={"mae": 0.5, "mine": 2.0, "ema_mae": 0.25}))
    made.close()
    (row,) = csv.DictReader((made.path / "metrics.csv").read_text().splitlines())
    names = ["round", "time", "lr", "train_loss", "loss", "mae", "mine"]
    assert [*row] == [*names, "ema_loss", "ema_mae", "ema_mine", "update_norm", "seconds"]
    assert (row["mae"], row["mine"], row["ema_mae"], row["ema_mine"]) == ("0.5", "2.0", "0.25", "")


def test_the_end_of_a_run(folder):
    result = RunResult(0.5, float("nan"), "ab", 2, 1.0, "done", "finished", folder.path)
    assert folder.finish(result, MODELS).folder == folder.path
    for name, content in MODELS.items():
        assert (folder.path / name).read_bytes() == content
    written = json.loads((folder.path / "result.json").read_text())
    assert written.pop("record")["lines"] == 0
    assert written == result.plain()
    assert written["loss"] is None
    assert written["folder"] == str(folder.path)
    assert not [path for path in folder.path.iterdir() if path.name.startswith(".")]


def test_what_a_run_leaves_is_saved_elsewhere_when_its_folder_cannot_be_written(
    small, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    warnings = []
    made = RunFolder.create(small(), warn=warnings.append)
    made.observe(record(0))
    made.flush()
    shutil.rmtree(made.path)
    made.path.write_text("in the place of the folder")
    made.observe(record(1))
    ended = made.finish(RunResult(0.5, 1.0, "ab", 2, 1.0, "done", "finished", made.path), MODELS)
    made.close()
    assert ended.folder == tmp_path / "here" / made.path.name
    assert {path.name for path in ended.folder.iterdir()} == {
        *MODELS,
        "config.yaml",
        "manifest.json",
        "metrics.csv",
        "result.json",
        "rounds.jsonl",
    }
    assert len((ended.folder / "rounds.jsonl").read_text().splitlines()) == 2
    assert json.loads((ended.folder / "result.json").read_text())["folder"] == str(ended.folder)
    assert any(f"the parameters are in {ended.folder}" in text for text in warnings)


def test_a_folder_that_was_deleted_is_made_again(folder):
    folder.observe(record(0))
    folder.flush()
    shutil.rmtree(folder.path)
    folder.save(MODELS)
    assert (folder.path / "parameters.safetensors").read_bytes() == b"model"
    assert len((folder.path / "rounds.jsonl").read_text().splitlines()) == 1


def test_a_run_that_did_not_begin_leaves_no_folder(folder):
    folder.close()
    folder.discard()
    assert not folder.path.exists()


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    made = RunFolder.create(load(None, ["output=~/runs"]))
    made.close()
    assert made.path.parent == tmp_path / "runs"
    assert not (tmp_path / "~").exists()


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomically(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("varangian.files.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="this system has no files without a name")
def test_a_file_that_is_being_written_has_no_name(tmp_path, monkeypatch):
    during = []
    monkeypatch.setattr("varangian.files.fsync", lambda descriptor: during.append([*tmp_path.iterdir()]))
    write_atomically(tmp_path / "result.json", b"new")
    assert during[0] == []
    assert (tmp_path / "result.json").read_bytes() == b"new"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"run folder in '.*file.*' cannot be written: .*output=DIR"):
        RunFolder.create(load(None, [f"output={tmp_path / place}"]))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ([], "flag"),
        (["aggregator={mix: [nnm, bucketing], rule: median}", "f=2"], "nnm-bucketing-median"),
        (["byzantine.attack=alie", "byzantine.count=3"], "flag-alie"),
        (["aggregator={fedlaavg: {rule: median}}"], "fedlaavg-median"),
        (["participation=async", "aggregator=mean"], "async-mean"),
    ],
)
def test_a_folder_is_named_for_what_the_run_shows(settings, name):
    assert short_name(load(None, settings)) == name
