"""Runs that `varangian deploy kubernetes` writes, carried out: with the digests of processes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest
from tests.extent import patience

from varangian.config import load
from varangian.deploy.command import write
from varangian.deploy.emitter import Options
from varangian.deploy.kubernetes.render import render
from varangian.launch import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.exhaustive,  # test_kubernetes.py looks at the files
    pytest.mark.timeout(patience(900)),  # each pod imports torch, and several do at the same time
]
SETTINGS = [
    *("workers=4", "f=1", "byzantine={count: 1, attack: sign_flip}", "aggregator=median", "rounds=250"),
    *("model.mlp.hidden=200", "server.quorum=4", "server.wait_factor=null", "server.deadline=300"),
    *("server.checkpoint.every=7", "worker.batch_size=8", "evaluate.every=1000"),
    "server.metrics_port=9464",  # whose token the server has to be able to read
]


def follow_the_page(folder, cluster, config, kustomization="base"):
    """Write a deployment, and type the commands of its page."""
    write(folder, render(config, Options(name="trial")))
    page = (folder / "README.md").read_text()
    certs, apply, _ = re.search(r"```sh\n(.*?)```", page, re.DOTALL)[1].splitlines()
    words = shlex.split(certs)
    subprocess.run([sys.executable, "-m", *words], cwd=folder, check=True, capture_output=True)
    assert apply == "kubectl apply -k base"
    assert f"`kubectl apply -k {kustomization}`" in page or kustomization == "base"
    cluster.kubectl("apply", "-k", str(folder / kustomization))


def rounds(cluster):
    """How many rounds the server has recorded."""
    files = cluster.path.glob("volumes/trial-runs/*/rounds.jsonl")
    return max((file.read_bytes().count(b"\n") for file in files), default=0)


def test_crashes_and_drains_do_not_change_the_digest(cluster, tmp_path):
    """A server that leaves its node, one that is killed, a worker that is killed, and one that moves."""
    config = load(None, SETTINGS)
    expected = run(load(None, [*SETTINGS, "backend=simulate", f"output={tmp_path / 'straight'}"]))
    follow_the_page(tmp_path / "deployment", cluster, config, "overlays/states")
    cluster.until(lambda: rounds(cluster) > 10, "ten rounds")
    cluster.until(lambda: cluster.job("trial-server").get("ready") == 1, "a server that is ready")
    os.kill(cluster.pid("trial-worker", 1), signal.SIGKILL)
    done = rounds(cluster)
    cluster.until(lambda: rounds(cluster) > done + 5, "rounds after a worker was killed")
    (worker,) = [pod for pod in cluster.pods("trial-worker") if pod["index"] == 2]
    cluster.evict(worker["name"])
    cluster.until(lambda: len(cluster.pods("trial-worker")) == 4, "another pod of the worker")
    done = rounds(cluster)
    cluster.until(lambda: rounds(cluster) > done + 5, "rounds after the worker has moved")
    (server,) = cluster.pods("trial-server")
    cluster.evict(server["name"])
    cluster.until(lambda: len(cluster.pods("trial-server")) == 2, "another server")
    done = rounds(cluster)
    cluster.until(lambda: rounds(cluster) > done + 5, "rounds after the server has moved")
    os.kill(cluster.pid("trial-server"), signal.SIGKILL)
    assert cluster.ended("trial-server")["reason"] == "CompletionsReached", cluster.said()
    for role in ("worker", "byzantine"):
        assert cluster.ended(f"trial-{role}")["type"] == "Complete", cluster.said()
    (folder,) = cluster.path.glob("volumes/trial-runs/*")
    assert json.loads((folder / "result.json").read_text())["digest"] == expected.digest
    moved, killed, last = cluster.pods("trial-server")
    assert (moved["exitCode"], moved["phase"]) == (128 + signal.SIGTERM, "Failed"), "not a Job that is done"
    assert (killed["exitCode"], last["exitCode"]) == (128 + signal.SIGKILL, 0)
    assert cluster.job("trial-server")["failed"] == 1, "leaving a node is no crash"
    assert [pod["restarts"] for pod in cluster.pods("trial-worker") if pod["index"] == 1] == [1]
    assert {path.name for path in (cluster.path / "volumes/trial-states").iterdir()} == {
        *(f"worker-{index}" for index in range(3)),
        "byzantine-0",
    }
    # Whoever the pods were, they were not root, and could write nowhere else.
    assert folder.stat().st_uid == 10001


def test_a_run_that_fails_is_not_started_again(cluster, tmp_path):
    """A learning rate at which the model diverges."""
    config = load(None, [*SETTINGS, "aggregator=mean", "optimizer.lr=1e30", "f=0"])
    follow_the_page(tmp_path / "deployment", cluster, config)
    assert cluster.ended("trial-server") == {
        "type": "Failed",
        "status": "True",
        "reason": "PodFailurePolicy",
    }
    (server,) = cluster.pods("trial-server")
    assert server["exitCode"] == 1, cluster.said()
