"""The files of a deployment on Kubernetes: a kustomize base, an overlay for JobSet, a page for a person.

base/                 the run, for `kubectl apply -k`
base/credentials/     filled by `varangian certs cluster`; kustomize makes Secrets of it
overlays/jobset/      the same with one JobSet in the place of Jobs
overlays/states/      the same with what workers remember on a volume, by way of components/states/
results.yaml          a pod that shows the volume with the run folders
monitor.yaml          with a metrics port: what has its metrics collected
"""

from __future__ import annotations

import dataclasses
import shlex
import textwrap
from collections.abc import Sequence
from typing import Literal

from varangian.config import RunConfig
from varangian.deploy.emitter import IMAGE, File, Options, comment, needs_section
from varangian.deploy.kubernetes import job_set, objects, states
from varangian.deploy.kubernetes.pods import (
    claim_name,
    config_name,
    confined,
    labels,
    secret_name,
    unprivileged,
)
from varangian.deploy.kubernetes.yaml import Object, documents, dump
from varangian.deploy.plan import RUN, Places, Plan, Task, TaskRole, has_token
from varangian.protos.identity.bundle import CA, METRICS_TOKEN
from varangian.registry import ConfigError, Problem

KUSTOMIZE = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
CREDENTIALS = "credentials"
MONITOR = (CA, METRICS_TOKEN)
"""Files of whoever collects metrics: to know the server by, and to be let in."""
MOST = 600
"""Workers of one role: their bundles, 1.3 KB each, are one Secret, which has at most 1 MiB."""


def render(config: RunConfig, options: Options) -> Sequence[File]:
    """The files of a deployment on Kubernetes.

    Raises:
        ConfigError: there are more workers than one Secret can have bundles of, or the size of the volume
            for files of vectors is not given.
    """
    name = options.name
    plan = options.plan(config, Places(server=f"{name}-server", worker_heartbeat="/tmp/working"))
    for role in objects.WORKER_ROLES:
        if len(plan.of(role)) > MOST:
            hint = "Let one pod have several workers, or use another engine."
            rule = (
                f"should be at most {MOST} of one kind: their certificates are one Secret, of at most 1 MiB"
            )
            raise ConfigError([Problem("workers", rule, len(plan.of(role)), hint)])
    if plan.rows and not options.server.rows:
        rule = f"should be the size of the volume for {' and '.join(plan.rows)}, as 40g"
        hint = "`varangian check` with these settings says how large the files are."
        raise ConfigError([Problem("--rows", rule, hint=hint)])
    return [
        File("README.md", readme(config, plan, options)),
        File("base/kustomization.yaml", _head(options, *BASE) + dump(_base(config, plan, options))),
        File(
            f"base/{RUN}",
            _head(options, "The settings of the run, for all of its programs.") + plan.files[RUN],
        ),
        File("base/server.yaml", _server(plan, options)),
        File("base/network.yaml", _network(plan, options)),
        File("base/disruption.yaml", _disruption(plan, options, config.f)),
        *(
            File(f"base/{_file(role)}", _workers(plan, options, role, config.f))
            for role in objects.WORKER_ROLES
            if plan.of(role)
        ),
        File(
            f"base/{CREDENTIALS}/.gitignore",
            "# Private keys: they belong into no repository.\n*\n!.gitignore\n",
        ),
        File(
            "overlays/jobset/kustomization.yaml",
            _head(options, "The run as one JobSet: its Jobs start in order and end together.")
            + dump(job_set.kustomization(plan, name, [_image(options.image)])),
        ),
        File(
            "overlays/jobset/references.yaml",
            _head(options, "Where in a JobSet the names of ConfigMaps stand.") + dump(job_set.references()),
        ),
        File("overlays/jobset/jobset.yaml", _job_set(plan, options, config.f)),
        *_states(plan, options),
        File("results.yaml", _results(plan, options)),
        *([File("monitor.yaml", _monitor(plan, options))] if has_token(config) else ()),
    ]


