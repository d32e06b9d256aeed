"""The overlay for clusters that have JobSet, which starts and ends the Jobs of a run together."""

from __future__ import annotations

from typing import Any

from varangian.deploy.kubernetes.objects import (
    WORKER_ROLES,
    job_name,
    metadata,
    server_job_spec,
    worker_job_spec,
)
from varangian.deploy.kubernetes.pods import labels
from varangian.deploy.kubernetes.yaml import Object, dump
from varangian.deploy.plan import Plan, TaskRole

RESTARTS = 3
"""Times that the whole set is started again after the server has failed for good."""
TEMPLATE = "spec/replicatedJobs/template/spec/template/spec/volumes"
"""Where a JobSet names what its pods mount."""


def job_set(plan: Plan, name: str, f: int) -> Object:
    """The Jobs of a run as one JobSet: workers start when the server takes pushes, and end with it."""
    jobs = [_replicated("server", server_job_spec(plan, name), name)]
    for role in WORKER_ROLES:
        if tasks := plan.of(role):
            spec = worker_job_spec(plan, name, tasks, f)
            jobs.append(
                _replicated(role, spec, name) | {"dependsOn": [{"name": "server", "status": "Ready"}]}
            )
    hopeless = {
        "name": "hopeless",
        "action": "FailJobSet",
        "targetReplicatedJobs": ["server"],
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata(name, name),
        "spec": {
            # The Service of the server is enough: nobody calls a worker.
            "network": {"enableDNSHostnames": False},
            "successPolicy": {"operator": "All", "targetReplicatedJobs": ["server"]},
            "failurePolicy": {"maxRestarts": RESTARTS, "rules": [hopeless]},
            "replicatedJobs": jobs,
        },
    }


def _replicated(role: TaskRole, spec: Object, name: str) -> Object:
    metadata = {"labels": labels(name, role)}
    return {"name": role, "replicas": 1, "template": {"metadata": metadata, "spec": spec}}


def kustomization(plan: Plan, name: str, images: list[Object]) -> Object:
    """The base without its Jobs, and the JobSet."""
    roles = ["server", *(role for role in WORKER_ROLES if plan.of(role))]
    removed = [
        {
            "$patch": "delete",
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": job_name(name, role)},
        }
        for role in roles
    ]
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../../base", "jobset.yaml"],
        "patches": [{"patch": dump(patch)} for patch in removed],
        "configurations": ["references.yaml"],
        "images": images,
    }


def references() -> Object:
    """Where in a JobSet kustomize finds the names of ConfigMaps, to which it adds a digest."""
    field: dict[str, Any] = {
        "kind": "JobSet",
        "group": "jobset.x-k8s.io",
        "path": f"{TEMPLATE}/configMap/name",
    }
    return {"nameReference": [{"kind": "ConfigMap", "version": "v1", "fieldSpecs": [field]}]}
