"""Folders of states by the setting `worker.state`."""

from pathlib import Path

import pytest

from varangian.worker.checkpoints.folders import LONGEST, state_folders


def test_a_setting_says_where_states_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    assert state_folders(None) is None
    assert state_folders("auto")("run-1") == tmp_path / "home/varangian/run-1"
    assert state_folders(str(tmp_path))("run-1") == tmp_path / "run-1"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert state_folders("auto")("run-1") == Path.home() / ".local/state/varangian/run-1"


@pytest.mark.parametrize("run", ["../../etc", "/etc", "..", "", "a/b", "x" * 1000, "\0", "é"])
def test_the_name_of_a_run_that_a_server_has_made_up_leads_nowhere_else(run, tmp_path):
    found = state_folders(str(tmp_path))(run)
    assert found.parent == tmp_path
    assert 0 < len(found.name) <= LONGEST
    assert found.name not in (".", "..")
