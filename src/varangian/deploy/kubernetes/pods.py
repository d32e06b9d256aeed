"""The pod of each role, without what its program does not need: Pod Security `restricted` admits it.

No root, no capabilities, no writable root, no token of the cluster. A worker sees the one key that is its
own, though the pods of a Job share their template: the files of its bundle are mounted one by one, by the
index of the pod.
"""

from __future__ import annotations

from collections.abc import Sequence

from varangian.deploy.kubernetes.yaml import Object, Octal, memory, processors
from varangian.deploy.plan import RUN, Plan, Resources, Task, TaskRole
from varangian.protos.identity.bundle import CA

USER = 10001
"""Of the image, and the group that may read Secrets and write volumes."""
INDEX = "JOB_COMPLETION_INDEX"
"""The variable with the index of a pod in its Job, set by Kubernetes."""
GPU = "nvidia.com/gpu"
TEMPORARY = "1Gi"
"""The most that /tmp may hold."""
LEAST_GRACE = 30
ALIVE = 15
"""Seconds since the last touch of its heartbeat after which a program does not count as alive."""
LABEL = "app.kubernetes.io"


def labels(name: str, role: TaskRole | None = None) -> Object:
    """The labels of everything that belongs to a run, or to one role of it."""
    of_role = {} if role is None else {f"{LABEL}/component": role}
    return {f"{LABEL}/name": "varangian", f"{LABEL}/instance": name, **of_role}


def literal(text: str) -> str:
    """A text in which Kubernetes puts no value in the place of $(NAME), and takes no $$ for $."""
    return text.replace("$", "$$")


def server_pod(plan: Plan, name: str) -> Object:
    """The template of the server's pod; with a volume for files of vectors that is deleted with it."""
    task, places = plan.server, plan.places
    credentials, *_ = task.secrets  # a token lies in the same Secret
    volumes: list[Object] = [
        {
            "name": "certs",
            "secret": {"secretName": secret_name(name, "server"), "defaultMode": Octal(0o440)},
        },
        {"name": "runs", "persistentVolumeClaim": {"claimName": claim_name(name)}},
    ]
    mounts: list[Object] = [
        {"name": "certs", "mountPath": credentials.target, "readOnly": True},
        {"name": "runs", "mountPath": places.runs},
    ]
    if plan.rows:
        claim = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": memory(task.resources.rows)}},
        }
        volumes.append({"name": "rows", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}})
        mounts.append({"name": "rows", "mountPath": places.rows})
    container = {
        **_container(task, (*task.command[1:], "--until-done"), mounts),
        "ports": [{"name": port.name, "containerPort": port.number} for port in task.ports],
        "startupProbe": _probe(places.heartbeat, period=2, failures=450),
        "readinessProbe": _probe(places.heartbeat, period=5, failures=3),
        "livenessProbe": _probe(places.heartbeat, period=30, failures=10),
    }
    return _template(plan, name, "server", container, volumes, restart="Never")


def worker_pod(plan: Plan, name: str, tasks: Sequence[Task]) -> Object:
    """The template of the pods of workers of one role, which differ in their index alone."""
    first, places = tasks[0], plan.places
    kind = "honest" if first.role == "worker" else "byzantine"
    arguments = (*first.argv[1:], "--claim", kind, "--index")
    volumes = [
        {
            "name": "certs",
            "secret": {"secretName": secret_name(name, first.role), "defaultMode": Octal(0o440)},
        },
        {"name": "state", "emptyDir": {}},
    ]
    mounts: list[Object] = [
        {
            "name": "certs",
            "mountPath": f"{places.certs}/{file}",
            **({"subPath": file} if file == CA else {"subPathExpr": f"$({INDEX}).{file}"}),
            "readOnly": True,
        }
        for file in first.secrets[0].files
    ]
    mounts.append({"name": "state", "mountPath": places.state})
    container = _container(first, arguments, mounts)
    container["args"].append(f"$({INDEX})")
    if places.worker_heartbeat is not None:
        container["startupProbe"] = _probe(places.worker_heartbeat, period=5, failures=180)
        container["readinessProbe"] = _probe(places.worker_heartbeat, period=10, failures=3)
        container["livenessProbe"] = _probe(places.worker_heartbeat, period=30, failures=10)
    return _template(plan, name, first.role, container, volumes, restart="OnFailure")


def secret_name(name: str, role: TaskRole) -> str:
    """The Secret with the certificates of a role."""
    return f"{name}-{role}-certs"


def claim_name(name: str) -> str:
    """The claim of the volume with the run folders."""
    return f"{name}-runs"


def config_name(name: str) -> str:
    """The ConfigMap with the settings."""
    return f"{name}-run"


def resources(given: Resources) -> Object:
    """Requests and limits, which are the same: what the plan gives is there, and no more is."""
    amounts = {"cpu": processors(given.cpus), "memory": memory(given.memory)}
    gpus = {GPU: str(given.gpus)} if given.gpus else {}
    return {"requests": amounts, "limits": amounts | gpus}


def confined() -> Object:
    """The security context of a container."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def unprivileged() -> Object:
    """The security context of a pod."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container(task: Task, arguments: Sequence[str], mounts: Sequence[Object]) -> Object:
    return {
        "name": task.role,
        "image": "varangian",
        "command": ["varangian"],
        "args": [literal(text) for text in arguments],
        "env": [{"name": key, "value": literal(value)} for key, value in task.environment.items()],
        "resources": resources(task.resources),
        "securityContext": confined(),
        "volumeMounts": [*mounts, {"name": "tmp", "mountPath": "/tmp"}],
    }


def _template(
    plan: Plan,
    name: str,
    role: TaskRole,
    container: Object,
    volumes: Sequence[Object],
    *,
    restart: str,
) -> Object:
    folder, _, file = plan.places.config.rpartition("/")
    assert file == RUN, "the settings are mounted as the folder that has them"
    container["volumeMounts"].insert(0, {"name": "settings", "mountPath": folder, "readOnly": True})
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": labels(name, role)},
    }
    grace = plan.stop_grace if role == "server" else 0
    spec = {
        "restartPolicy": restart,
        "terminationGracePeriodSeconds": max(LEAST_GRACE, grace),
        "automountServiceAccountToken": False,
        # Variables with the addresses of Services could be settings of ours by chance.
        "enableServiceLinks": False,
        # Then the program is not process 1, which hears a signal only once it has a handler for it.
        "shareProcessNamespace": True,
        "securityContext": unprivileged(),
        **({} if role == "server" else {"topologySpreadConstraints": [spread]}),
        "containers": [container],
        "volumes": [
            {"name": "settings", "configMap": {"name": config_name(name)}},
            *volumes,
            {"name": "tmp", "emptyDir": {"sizeLimit": TEMPORARY}},
        ],
    }
    return {"metadata": {"labels": labels(name, role)}, "spec": spec}


def _probe(heartbeat: str, *, period: int, failures: int) -> Object:
    """Whether a program has touched its file lately: to start a Python that asks it takes seconds."""
    look = f"find {heartbeat} -newermt '-{ALIVE} seconds' | grep -q ."
    return {
        "exec": {"command": ["sh", "-c", look]},
        "periodSeconds": period,
        "timeoutSeconds": 10,
        "failureThreshold": failures,
    }
