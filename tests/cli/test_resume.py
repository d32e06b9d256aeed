"""`--resume` on the command line."""

import json

import pytest

from varangian.cli.arguments.durability import NEWEST
from varangian.cli.arguments.main import parse


@pytest.mark.parametrize("command", ["run", "server"])
def test_without_a_folder_it_is_the_newest_run(command, tmp_path):
    assert parse([command, "rounds=5", "--resume"]).resume == NEWEST
    assert parse([command, "--resume", str(tmp_path)]).resume == str(tmp_path)
    assert parse([command, "rounds=5"]).resume is None


def test_a_setting_behind_it_is_a_setting():
    args = parse(["run", "--resume", "rounds=5"])
    assert (args.resume, args.settings) == (NEWEST, ["rounds=5"])


SMALL = ("data=synthetic", "model=softmax", "workers=5", "f=1", "worker.batch_size=8", "aggregator=median")
KEPT = (*SMALL, "backend=simulate", "rounds=5", "server.checkpoint.every=2")


@pytest.fixture
def killed(varangian, tmp_path):
    """The folder of a run of five rounds, with checkpoints of rounds 2 and 4, which seems to be killed."""
    code, _, _ = varangian("run", *KEPT, "--format", "plain")
    assert code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    (folder / "result.json").unlink()
    return folder.relative_to(tmp_path)


def test_a_run_goes_on_by_its_folder_and_by_its_settings(varangian, killed):
    code, out, _ = varangian("run", "--resume", str(killed), "--format", "plain")
    assert (code, f"{killed} goes on with round 4 of 5" in out) == (0, True)
    code, out, _ = varangian("run", "--resume", str(killed))
    assert (code, out) == (0, f"all 5 rounds of {killed} are done; add rounds=N to go on\n")
    code, out, _ = varangian("run", *KEPT, "rounds=7", "--resume", "--format", "plain")
    assert (code, "goes on with round 4 of 7" in out) == (0, True)
    assert "settings have changed: rounds was 5 and is 7" in out
    assert (killed / "config.epoch-2.yaml").exists()


def test_where_there_is_none_a_new_one_begins(varangian, killed, tmp_path):
    code, out, _ = varangian("run", *KEPT, "seed=7", "--resume", "--format", "plain")
    assert (code, "there is no run to resume in runs; a new one begins" in out) == (0, True)
    assert len([*(tmp_path / "runs").iterdir()]) == 2


def test_without_any_setting_the_newest_run_goes_on(varangian, killed):
    code, out, _ = varangian("run", "--resume", "--format", "plain")
    assert (code, f"{killed} goes on with round 4 of 5" in out) == (0, True)


def test_what_may_not_change_is_a_problem_of_the_configuration(varangian, killed):
    code, _, err = varangian("run", "--resume", str(killed), "seed=7", "--format", "plain")
    assert code == 2
    assert "seed: should be as in the run that goes on, 1. Found 7." in err
    code, out, _ = varangian("run", "--resume", str(killed), "seed=7", "--force", "--format", "plain")
    assert (code, "seed was 1 and is 7" in out) == (0, True)


def test_what_makes_no_sense_is_said(varangian):
    code, _, err = varangian("run", *KEPT, "--force")
    assert (code, "--force: is of use with --resume only" in err) == (2, True)
    code, _, err = varangian("run", "--resume", "nowhere")
    assert (code, "nowhere should be the folder of a run that can go on" in err) == (1, True)


def test_rewind_lists_and_makes_a_run(varangian, killed):
    code, out, _ = varangian("rewind", str(killed))
    assert (code, [line.split()[0] for line in out.splitlines()]) == (0, ["round", "4", "2"])
    code, out, _ = varangian("rewind", str(killed), "--round", "2")
    assert (code, out.split()[0]) == (0, f"{killed}-r2")
    code, out, _ = varangian("run", "--resume", f"{killed}-r2", "--format", "plain")
    assert (code, "goes on with round 2 of 5" in out) == (0, True)
    code, _, err = varangian("rewind", str(killed), "--output", "elsewhere")
    assert (code, "--output: is of use with --round only" in err) == (2, True)
    code, _, err = varangian("rewind", str(killed), "--round", "3")
    assert (code, "has no checkpoint of round 3. There are those of: 2, 4" in err) == (1, True)


def test_a_server_that_is_started_again_does_not_repeat_a_failure(varangian, killed):
    """A supervisor types the same command again and again; who names the folder means it."""
    settings = ("--insecure", *(setting for setting in KEPT if not setting.startswith("backend")))
    result = {"rounds": 3, "outcome": "failed", "reason": "the model has diverged"}
    (killed / "result.json").write_text(json.dumps(result))
    code, _, err = varangian("server", "backend=simulate", *settings, "--resume")
    assert (code, f"{killed} has failed: the model has diverged." in err) == (1, True)
    assert f"--resume {killed}" in err
