"""Checkpoints that a run has kept, and runs that begin from one of them."""

import json

import pytest

from varangian.cli.commands.rewind import table
from varangian.launch import RunError
from varangian.launch.checkpoints.folder import CheckpointFolder
from varangian.launch.checkpoints.resume import resume, settings_of
from varangian.launch.checkpoints.rewind import branch, kept_checkpoints


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
    assert heading.split() == ["round", "score", "kept", "as", "size", "written"]
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
    for folder, parent in ((made, "a-run"), (again, "elsewhere")):
        _, resumed = resume(settings_of(folder), folder, lambda text: None)
        resumed.lock.release()
        assert (resumed.round, resumed.parent, resumed.lock.epoch) == (4, parent, 1)


def test_what_workers_have_kept_is_copied(run):
    (run / "workers" / "w00").mkdir(parents=True)
    (run / "workers" / "w00" / "slot-0").write_bytes(b"momentum")
    copy = branch(run, 4) / "workers" / "w00" / "slot-0"
    assert copy.read_bytes() == b"momentum"
    assert copy.stat().st_nlink == 1, "slots are written in place"


def test_what_cannot_be_done_is_one_clear_error(run, tmp_path):
    with pytest.raises(RunError, match=r"has no checkpoint of round 3\. There are those of: 2, 4, 6, 8"):
        branch(run, 3)
    with pytest.raises(RunError, match="should be the folder of a run"):
        branch(tmp_path / "missing", 3)
    with pytest.raises(RunError, match=r"cannot be written: .* is not empty"):
        branch(run, 4, run)
    CheckpointFolder(run).file(4).write_bytes(b"no checkpoint")
    with pytest.raises(RunError, match="cannot be used"):
        branch(run, 4)
    assert not run.with_name("a-run-r4").exists()
