"""A small Kubernetes for the tests: objects are files, and Jobs are carried out with the pods of `pod.py`.

STATE/objects/KIND/NAME.json   objects, and of Jobs the status
STATE/volumes/NAME             what a claim of a volume is bound to
STATE/pods/NAME/               a pod: pod.json, its volumes, its log and status.json

Of Jobs it knows what the documentation of Kubernetes says about completions, indices, restarts, back-off
limits, pod failure policies, success policies and replacement of pods; of pods volumes, environment and
probes that start a program. All pods share one network without a way out, in which every Service is a name
of the machine.
`python cluster.py STATE JOB` carries one Job out, until it is over and deleted.
"""

import base64
import contextlib
import fcntl
import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time

REPOSITORY = pathlib.Path(__file__).parents[2]
POD = pathlib.Path(__file__).with_name("pod.py")
BACK_OFF = 0.2
"""Seconds, in the place of the 10 s of a real one, before a pod is started again; doubled each time."""
TICK = 0.05
INDEX = "batch.kubernetes.io/job-completion-index"


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_text(json.dumps(value))
    temporary.rename(path)


def read(path):
    with contextlib.suppress(OSError):
        return json.loads(path.read_bytes())
    return None


class State:
    """The objects of a cluster."""

    def __init__(self, path):
        self.path = pathlib.Path(path)

    def file(self, kind, name):
        return self.path / "objects" / kind / f"{name}.json"

    def get(self, kind, name):
        return read(self.file(kind, name))

    def all(self, kind):
        found = (read(path) for path in sorted((self.path / "objects" / kind).glob("[!.]*.json")))
        return [one for one in found if one is not None]

    def network(self):
        """The process that has the network of the pods; started with the first."""
        with (self.path / "network.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # each Job has a controller of its own
            return self._network()

    def _network(self):
        path = self.path / "network"
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.read_text())
            os.kill(pid, 0)
            return pid
        script = "ip link set lo up && echo ready && exec sleep infinity"
        process = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True
        )
        assert process.stdout.readline() == b"ready\n"
        path.write_text(str(process.pid))
        return process.pid


