"""Servers that go on elsewhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMESPACE = ("unshare", "--mount")


def why_not() -> str:
    """Why this machine lets nobody change the address of a name; empty if it does."""
    if os.geteuid() != 0 or shutil.which(NAMESPACE[0]) is None:
        return "root and `unshare` are needed to change the address of a name"
    tried = subprocess.run([*NAMESPACE, "mount", "--bind", os.devnull, "/etc/hosts"], capture_output=True)
    return "" if tried.returncode == 0 else "/etc/hosts cannot be replaced here"


@pytest.mark.exhaustive
def test_a_server_is_found_at_another_address_of_its_name(tmp_path):
    if reason := why_not():
        pytest.skip(reason)
    hosts = tmp_path / "hosts"
    hosts.touch()
    program = [*NAMESPACE, sys.executable, "-m", "tests.wire.moved", str(hosts)]
    found = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    ended = subprocess.run(
        program,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": found},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["['all 3 rounds are done']", "[(), (), ()]"]
