"""The objects of a run beside its pods: Jobs, the server's address and volume, policies, budgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from varangian.deploy.kubernetes.pods import (
    LABEL,
    claim_name,
    labels,
    server_pod,
    worker_pod,
)
from varangian.deploy.kubernetes.yaml import Object
from varangian.deploy.plan import Plan, Task

WORKER_ROLES: tuple[Literal["worker"], Literal["byzantine"]] = ("worker", "byzantine")
SERVER_FAILURES = 20
"""Crashes of a server after which its Job fails."""
UNLIMITED = (1 << 31) - 1
STORAGE = "10Gi"


def job_name(name: str, role: str) -> str:
    return f"{name}-{role}"


def metadata(name: str, run: str, role: Literal["server", "worker", "byzantine"] | None = None) -> Object:
    """The metadata of an object of a run."""
    return {"name": name, "labels": labels(run, role)}


def server_job_spec(plan: Plan, name: str) -> Object:
    """The server as an Indexed Job of one pod, so that a later pod has the host name of the one before.

    The lock of a run folder on a disk that machines share is taken over from a server of the same host
    name. There is no second one beside it: its pod is replaced when it has ended, not when it is told to.
    """
    disruption = {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    hopeless = {
        "action": "FailJob",
        "onExitCodes": {"containerName": "server", "operator": "In", "values": [1, 2]},
    }
    return {
        "completionMode": "Indexed",
        "completions": 1,
        "parallelism": 1,
        "backoffLimit": SERVER_FAILURES,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": [disruption, hopeless]},
        "template": server_pod(plan, name),
    }


def worker_job_spec(plan: Plan, name: str, tasks: Sequence[Task], f: int) -> Object:
    """Workers of one role as an Indexed Job.

    Args:
        plan: of the run.
        name: of the run.
        tasks: of these workers.
        f: how many workers a run does without; so many need not say that it is over.
    """
    return {
        "completionMode": "Indexed",
        "completions": len(tasks),
        "parallelism": len(tasks),
        "backoffLimit": UNLIMITED,
        "podReplacementPolicy": "Failed",
        "successPolicy": {"rules": [{"succeededCount": max(1, len(tasks) - f)}]},
        "template": worker_pod(plan, name, tasks),
    }


def job(name: str, role: Literal["server", "worker", "byzantine"], spec: Object) -> Object:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(job_name(name, role), name, role),
        "spec": spec,
    }


def service(plan: Plan, name: str) -> Object:
    """The address of the server: that of its pod, once it takes pushes."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(plan.places.server, name, "server"),
        "spec": {
            "clusterIP": "None",
            "selector": labels(name, "server"),
            "ports": [{"name": port.name, "port": port.number} for port in plan.server.ports],
        },
    }


def claim(name: str) -> Object:
    """The volume with the run folders."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(claim_name(name), name),
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": STORAGE}},
        },
    }


def network_policies(plan: Plan, name: str) -> tuple[Object, Object]:
    """Who may reach whom: workers the server and DNS; and nobody anything else."""
    ports = [
        {"port": port.number, "protocol": "TCP"} for port in plan.server.ports if port.name != "metrics"
    ]
    ingress: list[Object] = [{"from": [{"podSelector": _workers(name)}], "ports": ports}]
    for port in plan.server.ports:
        if port.name == "metrics":
            monitor = {
                "namespaceSelector": {},
                "podSelector": {"matchLabels": {f"{LABEL}/name": "prometheus"}},
            }
            ingress.append({"from": [monitor], "ports": [{"port": port.number, "protocol": "TCP"}]})
    server = {
        "podSelector": {"matchLabels": labels(name, "server")},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": ingress,
        "egress": [],
    }
    workers = {
        "podSelector": _workers(name),
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [],
        "egress": [
            {"to": [{"podSelector": {"matchLabels": labels(name, "server")}}], "ports": ports},
            {"ports": [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]},
        ],
    }
    return _policy(f"{name}-server", name, server), _policy(f"{name}-workers", name, workers)


def budgets(plan: Plan, name: str, f: int) -> tuple[Object, Object]:
    """How many pods a drain of nodes leaves alone: the server, and all workers but f."""
    server = {"matchLabels": labels(name, "server")}
    return (
        _budget(f"{name}-server", name, server, 1),
        _budget(f"{name}-workers", name, _workers(name), max(1, len(plan.workers) - f)),
    )


def _workers(name: str) -> Object:
    """The selector of the pods of all workers, honest and Byzantine."""
    either = {"key": f"{LABEL}/component", "operator": "In", "values": [*WORKER_ROLES]}
    return {"matchLabels": labels(name), "matchExpressions": [either]}


def _policy(own_name: str, name: str, spec: Object) -> Object:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(own_name, name),
        "spec": spec,
    }


def _budget(own_name: str, name: str, selector: Object, least: int) -> Object:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(own_name, name),
        "spec": {
            "minAvailable": least,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": selector,
        },
    }
