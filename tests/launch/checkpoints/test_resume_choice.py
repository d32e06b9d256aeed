"""The run and the checkpoint that are chosen to go on from, and what is said of others."""

import json
import os
import re
import socket

import pytest
from tests.launch.checkpoints.kit import CONFIG, record

from varangian.aggregators.kernels import kernels_in_use
from varangian.config import load
from varangian.config.identity import run_id
from varangian.launch import RunError
from varangian.launch.checkpoints.folder import CheckpointFolder
from varangian.launch.checkpoints.lock import FolderLock, boot
from varangian.launch.checkpoints.resume import RunOver, find_run, last_round, resume, settings_of
from varangian.launch.output.chain import digest
from varangian.launch.output.run_folder import RunFolder
from varangian.registry import ConfigError
from varangian.state_file import read, write

RUN = "a-run"


@pytest.fixture
def run(kept):
    """The folder of a run of seven rounds with checkpoints of rounds 2, 4 and 6, which was killed."""
    made = kept(RUN, every=2, keep=3, best=None)
    for round in range(7):
        made.round(round)
    made.close()
    return made.run.path


@pytest.fixture
def go_on(request):
    """Goes on with a run; the round, what was noted, and what goes on."""

    def gone_on(folder, *settings, **given):
        notes = []
        config = settings_of(folder, settings)
        config, resumed = resume(config, folder, notes.append, **given)
        request.addfinalizer(resumed.lock.release)
        return resumed, notes

    return gone_on


def rewritten(file, **changes):
    """The checkpoint with other plain values, as sound as before."""
    found = read(file)
    plain = {name: value for name, value in found.plain.items() if name != "tensors"}
    write(file, plain | changes, found.tensors)


def flip(file, at=-1):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def test_the_newest_is_used(run, go_on):
    resumed, notes = go_on(run)
    assert (resumed.round, resumed.lock.epoch, resumed.record) == (6, 1, {})
    assert float(resumed.state["learner"]["parameters"][0]) == 6.0
    assert resumed.checkpoint["round"] == 6
    assert resumed.documents == {}
    assert notes == [f"{run} goes on with round 6 of 20"]
    assert last_round(run) == 6


def test_the_one_before_is_used(run, go_on):
    flip(CheckpointFolder(run).file(6))
    resumed, notes = go_on(run)
    assert resumed.round == 4
    said = r"warning: checkpoints/round-000006\.safetensors was left out: its tensor .* damaged; round 4 .*"
    assert re.fullmatch(said, notes[0])
    assert resumed.record["skipped"] == [notes[0].removeprefix("warning: ")]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-5]), "ends"),
        (lambda file: file.write_bytes(b"not a checkpoint at all"), ""),
        (lambda file: file.write_bytes(b""), ""),
        (lambda file: rewritten(file, version=2), "newer varangian (version 2, this one knows 1)"),
        (
            lambda file: rewritten(
                file, run="another-run", record={"bytes": 10**20, "lines": 1, "digest": ""}
            ),
            "it is of the run another",
        ),
        (
            lambda file: rewritten(file, participation="async"),
            "it is of a run with the participation async",
        ),
        (lambda file: os.truncate(file, 40), ""),
    ],
)
def test_one_that_cannot_be_used_is_named(run, go_on, harm, said):
    harm(CheckpointFolder(run).file(6))
    resumed, notes = go_on(run)
    assert resumed.round == 4
    assert notes[0].startswith("warning: checkpoints/round-000006.safetensors was left out: ")
    assert said in notes[0]


def test_where_none_can_be_used_the_run_does_not_begin_again_by_itself(run, go_on):
    for round in (2, 4, 6):
        flip(CheckpointFolder(run).file(round))
    with pytest.raises(RunError, match=r"no checkpoint of .* can be used.*--force to begin with round 0"):
        go_on(run)
    resumed, notes = go_on(run, force=True)
    assert (resumed.round, resumed.state, len(resumed.record["skipped"])) == (0, None, 3)
    assert "there is no checkpoint that can be used: round 0 begins again" in notes[-1]


