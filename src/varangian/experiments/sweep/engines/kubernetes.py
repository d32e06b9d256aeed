"""Kubernetes: a batch is an Indexed Job, and a task one of its pods.

The pods find the output folder on a volume that is here, too, at the same path. What is asked of the
cluster goes through kubectl, with the rights and the context that it has here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from varangian.experiments.sweep.engines.batch import Batch
from varangian.experiments.sweep.engines.queue import QueueError, QueueFullError, State

PATIENCE = 60.0
"""Seconds for kubectl to answer."""
GRACE = 30
"""Seconds that a task is given to end its runs."""
KEPT = 86400
"""Seconds for which the cluster remembers a Job that is over."""
INDEX = "batch.kubernetes.io/job-completion-index"
SCRIPT = 'exec "$@" "$JOB_COMPLETION_INDEX" >>"$0/logs/$JOB_COMPLETION_INDEX.log" 2>&1'
"""Of a shell: $0 is the folder of the batch, the rest a command without the index of the task."""
USUAL = ("", "ContainerCreating", "PodInitializing")
"""Reasons to wait that pass by themselves."""
FULL = re.compile(r"exceeded quota")
SIZE = re.compile(r"\d+(\.\d+)?([KMGT]i?)?")
PROCESSORS = re.compile(r"\d+(\.\d+)?|\d+m")
OPTIONS = ("image", "claim", "cpu", "memory", "gpus", "user", "namespace", "context")
EXAMPLE = "--kubernetes-options='image=registry.example/varangian claim=runs:/mnt/runs cpu=2 memory=4Gi'"

Answer = dict[str, Any]
"""An object of Kubernetes."""


@dataclass(frozen=True)
class Kubernetes:
    """The cluster of kubectl's context.

    Args:
        options: `key=value` with spaces between them. `image` is needed, and `claim`, the name of a
            PersistentVolumeClaim, with `:PATH` where its volume is here, if that is no mount point.
            `cpu`, `memory`, `gpus` of a task; `user=UID:GID` of its process, by default the one here;
            `namespace` and `context` of kubectl.
    """

    options: str = ""
    title = "Kubernetes"
    name = "kubernetes"
    most = 1000
    """Pods of a Job: more of them are several, since each answer names all that have not ended."""

    def check(self) -> None:
        """See that kubectl is there, reaches a cluster, and may make Jobs."""
        if shutil.which("kubectl") is None:
            raise QueueError(
                "Kubernetes needs the command kubectl, and there is none on the PATH. Install it, and see "
                "that `kubectl auth can-i create jobs` answers yes."
            )
        self.chosen  # noqa: B018 - their errors
        said = self._kubectl("auth", "can-i", "create", "jobs.batch", refusal="no")
        if said.strip() != "yes":
            where = self.chosen.get("namespace", "this namespace")
            raise QueueError(
                f"kubectl may not create Jobs in {where}. Ask whoever runs the cluster for it."
            )

    @cached_property
    def chosen(self) -> Mapping[str, str]:
        """The options by their names."""
        try:
            pairs = [text.partition("=") for text in shlex.split(self.options)]
        except ValueError as error:
            raise _wrong(f"Found {self.options!r}: {error}.") from None
        found = {key: value for key, _, value in pairs}
        for key, value in found.items():
            if key not in OPTIONS or not value:
                raise _wrong(f"Found {key!r}; there are {', '.join(OPTIONS)}.")
        if missing := [key for key in ("image", "claim") if key not in found]:
            raise _wrong(f"{missing[0]} is missing.")
        number, user = re.compile(r"\d+"), re.compile(r"\d+(:\d+)?")
        rules = {"cpu": PROCESSORS, "memory": SIZE, "gpus": number, "user": user}
        for key, rule in rules.items():
            if key in found and not rule.fullmatch(found[key]):
                raise _wrong(f"Found {key}={found[key]}.")
        return found

    def submit(self, batch: Batch, limit: int | None) -> str:
        """Make an Indexed Job; the handle is its name."""
        made = json.dumps(self.job(batch, limit))
        self._kubectl("create", "-f", "-", stdin=made.encode())
        return job_name(batch)

    def states(self, handle: str) -> Mapping[int, State]:
        """The states of the tasks, from the status of the Job and from the pods that have not succeeded."""
        said = self._kubectl("get", "job", handle, "--ignore-not-found", "-o", "json")
        if not said.strip():
            return {}
        job = _read(said)
        states = dict[int, State]()
        status = job.get("status", {})
        count = job["spec"]["completions"]
        over = [one for one in status.get("conditions", []) if one.get("status") == "True"]
        failed = next((one for one in over if one["type"] == "Failed"), None)
        for index in range(count):
            ended = any(one["type"] in ("Complete", "Failed") for one in over)
            states[index] = State("ended", _said(failed)) if ended else State("waiting")
        for index in _indices(status.get("failedIndexes", "")):
            states[index] = State("ended", "its pod failed")
        for index in _indices(status.get("completedIndexes", "")):
            states[index] = State("ended")
        selector = f"batch.kubernetes.io/job-name={handle}"
        pods = self._kubectl(
            "get", "pods", "-l", selector, "--field-selector=status.phase!=Succeeded", "-o", "json"
        )
        for pod in _read(pods).get("items", []):
            number, state = _index(pod), state_of(pod)
            if number is None or number not in states:
                continue
            if state.where != "ended":
                states[number] = state
            elif states[number].where == "ended":
                states[number] = State("ended", state.reason or states[number].reason)
        return states

    def cancel(self, handle: str) -> None:
        """Delete the Job; it is there until its pods have ended."""
        self._kubectl(
            *("delete", "job", handle, "--ignore-not-found", "--cascade=foreground", "--wait=false")
        )

    def job(self, batch: Batch, limit: int | None) -> Answer:
        """The Job of a batch."""
        labels = {
            "app.kubernetes.io/name": "varangian",
            "app.kubernetes.io/component": "sweep",
            "app.kubernetes.io/instance": _plain(batch.name, 60),
        }
        disruption = {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        }
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": job_name(batch), "labels": labels},
            "spec": {
                "completionMode": "Indexed",
                "completions": len(batch.tasks),
                "parallelism": min(limit or len(batch.tasks), len(batch.tasks)),
                # A task that has failed is not tried again, and is no reason to end the others.
                "backoffLimitPerIndex": 0,
                "podReplacementPolicy": "Failed",
                # One that has lost its node is.
                "podFailurePolicy": {"rules": [disruption]},
                "ttlSecondsAfterFinished": KEPT,
                "template": {"metadata": {"labels": labels}, "spec": self.pod(batch)},
            },
        }

    def pod(self, batch: Batch) -> Answer:
        """The pod of a task: without root, capabilities, or a token of the cluster."""
        claim, place = self.place(batch.output)
        here = Path.cwd()
        container = {
            "name": "task",
            "image": self.chosen["image"],
            # The Python of the image, not the one of this machine.
            "command": [
                *("sh", "-c", SCRIPT),
                *(_literal(word) for word in (str(batch.path), "python", *batch.argv("")[1:-1])),
            ],
            "env": [
                {"name": "OMP_NUM_THREADS", "value": "1"},
                {"name": "HOME", "value": "/tmp"},
                {"name": "VARANGIAN_TASK_CORES", "value": str(self._cores())},
            ],
            "resources": self._resources(),
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [
                {"name": "output", "mountPath": str(place)},
                {"name": "tmp", "mountPath": "/tmp"},
            ],
            # Where modules of the user are found, if the volume has them.
            **({"workingDir": str(here)} if here.is_relative_to(place) else {}),
        }
        return {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": GRACE,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": self._user(),
            "containers": [container],
            "volumes": [
                {"name": "output", "persistentVolumeClaim": {"claimName": claim}},
                {"name": "tmp", "emptyDir": {}},
            ],
        }

    def place(self, output: Path) -> tuple[str, Path]:
        """The claim, and the path at which its volume is here and in the pods.

        Raises:
            QueueError: the output folder is not on it.
        """
        claim, _, said = self.chosen["claim"].partition(":")
        place = Path(said) if said else next(path for path in (output, *output.parents) if path.is_mount())
        if place == Path("/"):
            raise _wrong(
                f"claim={claim} should say where its volume is on this machine, as "
                f"claim={claim}:/mnt/runs, and {output} should lie there: it lies on no volume of its own."
            )
        if not output.is_relative_to(place):
            raise _wrong(f"{output} should lie in {place}, where the volume of claim={claim} is.")
        return claim, place

    def _user(self) -> Answer:
        """The process of a task is of the user of this one, whose files it reads and writes."""
        user, _, group = self.chosen.get("user", f"{os.getuid()}:{os.getgid()}").partition(":")
        return {
            "runAsNonRoot": int(user) != 0,
            "runAsUser": int(user),
            "runAsGroup": int(group or user),
            "seccompProfile": {"type": "RuntimeDefault"},
        }

    def _resources(self) -> Answer:
        amounts = {"cpu": self.chosen.get("cpu", "1"), "memory": self.chosen.get("memory", "2Gi")}
        gpus = {"nvidia.com/gpu": self.chosen["gpus"]} if "gpus" in self.chosen else {}
        return {"requests": amounts, "limits": amounts | gpus}

    def _cores(self) -> int:
        cpu = self.chosen.get("cpu", "1")
        return max(1, int(cpu[:-1]) // 1000 if cpu.endswith("m") else int(float(cpu)))

    def _kubectl(self, *command: str, stdin: bytes | None = None, refusal: str = "") -> str:
        """What kubectl prints.

        Args:
            command: and its arguments.
            stdin: what it reads.
            refusal: what it prints with another exit code where that is an answer.
        """
        scope = [f"--{key}={self.chosen[key]}" for key in ("namespace", "context") if key in self.chosen]
        try:
            done = subprocess.run(
                ["kubectl", *command, *scope],
                input=b"" if stdin is None else stdin,
                capture_output=True,
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise QueueError(f"Kubernetes has not answered in {PATIENCE:g} s.") from None
        except OSError as error:
            raise QueueError(f"kubectl cannot be started: {error.strerror or error}.") from None
        printed, said = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if done.returncode == 0 or (refusal and printed.strip() == refusal):
            return printed
        reason = "; ".join(line.removeprefix("Error from server ") for line in said.splitlines() if line)
        kind = QueueFullError if FULL.search(said) else QueueError
        raise kind(f"kubectl {command[0]} failed: {reason or f'exit code {done.returncode}'}.")


def job_name(batch: Batch) -> str:
    """The name of the Job of a batch, which a batch has alone."""
    token = batch.path.name.rpartition("-")[2]
    return f"varangian-{_plain(batch.name, 30)}-{token}"


def state_of(pod: Answer) -> State:
    """What a pod says about its task."""
    status = pod.get("status", {})
    containers = status.get("containerStatuses", [])
    state: Answer = containers[0].get("state", {}) if containers else {}
    if status.get("phase") in ("Failed", "Succeeded"):
        ended = state.get("terminated") or {}
        reason = " ".join(filter(None, (status.get("reason", ""), ended.get("reason", ""))))
        code = f"exit code {ended['exitCode']}" if ended.get("exitCode") else ""
        return State("ended", ", ".join(filter(None, (reason, code))))
    if status.get("phase") == "Running":
        return State("running")
    waits = state.get("waiting") or {}
    reason = waits.get("reason", "")
    for one in status.get("conditions", []):
        if one.get("type") == "PodScheduled" and one.get("status") == "False":
            reason = _said(one)
    return State("waiting", "" if reason in USUAL else f"{reason} {waits.get('message', '')}".strip())


def _said(condition: Answer | None) -> str:
    """The reason of a condition, and what it says."""
    found = condition or {}
    return f"{found.get('reason', '')} {found.get('message', '')}".strip()


def _index(pod: Answer) -> int | None:
    """The number of the task of a pod."""
    metadata = pod.get("metadata", {})
    for marks in (metadata.get("labels") or {}, metadata.get("annotations") or {}):
        with contextlib.suppress(ValueError):
            return int(marks.get(INDEX, ""))
    return None


def _indices(text: str) -> Iterator[int]:
    """The numbers in `0-2,5`."""
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _read(text: str) -> Answer:
    try:
        found: Answer = json.loads(text)
    except ValueError:
        raise QueueError(f"kubectl should answer JSON. Found {text[:100]!r}.") from None
    return found


def _plain(name: str, most: int) -> str:
    """A part of a name of Kubernetes: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:most].strip("-") or "sweep"


def _literal(text: str) -> str:
    """A text in which Kubernetes puts no value in the place of $(NAME), and takes no $$ for $."""
    return text.replace("$", "$$")


def _wrong(sentence: str) -> QueueError:
    return QueueError(f"--kubernetes-options should be options of the tasks, as {EXAMPLE}. {sentence}")
