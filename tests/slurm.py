"""A Slurm cluster of one node for tests: that of the environment, or one that `.ci/slurm` starts."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORES = 8
"""That the node has for Slurm, whatever the machine has."""


def _answers():
    if shutil.which("sinfo") is None:
        return False
    try:
        return subprocess.run(["sinfo", "--noheader"], capture_output=True, timeout=60).returncode == 0
    except subprocess.TimeoutExpired:
        return False


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A cluster that answers; the tests of a machine that has none are skipped."""
    if _answers():
        yield
        return
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("there is no Slurm here: .ci/slurm installs it")
    home = f"/tmp/varangian-slurm-{os.getpid()}"  # short, as the path of a socket is
    script, environment = str(ROOT / ".ci/slurm"), os.environ | {"SLURM_HOME": home, "CORES": str(CORES)}
    started = subprocess.run([script, "up"], capture_output=True, text=True, env=environment, check=False)
    if started.returncode == 77:
        pytest.skip(started.stderr.strip())
    assert started.returncode == 0, started.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", started.stdout.strip())
        yield
    subprocess.run([script, "down"], env=environment, check=True, capture_output=True)