def test_without_checkpoints_round_0_begins_again(kept, go_on):
    made = kept(RUN)
    made.close()
    resumed, notes = go_on(made.run.path)
    assert (resumed.round, resumed.state, resumed.lock.epoch) == (0, None, 0)
    assert notes == [f"{made.run.path}: there is no checkpoint yet: round 0 begins again"]


def test_a_lost_lock_costs_no_epoch(run, go_on):
    for round in (2, 4, 6):
        rewritten(CheckpointFolder(run).file(round), epoch=4)
    assert go_on(run)[0].lock.epoch == 5


def test_a_changed_setting_is_refused_with_both_values(run, go_on):
    with pytest.raises(ConfigError, match=r"seed: should be as in the run that goes on, 1\. Found 2\."):
        go_on(run, "seed=2")
    go_on(run)  # the lock was not taken, or it was released


def test_force_records_them(run, go_on):
    resumed, notes = go_on(run, "seed=2", force=True)
    assert resumed.record["changes"] == [{"path": "seed", "before": 1, "after": 2}]
    assert "seed was 1 and is 2" in notes[-1]
    assert resumed.record["config"] == {
        name: digest(content) for name, content in resumed.documents.items()
    }
    again = RunFolder.reopen(
        run, CONFIG, 6, documents=resumed.documents, resumed=resumed.record | {"epoch": 1}
    )
    assert settings_of(run).seed == 1, "a start that has done no round does not count"
    again.observe(record(6))
    again.close()
    assert settings_of(run).seed == 2
    resumed.lock.release()
    assert go_on(run)[0].record == {}  # they are those of the run by now


@pytest.mark.parametrize("setting", ["workers=6", "f=2", "workers=[a, b, c, d, e]"])
def test_nothing_gives_a_run_that_goes_on_other_workers(run, go_on, setting):
    """Its checkpoint has its own."""
    with pytest.raises(ConfigError, match="A run keeps its workers"):
        go_on(run, setting, "aggregator=mean", force=True)


def test_a_schedule_that_depends_on_rounds_keeps_their_number(kept, go_on, monkeypatch):
    cosine = load(
        None,
        ["data=synthetic", "model=softmax", "workers=5", "f=1", "rounds=20", "optimizer.schedule=cosine"],
    )
    monkeypatch.setattr("tests.launch.checkpoints.kit.CONFIG", cosine)
    made = kept(RUN, every=2)
    for round in range(3):
        made.round(round)
    made.close()
    with pytest.raises(ConfigError, match="rounds 0 to 1 had the learning rates of rounds=20"):
        go_on(made.run.path, "rounds=40")
    assert go_on(made.run.path, "rounds=40", force=True)[0].round == 2


def test_a_run_that_is_over_says_so(run, go_on):
    (run / "result.json").write_text(json.dumps({"rounds": 20}))
    with pytest.raises(RunOver, match=r"all 20 rounds of .* are done; add rounds=N to go on"):
        go_on(run)
    assert go_on(run, "rounds=30")[0].round == 6


@pytest.mark.parametrize(
    "result", ["[]", "null", '{"rounds": "x"}', '{"rounds": NaN}', '{"rounds": 1e400}', ""]
)
def test_a_result_that_says_nothing_is_none(run, go_on, result):
    (run / "result.json").write_text(result)
    assert go_on(run)[0].round == 6


def test_a_checkpoint_of_the_end_is_for_more_rounds(run, go_on):
    resumed, _ = go_on(run, "rounds=6")
    assert resumed.round == 4
    resumed.lock.release()
    assert go_on(run, "rounds=7")[0].round == 6


def test_a_server_goes_on_also_from_the_end_as_workers_may_have_left(run, go_on):
    resumed, notes = go_on(run, "rounds=6", at_end=True)
    assert resumed.round == 6
    assert f"{run}: all 6 rounds are done; workers that come back are told so" in notes
    resumed.lock.release()
    assert go_on(run, "rounds=5", at_end=True)[0].round == 4


def test_other_versions_are_said(run, go_on):
    facts = {"varangian": "0.1", "torch": "1.0", "kernels": "plain", "threads": 1}
    rewritten(CheckpointFolder(run).file(6), facts=facts)
    resumed, notes = go_on(run)
    assert resumed.record["facts"]["torch"][0] == "1.0"
    assert resumed.record["facts"]["varangian"][0] == "0.1"
    assert "torch was 1.0 and is" in notes[-1]
    assert "varangian was" not in notes[-1]