BASE = (
    "The run: apply it with `kubectl apply -k base`. README.md has the commands before and after.",
    "Secrets are made of files that `varangian certs cluster` writes. They keep their names when a file "
    "changes, so that a revoked certificate reaches the server that runs.",
)
WIDTH = 100


def said(*paragraphs: str) -> str:
    """Paragraphs as a comment; one that is indented keeps its lines."""
    lines = list[str]()
    for text in paragraphs:
        lines += ["", *(text.splitlines() if text.startswith(" ") else textwrap.wrap(text, WIDTH))]
    return comment(*lines[1:])


def _head(options: Options, *paragraphs: str) -> str:
    return said(*paragraphs, f"  Made by: {options.made_by}")


def _base(config: RunConfig, plan: Plan, options: Options) -> Object:
    name = options.name
    roles: list[TaskRole] = [role for role in objects.WORKER_ROLES if plan.of(role)]
    resources = ["server.yaml", *map(_file, roles), "network.yaml", "disruption.yaml"]
    secrets = [
        _secret(
            secret_name(name, "server"),
            [
                f"{file}={CREDENTIALS}/{each.source}/{file}"
                for each in plan.server.secrets
                for file in each.files
            ],
        )
    ]
    if has_token(config):
        secrets.append(
            _secret(f"{name}-monitor", [f"{file}={CREDENTIALS}/monitor/{file}" for file in MONITOR])
        )
    for role in roles:
        tasks = plan.of(role)
        files = [f"{CA}={_source(tasks[0], CA)}"]
        for task in tasks:
            files += [
                f"{task.index}.{file}={_source(task, file)}" for file in task.secrets[0].files if file != CA
            ]
        secrets.append(_secret(secret_name(name, role), files))
    return {
        **KUSTOMIZE,
        "resources": resources,
        "configMapGenerator": [{"name": config_name(name), "files": [RUN]}],
        "secretGenerator": secrets,
        "images": [_image(options.image)],
    }


def _file(role: TaskRole) -> str:
    return "workers.yaml" if role == "worker" else "byzantine.yaml"


def _source(task: Task, file: str) -> str:
    return f"{CREDENTIALS}/{task.secrets[0].source}/{file}"


def _secret(name: str, files: list[str]) -> Object:
    return {"name": name, "files": files, "options": {"disableNameSuffixHash": True}}


def _image(image: str) -> Object:
    """What kustomize puts in the place of `varangian`."""
    named, _, digest = image.partition("@")
    path, _, tag = named.rpartition(":")
    if not path or "/" in tag:  # the port of a registry
        path, tag = named, ""
    chosen: Object = {"name": "varangian", "newName": path}
    if tag:
        chosen["newTag"] = tag
    if digest:
        chosen["digest"] = digest
    return chosen


def _server(plan: Plan, options: Options) -> str:
    name = options.name
    storage = said(
        "Run folders, with the checkpoints from which the server goes on. Change how much there is of it, "
        "or add a storageClassName, as your cluster has them."
    )
    address = said("The address that workers call is that of the server's pod, once it is ready.")
    job = said(
        "The server. It is ready while it takes pushes, which it shows by touching a file every second.",
        "restartPolicy Never, since what it needs to go on is in the volume: its Job makes a new pod after "
        "a crash, and none after the exit codes 1, the run has failed, and 2, the settings are wrong. A "
        "pod that has to leave its node counts as no crash.",
    )
    spec = objects.server_job_spec(plan, name)
    head = _head(options, "The server: its volume, its address and its Job.")
    return f"{head}\n" + documents(
        (storage, objects.claim(name)),
        (address, objects.service(plan, name)),
        (job, objects.job(name, "server", spec)),
    )


