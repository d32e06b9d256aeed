"""A cluster for one test, with `kubectl` in front of the PATH; it needs root and namespaces."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest
from tests.extent import patience
from tests.kubernetes.cluster import kill_all

HERE = pathlib.Path(__file__).parent
PROGRAMS = os.pathsep.join([f"{sys.prefix}/bin", os.environ["PATH"]])
NEEDED = ("kubectl", "unshare", "nsenter", "setpriv", "hostname", "ip")


def lacking():
    """Why pods cannot run here; empty where they can."""
    if missing := [name for name in NEEDED if shutil.which(name, path=PROGRAMS) is None]:
        return f"there is no {', '.join(missing)}"
    if os.geteuid() != 0:
        return "pods need namespaces and mounts, which only root can make here"
    tried = subprocess.run(
        ["unshare", "--mount", "--uts", "--pid", "--net", "--fork", "mount", "-t", "tmpfs", "none", "/tmp"],
        capture_output=True,
        check=False,
    )
    return "" if tried.returncode == 0 else f"no namespaces: {tried.stderr.decode().strip()}"


class Cluster:
    """The cluster as a user sees it."""

    def __init__(self, path):
        self.path = path

    def kubectl(self, *arguments):
        done = subprocess.run(["kubectl", *arguments], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def job(self, name):
        return json.loads(self.kubectl("get", "job", name, "-o", "json")).get("status", {})

    def ended(self, name):
        """Why a Job has ended, once it has."""
        return self.until(lambda: self.job(name).get("conditions"), name)[0]

    def pods(self, job):
        """The status of the pods of a Job, oldest first."""
        files = (self.path / "pods").glob(f"{job}-*/status.json")
        return [
            json.loads(file.read_text()) for file in sorted(files, key=lambda f: f.parent.stat().st_ctime)
        ]

    def pid(self, job, index=0):
        """The process of a container that runs."""

        def found():
            running = [pod for pod in self.pods(job) if pod["index"] == index and pod["phase"] == "Running"]
            return running[-1]["pid"] if running else None

        return self.until(found, f"{job} {index}")

    def evict(self, pod):
        """Let a pod leave its node."""
        (self.path / "pods" / pod / "delete").write_text("disruption")

    def until(self, found, what):
        end = time.monotonic() + patience(400)
        while not (answer := found()):
            assert time.monotonic() < end, f"{what}: {self.said()}"
            time.sleep(0.1)
        return answer

    def said(self):
        """All that pods and controllers have printed."""
        logs = [*self.path.glob("*.log"), *self.path.glob("pods/*/log")]
        return "\n".join(f"--- {log}\n{log.read_text()[-3000:]}" for log in logs)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    if reason := lacking():
        pytest.skip(reason)
    pytest.importorskip("cryptography")
    path = tmp_path / "cluster"
    path.mkdir()
    monkeypatch.setenv("KUBE_STATE", str(path))
    monkeypatch.setenv("PATH", os.pathsep.join([str(HERE), PROGRAMS]))
    try:
        yield Cluster(path)
    finally:
        kill_all(path)
