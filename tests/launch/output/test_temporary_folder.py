"""Temporary folders go with their process, or with the next run when it was killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from varangian.launch.output import temporary_folder

HOLD = """
import sys
from varangian.launch.output.temporary_folder import temporary_folder
(temporary_folder() / "key").write_text("secret")
print(temporary_folder(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        folder = Path(process.stdout.readline().strip())
        os.utime(folder, (0, 0))  # it is old
        yield process, folder


def test_the_next_run_removes_what_a_killed_one_left_and_nothing_else(holder):
    process, folder = holder
    temporary_folder.clear_leftovers()
    assert (folder / "key").exists(), "its process lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / "key").exists()
    temporary_folder.clear_leftovers()
    assert not folder.exists()


def test_nothing_is_left_at_the_end(holder):
    process, folder = holder
    process.communicate("")
    assert not folder.exists()