def _workers(plan: Plan, options: Options, role: Literal["worker", "byzantine"], f: int) -> str:
    tasks = plan.of(role)
    names = ", ".join(f"{task.index} is {task.name}" for task in tasks)
    if len(names) > WIDTH:
        names = f"{tasks[0].index} is {tasks[0].name}, {tasks[-1].index} is {tasks[-1].name}"
    what = "honest" if role == "worker" else "Byzantine"
    head = _head(
        options,
        f"The {what} workers: pod i of an Indexed Job is worker i of its kind, also after it was replaced: "
        f"{names}.",
        "A container that crashes is started again in its pod, where the volume `state` still has what the "
        "worker remembers, as its momentum. A worker whose pod had to move joins again without it, but "
        "with overlays/states. The Job "
        "ends when all but f workers say that the run is over: those that hang or fail hold nobody up.",
        "A pod sees the key of one worker: the files of its bundle are mounted by the index of the pod.",
    )
    spec = objects.worker_job_spec(plan, options.name, tasks, f)
    return head + dump(objects.job(options.name, role, spec))


def _network(plan: Plan, options: Options) -> str:
    head = _head(
        options,
        "Who may reach whom: workers the server, and DNS (port 53); the server nobody. It is of use "
        "where the network of the cluster knows NetworkPolicy. Where programs load data from elsewhere, "
        "or a tracker sends numbers to another machine, add an egress rule.",
    )
    server, workers = objects.network_policies(plan, options.name)
    return head + dump(server) + "---\n" + dump(workers)


def _disruption(plan: Plan, options: Options, f: int) -> str:
    head = _head(
        options,
        "What `kubectl drain` leaves alone: the server, and all workers but f. A drain waits for the end "
        f"of the run. To move the server all the same: kubectl delete pdb {options.name}-server. It goes "
        "on from its last round.",
    )
    server, workers = objects.budgets(plan, options.name, f)
    return head + dump(server) + "---\n" + dump(workers)


def _job_set(plan: Plan, options: Options, f: int) -> str:
    head = _head(
        options,
        "The Jobs of base/ in one JobSet (jobset.x-k8s.io). Workers start when the server is ready. The "
        "set is complete when the server's Job is, and fails when the run does; either ends what is left.",
    )
    return head + dump(job_set.job_set(plan, options.name, f))


def _states(plan: Plan, options: Options) -> list[File]:
    """The component that keeps what workers remember, and the base with it."""
    why = _head(
        options,
        "What workers remember, as their momentum, on one volume for all of them, in a folder for each: a "
        "worker whose pod had to move goes on as one whose container has crashed. The volume must be one "
        "that pods on any node can write to (ReadWriteMany) and that knows fsGroup; add a storageClassName "
        "to claim.yaml, as your cluster has them.",
    )
    use = _head(options, "The base, with what workers remember on a volume.")
    return [
        File(f"{states.FOLDER}/kustomization.yaml", why + dump(states.component(plan, options.name))),
        File(
            f"{states.FOLDER}/claim.yaml",
            _head(options, "The volume for what workers remember.") + dump(states.claim(options.name)),
        ),
        File("overlays/states/kustomization.yaml", use + dump(states.overlay())),
    ]


def _results(plan: Plan, options: Options) -> str:
    name = f"{options.name}-results"
    head = _head(
        options,
        "A pod that shows the volume with the run folders:",
        "  kubectl apply -f results.yaml\n"
        f"  kubectl wait --for=condition=Ready pod/{name}\n"
        f"  kubectl cp {name}:{plan.places.runs} runs\n"
        "  kubectl delete -f results.yaml",
    )
    container = {
        "name": "results",
        "image": options.image,
        "command": ["sleep", "3600"],
        "resources": {"limits": {"cpu": "500m", "memory": "256Mi"}},
        "securityContext": confined(),
        "volumeMounts": [{"name": "runs", "mountPath": plan.places.runs, "readOnly": True}],
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels(options.name)},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": unprivileged(),
            "containers": [container],
            "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": claim_name(options.name)}}],
        },
    }
    return head + dump(pod)