def test_another_version_of_the_kernels_is_said(run, go_on):
    facts = CheckpointFolder(run).read(6).plain["facts"] | {"kernels": "native v0"}
    rewritten(CheckpointFolder(run).file(6), facts=facts)
    resumed, notes = go_on(run)
    assert resumed.record["facts"] == {"kernels": ["native v0", kernels_in_use()]}
    assert f"kernels was native v0 and is {kernels_in_use()}: numbers may differ" in notes[-1]


def test_code_of_the_user_that_has_changed_is_said(run, go_on, monkeypatch):
    known = json.loads((run / "manifest.json").read_text()) | {
        "own_code": {"mine.py": "aa", "same.py": "bb"}
    }
    (run / "manifest.json").write_text(json.dumps(known))
    monkeypatch.setattr(
        "varangian.launch.checkpoints.resume.own_code", lambda settings: {"mine.py": "cc", "same.py": "bb"}
    )
    resumed, notes = go_on(run)
    assert resumed.record == {"own_code": {"mine.py": ["aa", "cc"]}}
    assert notes[-1].startswith("warning: mine.py has changed since the run began")


def test_workers_revoked_since_are_known(run, go_on):
    lines = (run / "rounds.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    records[1]["revoked"], records[6]["revoked"] = ["w00"], ["w03"]
    (run / "rounds.jsonl").write_text(
        "".join(json.dumps(one) + "\n" for one in records) + '{"round": 7, "rev'
    )
    assert go_on(run)[0].revoked == ("w03",)


def test_the_seed_that_a_server_drew_is_that_of_its_run(run, go_on):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"(server:\n(?:  .*\n)*?  seed: )null", r"\g<1>77", text))
    assert settings_of(run).server.seed == 77
    notes = []
    config, resumed = resume(CONFIG, run, notes.append)
    resumed.lock.release()
    assert config.server.seed == 77
    assert resumed.record == {}


def test_no_folder_of_a_run_is_one_clear_error(tmp_path):
    with pytest.raises(RunError, match=r"should be the folder of a run that can go on\. There is no such"):
        settings_of(tmp_path / "missing")
    with pytest.raises(RunError, match=r"It has no config\.yaml"):
        settings_of(tmp_path)


def test_the_newest_run_with_these_settings_and_rounds_left_is_found(run, tmp_path):
    here = f"output={tmp_path}"
    settings = ["data=synthetic", "model=softmax", "workers=5", "f=1", "rounds=20", here]
    assert find_run(load(None, settings)) == run
    assert find_run(load(None, [*settings, "server.port=4000", "rounds=30"])) == run
    other = load(None, [*settings, "seed=2"])
    assert run_id(other) != run_id(CONFIG)
    assert find_run(other) is None
    assert find_run(other, whatever=True) == run
    (run / "result.json").write_text(json.dumps({"rounds": 20}))
    FolderLock.take(run, print).release()
    assert find_run(load(None, settings)) is None
    assert find_run(load(None, settings), over=True) == run
    assert find_run(other, over=True) is None
    assert find_run(load(None, [*settings, "rounds=30"])) == run
    assert find_run(load(None, [*settings[:-1], "output=/nowhere"])) is None


def test_a_server_that_was_killed_after_the_result_begins_no_other_run(run, tmp_path):
    (run / "result.json").write_text(json.dumps({"rounds": 20}))
    dead = {
        "pid": 1,
        "host": socket.gethostname(),
        "boot": boot(),
        "began": "2026-01-01T00:00:00",
        "epoch": 3,
    }
    (run / "lock").write_text(json.dumps(dead) + "\n")
    config = load(
        None, ["data=synthetic", "model=softmax", "workers=5", "f=1", "rounds=20", f"output={tmp_path}"]
    )
    assert find_run(config) == run
    with pytest.raises(RunOver, match=r"all 20 rounds of .* are done"):
        resume(config, run, print)
    assert find_run(config) is None  # the next one is a new run, as after an orderly end
