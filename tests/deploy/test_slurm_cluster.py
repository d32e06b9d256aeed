"""A run on a real Slurm cluster that is stopped when its time is up: the digest is that of any other."""

import json
import ssl
import subprocess
import sys
import time
import urllib.request

import pytest
from tests.extent import patience
from tests.ports import free_port

from varangian.api import run
from varangian.cli.main import main
from varangian.config.load import load

SETTINGS = [
    *("data=synthetic", "model=softmax", "workers=3", "f=1", "rounds=300", "seed=1", "aggregator=median"),
    *("byzantine.count=1", "byzantine.attack=sign_flip", "server.checkpoint.every=5"),
    *("server.quorum=3", "server.deadline=300", "server.wait_factor=null"),
]


def said(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
@pytest.mark.exhaustive  # test_slurm.py keeps the same promises without a cluster
def test_a_job_that_is_stopped_goes_on_and_ends_with_the_same_digest(slurm, tmp_path, monkeypatch):
    pytest.importorskip("cryptography")
    program = tmp_path / "bin" / "varangian"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m varangian "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    folder = tmp_path / "deployment"
    port = free_port()
    assert main(["deploy", "slurm", *SETTINGS, f"server.metrics_port={port}", "-o", str(folder)]) == 0
    monkeypatch.chdir(folder)
    job = said("sbatch", "--parsable", "job.sh")
    until, stopped = time.monotonic() + patience(200), False
    while (
        state := said("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")
    ) != "COMPLETED":
        assert time.monotonic() < until, state
        assert state in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"), logs(folder)
        if not stopped and [*folder.glob("runs/*/checkpoints/*")]:
            assert b"varangian_round " in metrics(folder, port)
            said("scancel", "--batch", "--signal=USR1", job)
            stopped = True
        time.sleep(0.3)
    assert stopped
    assert "the time was up before the run was" in (folder / f"varangian-{job}.log").read_text()
    (result,) = (folder / "runs").glob("*/result.json")
    found = json.loads(result.read_text())
    assert (found["outcome"], found["rounds"]) == ("finished", 300), logs(folder)
    here = run(load(None, [*SETTINGS, "backend=simulate"], {}), folder=tmp_path / "here")
    assert found["digest"] == here.digest


def metrics(folder, port):
    """What the server shows to whoever has the token that the job has made."""
    context = ssl.create_default_context(cafile=folder / "certs/monitor/ca.pem")
    context.check_hostname = False  # it is that of the node
    token = (folder / "certs/monitor/metrics-token").read_text().strip()
    request = urllib.request.Request(
        f"https://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, context=context, timeout=patience(60)) as reply:
        return reply.read()


def logs(folder):
    return "".join(path.read_text() for path in sorted(folder.rglob("*.log")))