def _monitor(plan: Plan, options: Options) -> str:
    name = options.name
    head = _head(
        options,
        "For a cluster with the operator of Prometheus: `kubectl apply -f monitor.yaml` has the metrics of "
        f"the run collected. The Secret {name}-monitor has the token, and the authority of the server.",
    )
    endpoint = {
        "port": "metrics",
        "scheme": "https",
        "interval": "5s",
        "authorization": {"credentials": {"name": f"{name}-monitor", "key": METRICS_TOKEN}},
        "tlsConfig": {
            "ca": {"secret": {"name": f"{name}-monitor", "key": CA}},
            "serverName": plan.places.server,
        },
    }
    found = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": objects.metadata(name, name),
        "spec": {"selector": {"matchLabels": labels(name, "server")}, "endpoints": [endpoint]},
    }
    return head + dump(found)


def _metrics(plan: Plan, name: str) -> str:
    (port,) = [port.number for port in plan.server.ports if port.name == "metrics"]
    return f"""## Metrics

The page and metrics are at `https://{plan.places.server}:{port}` in the namespace, for whoever has the
token that the first command makes; the Secret `{name}-monitor` has it, and the authority of the server's
certificate. `kubectl apply -f monitor.yaml` tells the operator of Prometheus. The NetworkPolicy lets in
pods with the label `app.kubernetes.io/name: prometheus`, which that operator gives to its own.

"""


def certs_command(plan: Plan) -> str:
    """The command that makes the certificates, in the folder of the deployment."""
    at = dataclasses.replace(plan.places, certs=f"base/{CREDENTIALS}", config=f"base/{RUN}")
    words = plan.certs.argv
    moved = {plan.places.certs: at.certs, plan.places.config: at.config}
    return shlex.join(moved.get(word, word) for word in words)


def readme(config: RunConfig, plan: Plan, options: Options) -> str:
    """The page for a person."""
    name = options.name
    n, byzantine = len(plan.of("worker")), len(plan.of("byzantine"))
    workers = f"{n} honest workers" + (f" and {byzantine} Byzantine ones" if byzantine else "")
    return f"""\
# {name} on Kubernetes

A server and {workers}, made by `{options.made_by}`.

```sh
{certs_command(plan)}
kubectl apply -k base
kubectl logs --follow job/{name}-server
```

The first command makes an authority and certificates in `base/credentials`, on this machine; kustomize
makes Secrets of the certificates. `base/credentials/authority` stays here: it can make anybody a member.

Where JobSet is installed, `kubectl apply -k overlays/jobset` in the place of the second command starts the
run as one set, which also ends as one: `kubectl logs --follow job/{name}-server-0`.

Where pods on several nodes can write to one volume (`ReadWriteMany`), `kubectl apply -k overlays/states`
keeps there what workers remember, so that one that moves to another node goes on with its momentum.
Together with JobSet: add `components: [../../{states.FOLDER}]` to `overlays/jobset/kustomization.yaml`.

The image has to be where the nodes find it: `images` in `base/kustomization.yaml` names it, and the same in
the overlay; best by digest. All of this is made for Kubernetes 1.31 and later, is admitted where Pod
Security is `restricted`, and names no namespace: add `-n NAMESPACE` to each command.

## Results

```sh
kubectl apply -f results.yaml
kubectl wait --for=condition=Ready pod/{name}-results
kubectl cp {name}-results:{plan.places.runs} runs
kubectl delete -f results.yaml
```

{_metrics(plan, name) if has_token(config) else ""}## Changes

The pods of a Job cannot be changed. To change the run, its image or its resources, delete the Jobs. The
volume stays: the server goes on with the newest run of the same settings, and ends at once if that is over.

```sh
kubectl delete job --selector app.kubernetes.io/instance={name}
kubectl apply -k base
```

`kubectl delete -k base` deletes everything, also the volume with the results.

## Certificates

They are valid for 30 days. The first command renews those that end soon, and `kubectl apply -k base` brings
them to the cluster: the server reads them while it runs, workers when they start again. After
`varangian certs revoke base/credentials NAME` and `kubectl apply -k base` the server refuses that worker
within about two minutes.
{needs_section(config, IMAGE)}"""
