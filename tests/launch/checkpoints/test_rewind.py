"""Checkpoints that a run has kept, and runs that begin from one of them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.launch.checkpoints.kit import CONFIG

from varangian.cli.commands.rewind import table
from varangian.cli.main import main
from varangian.config import load
from varangian.launch import RunError
from varangian.launch.checkpoints.folder import CheckpointFolder
from varangian.launch.checkpoints.resume import resume, settings_of
from varangian.launch.checkpoints.rewind import branch, kept_checkpoints
from varangian.launch.checkpoints.worker_states import lost_states, tidy_states, worker_states
from varangian.protos.contract import Terms
from varangian.state_file import write
from varangian.worker.checkpoints.store import PartStore


@pytest.fixture
def run(kept):
    """The folder of a run with checkpoints of rounds 2, 4, 6 and 8, of which the first is the best."""
    made = kept("a-run", every=2, keep=3)
    for round, accuracy in enumerate([0.1, 0.9, *[0.2] * 7]):
        made.round(round, accuracy=accuracy)
    made.close()
    return made.run.path


def test_checkpoints_are_listed_with_the_reasons_why_they_are_kept(run):
    newest, middle, _, oldest = kept_checkpoints(run)
    assert [one.round for one in (newest, middle, oldest)] == [8, 6, 2]
    assert (newest.why, middle.why, oldest.why) == (("newest",), ("newest",), ("best",))
    assert (oldest.score.name, oldest.score.value) == ("accuracy", 0.9)
    assert newest.bytes == CheckpointFolder(run).file(8).stat().st_size
    heading, first, *_ = table([newest, middle, oldest])
    assert heading.split() == [
        "round",
        "score",
        "kept",
        "as",
        "size",
        "written",
        *["states", "of", "workers"],
    ]
    assert first.split()[:4] == ["8", "accuracy", "0.2", "newest"]


def test_one_that_cannot_be_used_is_in_the_list(run):
    CheckpointFolder(run).file(4).write_bytes(b"no checkpoint")
    _, _, damaged, _ = kept_checkpoints(run)
    assert damaged.damage
    assert f"cannot be used: {damaged.damage}" in table([damaged])[1]


def test_a_branch_begins_with_its_round_and_leaves_the_run_alone(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    made = branch(run, 4)
    assert made == run.with_name("a-run-r4")
    assert CheckpointFolder(made).rounds() == [4]
    lines = (made / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2, 3]
    rows = (made / "metrics.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["round", "0", "1", "2", "3"]
    assert (made / "config.yaml").read_bytes() == before[run / "config.yaml"]
    manifest = json.loads((made / "manifest.json").read_bytes())
    origin = manifest.pop("branch_of")
    assert (origin["runs"], origin["round"]) == (["a-run"], 4)
    assert manifest == json.loads(before[run / "manifest.json"])
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_branch_goes_on_and_has_branches(run, tmp_path):
    made = branch(run, 4, tmp_path / "elsewhere")
    again = branch(made, 4)
    for folder in (made, again):
        _, resumed = resume(settings_of(folder), folder, lambda text: None)
        resumed.lock.release()
        # Nobody has worked in the first branch: what workers have kept is that of the run.
        assert (resumed.round, resumed.parent, resumed.lock.epoch) == (4, "a-run", 1)


def test_a_run_goes_on_whose_folder_has_a_new_name(run):
    """Its record has the lines that its checkpoints name, as that of no other run has."""
    renamed = run.rename(run.with_name("the best one"))
    made = branch(renamed, 4)
    for folder, round in ((renamed, 8), (made, 4)):
        _, resumed = resume(settings_of(folder), folder, lambda text: None)
        resumed.lock.release()
        assert (resumed.round, resumed.parent) == (round, "a-run")


@pytest.mark.parametrize("named", [".", "../a-run/.", "../latest"])
def test_a_folder_has_its_name_however_it_is_written(run, named, monkeypatch):
    run.with_name("latest").symlink_to(run)
    monkeypatch.chdir(run)
    made = branch(Path(named), 4)
    assert made.resolve() == run.with_name("a-run-r4")
    _, resumed = resume(settings_of(Path(named)), Path(named), lambda text: None)
    resumed.lock.release()
    assert (resumed.folder.resolve(), resumed.parent) == (run, "")
    assert resumed.folder.name == "a-run"


def test_other_files_of_states_are_no_checkpoints(run):
    """Kept rows have a round and a version, too."""
    write(CheckpointFolder(run).file(8), {"version": 1, "round": 8, "state": {"rows": {}}}, {})
    newest, *_ = kept_checkpoints(run)
    assert (newest.round, newest.damage) == (8, "it is no checkpoint")
    _, resumed = resume(settings_of(run), run, lambda text: None)
    resumed.lock.release()
    assert resumed.round == 6
    with pytest.raises(RunError, match="cannot be used: it is no checkpoint"):
        branch(run, 8)
    CheckpointFolder(run).file(8).unlink()
    CheckpointFolder(run).file(8).mkdir()
    with pytest.raises(RunError, match=r"round-000008\.safetensors cannot be read: Is a directory"):
        branch(run, 8)


def test_a_checkpoint_that_goes_while_they_are_listed_is_left_out(run):
    CheckpointFolder(run).file(8).unlink()
    CheckpointFolder(run).file(8).symlink_to("nowhere")
    assert [one.round for one in kept_checkpoints(run)] == [6, 4, 2]


def test_what_workers_have_kept_is_copied(run):
    (run / "workers" / "w00").mkdir(parents=True)
    (run / "workers" / "w00" / "slot-0").write_bytes(b"momentum")
    copy = branch(run, 4) / "workers" / "w00" / "slot-0"
    assert copy.read_bytes() == b"momentum"
    assert copy.stat().st_nlink == 1, "slots are written in place"


def test_it_says_of_which_workers_there_are_states(run, capsys):
    def said():
        assert main(["rewind", str(run), "--round", "4", "--output", str(run.with_name("made"))]) == 0
        shutil.rmtree(run.with_name("made"))
        return capsys.readouterr().out

    def shown():
        return [str(one.workers) for one in kept_checkpoints(run)]

    assert shown() == ["none here"] * 4
    assert "of round 4 no states of workers are here: those elsewhere go on with their own" in said()
    names = [f"w0{i}" for i in range(5)]
    for name in names:
        store = PartStore(run / "workers" / name)
        store.rewind("a-run", Terms(every=2, keep=2), 0)
        for round in range(7 if name == "w04" else 8):
            store.put(round, {"momentum": torch.ones(2)})
    assert shown() == ["all 5"] * 4
    assert "of round 4 the states of all workers are here, too" in said()
    assert [str(one.workers) for one in kept_checkpoints(branch(run, 4))] == ["all 5"]
    tidy_states(CONFIG, run, over=True)
    assert shown() == ["all 5"] * 4
    shutil.rmtree(run / "workers" / "w01")
    for slot in sorted((run / "workers" / "w00").iterdir())[:1]:
        slot.unlink()
    assert sorted(shown()) == ["3 of 5", "4 of 5", "4 of 5", "4 of 5"]
    assert "no state is here of w01: they go on without what they remember" in said()


@pytest.mark.parametrize("settings", [["worker.momentum=0"], ["backend=simulate"]])
def test_where_workers_need_no_state_nothing_is_said(run, settings):
    assert worker_states(load(run / "config.yaml", settings), run, 4, ["w00"]) is None


@pytest.mark.parametrize(
    ("settings", "where"),
    [([], "is in {run}/workers: "), (["worker.state=null"], "is kept, as worker.state=null says: ")],
)
def test_a_run_whose_workers_have_lost_what_they_remember_says_so(run, settings, where):
    config = load(run / "config.yaml", settings)
    said = lost_states(config, run, 4, ["w00", "w01"], "")
    assert said.startswith(f"warning: no state of a worker {where.format(run=run)}all go on without")
    store = PartStore(run / "workers" / "w00")
    store.rewind("a-run", Terms(every=2, keep=2), 0)
    for round in range(6):
        store.put(round, {"momentum": torch.ones(2)})
    assert (lost_states(config, run, 4, ["w00", "w01"], "") is None) is (not settings)


def test_workers_that_have_left_are_not_missed(run):
    (run / "workers" / "line@w04").mkdir(parents=True)
    found = worker_states(CONFIG, run, 4, ["w00", "w01"])
    assert (found.there, found.missing) == ((), ("w00", "w01"))


def test_what_cannot_be_done_is_one_clear_error(run, tmp_path):
    with pytest.raises(RunError, match=r"has no checkpoint of round 3\. There are those of: 2, 4, 6, 8"):
        branch(run, 3)
    with pytest.raises(RunError, match="should be the folder of a run"):
        branch(tmp_path / "missing", 3)
    with pytest.raises(RunError, match=r"cannot be written: .* is not empty. --output names another"):
        branch(run, 4, run)
    CheckpointFolder(run).file(4).write_bytes(b"no checkpoint")
    with pytest.raises(RunError, match="cannot be used"):
        branch(run, 4)
    assert not run.with_name("a-run-r4").exists()