class Pod:
    """One pod and its one container."""

    def __init__(self, state, job, index):
        self.state, self.job, self.index = state, job, index
        self.name = f"{job['metadata']['name']}-{index}-{secrets.token_hex(3)[:5]}"
        self.path = state.path / "pods" / self.name
        self.template = job["spec"]["template"]
        self.spec = self.template["spec"]
        self.container = self.spec["containers"][0]
        self.restarts = 0
        self.ready = False
        self.phase = "Pending"
        self.process = None
        self.last = None
        self.deleted = None
        self.probes = {}
        self.path.mkdir(parents=True)
        self.volumes = {volume["name"]: self._volume(volume) for volume in self.spec.get("volumes", [])}
        self.start()

    def _volume(self, volume):
        """The folder of a volume."""
        group = self.spec.get("securityContext", {}).get("fsGroup")
        if "persistentVolumeClaim" in volume:
            name = volume["persistentVolumeClaim"]["claimName"]
            assert self.state.get("PersistentVolumeClaim", name), f"there is no claim {name}"
            path = self.state.path / "volumes" / name
            path.mkdir(parents=True, exist_ok=True)
            if group is not None:
                os.chown(path, -1, group)
                path.chmod(0o2775)
            return path
        path = self.path / "volumes" / volume["name"]
        path.mkdir(parents=True)
        if "emptyDir" in volume:
            if group is not None:
                os.chown(path, -1, group)
            path.chmod(0o2777)
            return path
        kind, source = ("Secret", "secret") if "secret" in volume else ("ConfigMap", "configMap")
        chosen = volume[source]
        name = chosen.get("secretName") or chosen["name"]
        found = self.state.get(kind, name)
        assert found is not None, f"there is no {kind} {name}"
        for key, text in found.get("data", {}).items():
            file = path / key
            file.write_bytes(base64.b64decode(text) if kind == "Secret" else text.encode())
            file.chmod(chosen.get("defaultMode", 0o644))
            if group is not None:
                os.chown(file, -1, group)
        return path

    def spec_of(self, name):
        """A volume as the pod names it."""
        return next(volume for volume in self.spec["volumes"] if volume["name"] == name)

    def environment(self):
        found = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        found["PYTHONPATH"] = str(REPOSITORY / "src")
        found["JOB_COMPLETION_INDEX"] = str(self.index)
        for one in self.container.get("env", []):
            found[one["name"]] = expand(one["value"], found)
        return found

    def mounts(self, environment):
        """Source, target, and whether it is read-only."""
        for mount in sorted(
            self.container.get("volumeMounts", []), key=lambda one: one["mountPath"].count("/")
        ):
            below = mount.get("subPath") or expand(mount.get("subPathExpr", ""), environment)
            source = self.volumes[mount["name"]] / below
            if "persistentVolumeClaim" in self.spec_of(mount["name"]) and not source.exists():
                source.mkdir()  # as a kubelet does, with what its parent has
                os.chown(source, -1, source.parent.stat().st_gid)
                source.chmod(source.parent.stat().st_mode & 0o7777)
            assert source.exists(), f"{mount['name']} of {self.name} has no {below}"
            yield str(source), mount["mountPath"], mount.get("readOnly", False)
        hosts = self.path / "hosts"
        names = ["localhost", *(one["metadata"]["name"] for one in self.state.all("Service"))]
        hosts.write_text(f"127.0.0.1 {' '.join(names)}\n::1 localhost\n")
        yield str(hosts), "/etc/hosts", True

    def start(self):
        """Start the container."""
        environment = self.environment()
        root = self.path / "root"
        root.mkdir(exist_ok=True)
        words = [*self.container["command"], *self.container.get("args", [])]
        own = self.container.get("securityContext", {})
        pod = {
            "root": str(root),
            "hostname": f"{self.job['metadata']['name']}-{self.index}",
            "host": sorted({str(REPOSITORY), sys.prefix, sys.base_prefix}, key=len),
            "python": sys.executable,
            "mounts": [*self.mounts(environment)],
            "security": {**self.spec.get("securityContext", {}), **own},
            "readOnlyRoot": own.get("readOnlyRootFilesystem", False),
            "workingDir": self.container.get("workingDir", "/"),
            "environment": environment,
            "command": [expand(word, environment) for word in words],
        }
        write(self.path / "pod.json", pod)
        inside = ["nsenter", f"--net=/proc/{self.state.network()}/ns/net", "unshare", "--mount", "--uts"]
        inside += ["--pid", "--fork", "--kill-child", sys.executable, str(POD), str(self.path / "pod.json")]
        with (self.path / "log").open("ab") as log:
            self.process = subprocess.Popen(inside, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.phase, self.ready = "Running", "readinessProbe" not in self.container
        self.probes = {}
        self.tell()

    def pids(self):
        """The processes of the pod on this machine: `unshare`, the first one inside, the container's."""
        found = [self.process.pid]
        while children := children_of(found[-1]):
            found.append(children[0])
        return found

    def container_pid(self):
        """The process of the container; None where it does not run yet, or any more."""
        pids = self.pids()
        return pids[2] if len(pids) > 2 else None

    def tell(self):
        write(
            self.path / "status.json",
            {
                "name": self.name,
                "job": self.job["metadata"]["name"],
                "index": self.index,
                "phase": self.phase,
                "ready": self.ready,
                "restarts": self.restarts,
                "exitCode": self.last,
                "pid": self.container_pid() if self.process.poll() is None else None,
                "labels": self.template["metadata"].get("labels", {}),
                "disrupted": self.deleted == "disruption",
            },
        )

    def look(self):
        """See whether the container has ended, and start it again where its pod says so."""
        order = self.path / "delete"
        if order.exists() and self.deleted is None:
            self.delete(order.read_text())
        code = self.process.poll()
        if code is None:
            self._probe()
            if self.container_pid() != (read(self.path / "status.json") or {}).get("pid"):
                self.tell()
            return
        if self.phase != "Running":
            return
        self.last, self.ready = code, False
        if code == 0:
            self.phase = "Succeeded"
        elif self.spec["restartPolicy"] == "Never" or self.deleted is not None:
            self.phase = "Failed"
        else:
            time.sleep(BACK_OFF)
            self.restarts += 1
            self.start()
            return
        self.tell()

    def _probe(self):
        """Start the programs of probes that are due; one that fails too often kills the container."""
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = self.container.get(kind)
            if probe is None or (kind != "startupProbe" and not self._started()):
                continue
            due, failures, passed = self.probes.get(kind, (0.0, 0, False))
            if time.monotonic() < due or (kind == "startupProbe" and passed):
                continue
            healthy = self.execute(*probe["exec"]["command"]) == 0
            failures = 0 if healthy else failures + 1
            # Only what kills nobody is asked more often than a real cluster would.
            period = (
                min(1.0, probe["periodSeconds"]) if kind == "readinessProbe" else probe["periodSeconds"]
            )
            self.probes[kind] = (time.monotonic() + period, failures, healthy)
            if kind == "readinessProbe":
                self.ready = healthy
                self.tell()
            elif failures >= probe["failureThreshold"] and (pid := self.container_pid()):
                os.kill(pid, signal.SIGKILL)

    def _started(self):
        return "startupProbe" not in self.container or self.probes.get("startupProbe", (0, 0, False))[2]

    def execute(self, *command):
        """The exit code of a program in the container."""
        pid = self.container_pid()
        if pid is None:
            return 1
        inside = ["nsenter", f"--target={pid}", "--mount", "--pid", "--uts", "--net", "--root", *command]
        return subprocess.run(inside, capture_output=True, check=False).returncode

    def delete(self, why):
        """Tell the pod to end, as when it is deleted or has to leave its node."""
        self.deleted = why
        if (pid := self.container_pid()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()


def children_of(pid):
    try:
        found = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(one) for one in found.split()]


def expand(text, environment):
    """A text with the values of variables, as Kubernetes has it: $$ is $, and an unknown name stays."""
    return re.sub(
        r"\$(\$)|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)",
        lambda found: found[1] or environment.get(found[2], found[0]),
        text,
    )


class Controller:
    """Carries a Job out."""

    def __init__(self, state, name):
        self.state, self.name = state, name
        self.file = state.file("Job", name)
        self.job = read(self.file)
        spec = self.spec = self.job["spec"]
        self.completions, self.parallelism = spec.get("completions", 1), spec.get("parallelism", 1)
        self.active = {}
        self.succeeded, self.failed = set(), set()
        self.failures = 0
        self.again = {}
        self.failures_of = {}
        self.end = None

    def run(self):
        while self.file.exists():
            if self.end is None:
                self.step()
            time.sleep(TICK)
        self.stop()

    def step(self):
        for index in range(self.completions):
            waits = time.monotonic() < self.again.get(index, 0.0)
            over = index in self.succeeded or index in self.failed or index in self.active
            if not over and not waits and len(self.active) < self.parallelism:
                self.active[index] = Pod(self.state, self.job, index)
        for index, pod in [*self.active.items()]:
            restarts = pod.restarts
            pod.look()
            self.failures += pod.restarts - restarts
            if pod.phase == "Succeeded":
                del self.active[index]
                self.succeeded.add(index)
            elif pod.phase == "Failed":
                del self.active[index]
                self.fail(index, pod)
        self.conclude()
        self.tell()

    def fail(self, index, pod):
        """A pod has failed: what the policy says, and otherwise one more failure."""
        for rule in self.spec.get("podFailurePolicy", {}).get("rules", []):
            conditions = [one["type"] for one in rule.get("onPodConditions", [])]
            codes = rule.get("onExitCodes", {})
            matches = (pod.deleted == "disruption" and "DisruptionTarget" in conditions) or (
                codes.get("operator") == "In" and pod.last in codes["values"]
            )
            if not matches:
                continue
            if rule["action"] == "FailJob":
                self.end = ("Failed", "PodFailurePolicy")
            if rule["action"] == "FailIndex":
                self.failed.add(index)
            if rule["action"] in ("FailJob", "FailIndex", "Ignore"):
                return
            break
        self.failures += 1
        count = self.failures_of[index] = self.failures_of.get(index, 0) + 1
        self.again[index] = time.monotonic() + BACK_OFF * 2 ** min(count, 4)
        if count > self.spec.get("backoffLimitPerIndex", 1 << 31):
            self.failed.add(index)

    def conclude(self):
        """Whether the Job is over."""
        if self.end is not None:
            pass
        elif self.failures > self.spec.get("backoffLimit", 6) and "backoffLimitPerIndex" not in self.spec:
            self.end = ("Failed", "BackoffLimitExceeded")
        elif len(self.succeeded) == self.completions:
            self.end = ("Complete", "CompletionsReached")
        elif len(self.succeeded) + len(self.failed) == self.completions:
            self.end = ("Failed", "FailedIndexes")
        else:
            for rule in self.spec.get("successPolicy", {}).get("rules", []):
                if len(self.succeeded) >= rule.get("succeededCount", self.completions):
                    self.end = ("Complete", "SuccessPolicy")
        if self.end is not None:
            self.stop()

    def stop(self):
        """End what runs: first with a signal."""
        for pod in self.active.values():
            pod.delete("Job")
        until = time.monotonic() + self.spec["template"]["spec"].get("terminationGracePeriodSeconds", 30)
        while any(pod.process.poll() is None for pod in self.active.values()) and time.monotonic() < until:
            time.sleep(TICK)
        for pod in self.active.values():
            pod.kill()
            pod.look()
        self.active = {}

    def tell(self):
        status = {
            "active": len(self.active),
            "ready": sum(pod.ready for pod in self.active.values()),
            "succeeded": len(self.succeeded),
            "failed": self.failures,
            "completedIndexes": ranges(self.succeeded),
            "failedIndexes": ranges(self.failed),
        }
        if self.end is not None:
            kind, reason = self.end
            status["conditions"] = [{"type": kind, "status": "True", "reason": reason}]
        if status != self.job.get("status") and self.file.exists():
            self.job["status"] = status
            write(self.file, self.job)


def ranges(numbers):
    """`0-2,5` of {0, 1, 2, 5}."""
    found = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def kill_all(path):
    """End everything of a cluster, for the end of a test."""
    state = State(path)
    shutil.rmtree(state.path / "objects", ignore_errors=True)
    controllers = [*(state.path / "controllers").glob("*")]
    until = time.monotonic() + 45
    for file in controllers:
        pid = int(file.read_text())
        while alive(pid) and time.monotonic() < until:
            time.sleep(TICK)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(OSError, ValueError):
        os.kill(int((state.path / "network").read_text()), signal.SIGKILL)


def alive(pid):
    try:
        os.kill(pid, 0)
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    Controller(State(sys.argv[1]), sys.argv[2]).run()
