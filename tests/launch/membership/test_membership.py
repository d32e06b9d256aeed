"""Settings and runs with other workers than at their start."""

import json
from dataclasses import replace

import pytest
from tests.launch.conftest import SMALL

from varangian.config import load
from varangian.launch.checkpoints.resume import resume
from varangian.launch.checkpoints.resumed import Resumed
from varangian.launch.membership.changed_settings import with_members
from varangian.launch.membership.members_file import NAME, MembersFile
from varangian.launch.result import RunError
from varangian.launch.server_run import ServerRun, settings_of
from varangian.registry import ConfigError

CONFIG = load(None, ["workers=7", "f=1", "aggregator=nnm+krum"])
MEMBERS = MembersFile(("w00", "w05"), 0, {"w01": "it was drained"}, ({"what": "w01 drained"},))


def test_quorum_and_rule_follow_the_members():
    assert (CONFIG.quorum, CONFIG.aggregator.f) == (6, 1)
    config = with_members(CONFIG, [*CONFIG.worker_names, "alice", "bob"], 2)
    assert (config.workers, config.worker_names[0], config.quorum) == (9, "alice", 7)
    assert (config.aggregator.f, config.aggregator.rule.f, config.aggregator.mix[0].f) == (2, 2, 2)
    assert with_members(config, CONFIG.worker_names, 1).aggregator == CONFIG.aggregator


def test_a_part_with_an_f_of_its_own_keeps_it():
    config = load(None, ["workers=9", "f=1", "aggregator={trimmed_mean: {f: 2}}"])
    assert with_members(config, config.worker_names, 0).aggregator.rule.f == 2


def test_a_quorum_that_was_asked_for_stays():
    config = load(None, ["workers=7", "f=1", "aggregator=median", "server.quorum=5"])
    assert with_members(config, config.worker_names[:5], 1).quorum == 5
    with pytest.raises(ConfigError, match=r"server.quorum: should be at most"):
        with_members(config, config.worker_names[:4], 1)


def test_who_attacks_is_not_told_to_a_server():
    settings = ["workers=7", "f=1", "aggregator=median", "byzantine={count: 1, attack: sign_flip}"]
    config = with_members(load(None, settings), CONFIG.worker_names[:3], 1)
    assert (config.byzantine.count, config.byzantine.attack) == (0, None)


def test_the_file_of_members_is_read_as_it_was_written(tmp_path):
    assert MembersFile.read(tmp_path) is None
    MEMBERS.write(tmp_path)
    assert MembersFile.read(tmp_path) == replace(MEMBERS, changes=[{"what": "w01 drained"}])
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2}', '{"version": 1, "workers": "w00"}'])
def test_a_file_of_members_that_cannot_be_used_is_named(tmp_path, text):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(RunError, match=r"members.json should say who the workers of the run are"):
        MembersFile.read(tmp_path)


def resumed(tmp_path, state, members):
    return Resumed(tmp_path, None, 3, state, {}, members=members)  # type: ignore[arg-type]


def test_a_run_goes_on_with_the_workers_of_the_last_change(tmp_path):
    config = load(None, ["workers=3", "f=0", "aggregator=median"])
    kept = {"members": {"workers": ["w00", "w01", "w02", "w03"], "quorum": 4, "f": 0}}
    start, there, latest = settings_of(config, resumed(tmp_path, kept, MEMBERS))
    assert start is config
    assert (there.worker_names, latest.worker_names) == (("w00", "w01", "w02", "w03"), ("w00", "w05"))
    assert settings_of(config, resumed(tmp_path, None, None)) == (config, config, config)


def test_workers_that_do_not_fit_changed_settings_are_named(tmp_path):
    config = load(None, ["workers=5", "f=1", "aggregator=median", "server.quorum=5"])
    said = r"after their last change \(w00, w05, f = 0\) do not fit these settings. server.quorum"
    with pytest.raises(RunError, match=said):
        settings_of(config, resumed(tmp_path, None, MEMBERS))


def test_a_run_without_a_checkpoint_begins_again_with_its_members(tmp_path):
    """What an operator was told holds, also if the server is killed before its first checkpoint."""
    config = load(None, [*SMALL, "rounds=4", "f=0", "aggregator=median", f"output={tmp_path}"])
    notes = []
    first = ServerRun.open(config, lambda record: None, notes.append)
    run = first.path
    first.close()
    names = (*config.worker_names[1:], "zoe")
    MembersFile(names, 0, {config.worker_names[0]: "it was expelled"}).write(run)
    config, going_on = resume(config, run, notes.append)
    server_run = ServerRun.open(config, lambda record: None, notes.append, resume=going_on)
    server_run.coordinator()
    assert server_run.machine.policy.workers == names
    assert any(f"those of their last change: {names[0]}" in note for note in notes)
    server_run.close()
    assert json.loads((run / NAME).read_text())["f"] == 0
