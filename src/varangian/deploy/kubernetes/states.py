"""The component that keeps what workers remember on a volume, so that it outlives their pods.

The pods of an Indexed Job share one template, and that can only name a volume which all of them use: a
claim of each pod's own (`ephemeral`) is deleted with the pod, and the claims of a StatefulSet come with
pods that never end. So it is one claim for pods on any node, `ReadWriteMany`, of which each pod sees the
folder of its index alone. Not every cluster has such volumes: without the component a pod has an empty one.
"""

from __future__ import annotations

from varangian.deploy.kubernetes.objects import STORAGE, WORKER_ROLES, job_name, metadata
from varangian.deploy.kubernetes.pods import INDEX, worker_pod
from varangian.deploy.kubernetes.yaml import Object, dump
from varangian.deploy.plan import Plan

STATE = "state"
"""The volume of a worker's pod."""
FOLDER = "components/states"


def claim_name(name: str) -> str:
    """The claim of the volume with the states of all workers."""
    return f"{name}-states"


def claim(name: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(claim_name(name), name),
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": STORAGE}},
        },
    }


def component(plan: Plan, name: str) -> Object:
    """The claim, and what it changes in Jobs, or in the JobSet where there is one."""
    patches = list[Object]()
    roles = ["server", *(role for role in WORKER_ROLES if plan.of(role))]
    for at, role in enumerate(roles):
        if role == "server":
            continue
        pod = "spec/template/spec"
        patches += [
            _patch("Job", job_name(name, role), pod, name, role, plan),
            _patch("JobSet", name, f"spec/replicatedJobs/{at}/template/{pod}", name, role, plan),
        ]
    return {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "resources": ["claim.yaml"],
        "patches": patches,
    }


def overlay() -> Object:
    """The base with the component."""
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../../base"],
        "components": [f"../../{FOLDER}"],
    }


def _patch(kind: str, target: str, pod: str, name: str, role: str, plan: Plan) -> Object:
    """What makes the pods of a role mount their folders; of use where there is such an object."""
    (tasks,) = [plan.of(each) for each in WORKER_ROLES if each == role]
    spec = worker_pod(plan, name, tasks)["spec"]
    volume = next(at for at, one in enumerate(spec["volumes"]) if one["name"] == STATE)
    mounts = spec["containers"][0]["volumeMounts"]
    mount = next(at for at, one in enumerate(mounts) if one["name"] == STATE)
    changes: list[Object] = [
        {
            "op": "replace",
            "path": f"/{pod}/volumes/{volume}",
            "value": {"name": STATE, "persistentVolumeClaim": {"claimName": claim_name(name)}},
        },
        {
            "op": "add",
            "path": f"/{pod}/containers/0/volumeMounts/{mount}/subPathExpr",
            "value": f"{role}-$({INDEX})",
        },
    ]
    return {"target": {"kind": kind, "name": target}, "patch": "".join(map(_entry, changes))}


def _entry(change: Object) -> str:
    """An entry of a list."""
    return "- " + dump(change).rstrip("\n").replace("\n", "\n  ") + "\n"
