"""Docker Swarm: a run on several machines with one engine each, as a stack.

Nothing is published outside of the stack's own network, which is encrypted. Each worker is a service with
the secrets of that worker alone, so a container that is taken over is one Byzantine worker.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from varangian.config import RunConfig
from varangian.config.yaml_text import dump_line
from varangian.deploy.compose import literal, memory
from varangian.deploy.emitter import IMAGE, File, Options, comment, needs_section
from varangian.deploy.plan import RUN, Places, Plan, Task, has_token, metrics_port
from varangian.protos.identity.bundle import CA, CERTIFICATE, KEY, METRICS_TOKEN

FILE = "stack.yaml"
PLACES = Places(worker_heartbeat="/tmp/working")
CERTS = "certs"
"""The folder beside the stack that `varangian certs cluster` fills."""
PLAIN = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
"""Names of workers that can be names of services, beside that of the stack."""
OWNER = 'uid: "10001", gid: "10001", mode: 0400'
"""The user of the image, who alone may read a secret."""
CONFIG = f"{{source: run, target: {PLACES.config}, mode: 0444}}"
FILES = {CERTIFICATE: "cert", KEY: "key"}
"""Files of a bundle that are secrets of one task, and the names of these secrets."""


def render(config: RunConfig, options: Options) -> Sequence[File]:
    """The files of a deployment with Docker Swarm."""
    plan = options.plan(config, PLACES)
    text = "\n".join(_Stack(config, plan, options).lines()) + "\n"
    settings = comment(
        "The settings of the run that are not at their defaults.", f"Made by: {options.made_by}"
    )
    return [
        File(FILE, text),
        File("README.md", _readme(config, plan, options)),
        File(RUN, settings + plan.files[RUN]),
    ]


def service(task: Task) -> str:
    """The name of the service of a task: that of its worker, where it can be one."""
    if task.role == "server":
        return "server"
    fits = PLAIN.fullmatch(task.name) and task.name != "server"
    return task.name if fits else f"{task.role}-{task.index}"


class _Stack:
    """One stack file, part by part."""

    def __init__(self, config: RunConfig, plan: Plan, options: Options) -> None:
        self.config, self.plan, self.options = config, plan, options

    def lines(self) -> Iterator[str]:
        yield from self.head()
        yield 'version: "3.9"'
        yield ""
        yield from self.shared()
        yield "services:"
        yield from self.server()
        for task in self.plan.workers:
            yield from self.worker(task)
        yield from NETWORK.splitlines()
        yield ""
        yield "volumes:"
        yield "  runs: {}"
        if self.plan.rows:
            yield "  rows: {}"
        yield from (f"  {service(task)}-state: {{}}" for task in self.plan.workers)
        yield ""
        yield from self.files()

    def head(self) -> Iterator[str]:
        honest, byzantine = len(self.config.honest_names), len(self.config.byzantine_names)
        many = f"{honest} honest and {byzantine} Byzantine workers"
        what = f"The run {self.options.name} on a swarm: a server, {many}."
        yield from comment(
            what, "", "  docker stack deploy --compose-file stack.yaml " + self.options.name
        ).splitlines()
        yield "#"
        yield from comment(f"Made by: {self.options.made_by}").splitlines()
        yield from HEAD.splitlines()
        yield ""

    def shared(self) -> Iterator[str]:
        common = self.plan.server.environment
        yield "x-settings: &settings"
        yield from (f"  {name}: {_quoted(value)}" for name, value in common.items())
        yield ""
        yield "x-varangian: &varangian"
        yield f"  image: {self.options.image}"
        text = SHARED.replace("GRACE", f"{self.plan.stop_grace}s").replace("CONFIG", CONFIG)
        yield from text.splitlines()
        yield ""
        yield "x-worker: &worker"
        yield "  <<: *varangian"
        yield from self.healthcheck(str(self.plan.places.worker_heartbeat), "  ", "10s")
        yield from self.deploy(self.plan.workers[0], "  ", None)
        yield ""

    def server(self) -> Iterator[str]:
        task = self.plan.server
        yield "  server:"
        yield "    <<: *varangian"
        yield f"    command: {dump_line(list(map(literal, task.command[1:])))}"
        yield "    volumes:"
        yield f"      - runs:{self.plan.places.runs}"
        if self.plan.rows:
            yield f"      - rows:{self.plan.places.rows}"
        yield "      - {type: tmpfs, target: /tmp}"
        yield "    configs:"
        yield f"      - {CONFIG}"
        yield f"      - {{source: revoked, target: {task.secrets[0].target}/revoked, mode: 0444}}"
        yield from self.secrets(task)
        yield from self.healthcheck(self.plan.places.heartbeat, "    ", "5s")
        yield from self.deploy(task, "    ", "node.labels.varangian == server")
        yield ""

    def worker(self, task: Task) -> Iterator[str]:
        yield f"  {service(task)}:"
        yield "    <<: *worker"
        yield f"    command: {dump_line(list(map(literal, task.command[1:])))}"
        own = task.environment.items() - self.plan.server.environment.items()
        if own:
            yield "    environment:"
            yield "      <<: *settings"
            yield from (f"      {name}: {_quoted(literal(value))}" for name, value in sorted(own))
        yield "    volumes:"
        yield f"      - {service(task)}-state:{self.plan.places.state}"
        yield "      - {type: tmpfs, target: /tmp}"
        yield from self.secrets(task)
        yield ""

    def secrets(self, task: Task) -> Iterator[str]:
        bundle, *others = task.secrets
        yield "    secrets:"
        yield f"      - {{source: ca, target: {bundle.target}/{CA}, {OWNER}}}"
        for file, what in FILES.items():
            yield f"      - {{source: {service(task)}-{what}, target: {bundle.target}/{file}, {OWNER}}}"
        for other in others:
            for file in other.files:
                yield f"      - {{source: {file}, target: {other.target}/{file}, {OWNER}}}"

    def healthcheck(self, file: str, indent: str, interval: str) -> Iterator[str]:
        yield f"{indent}healthcheck:"
        yield f"""{indent}  test: ["CMD-SHELL", 'test -n "$$(find {file} -newermt "-15 seconds")"']"""
        yield f"{indent}  interval: {interval}"
        yield f"{indent}  timeout: 10s"
        yield f"{indent}  retries: 5"
        yield f"{indent}  start_period: 300s"

    def deploy(self, task: Task, indent: str, where: str | None) -> Iterator[str]:
        yield f"{indent}deploy:"
        yield f"{indent}  mode: replicated"
        yield f"{indent}  replicas: 1"
        yield f"{indent}  endpoint_mode: dnsrr"
        if where is not None:
            yield f"{indent}  placement: {{constraints: [{where}]}}"
        yield f"{indent}  update_config: {{order: stop-first, parallelism: 1}}"
        yield f"{indent}  restart_policy: {{condition: on-failure, delay: 5s, max_attempts: 20}}"
        yield f"{indent}  resources:"
        got = task.resources
        limits = f'cpus: "{got.cpus:g}", memory: {memory(got)}, pids: 256'
        yield f"{indent}    limits: {{{limits}}}"
        if got.gpus:
            yield f"{indent}    reservations:"
            yield f"{indent}      generic_resources:"
            spec = f"discrete_resource_spec: {{kind: NVIDIA-GPU, value: {got.gpus}}}"
            yield f"{indent}        - {{{spec}}}"

    def files(self) -> Iterator[str]:
        yield "configs:"
        yield f"  run: {{file: ./{RUN}, name: {self.named('run')}}}"
        yield f"  revoked: {{file: ./{CERTS}/server/server/revoked, name: {self.named('revoked')}}}"
        yield ""
        yield "secrets:"
        yield f"  ca: {{file: ./{CERTS}/server/server/{CA}, name: {self.named('ca')}}}"
        for task in (self.plan.server, *self.plan.workers):
            bundle, *others = task.secrets
            for other in others:
                for file in other.files:
                    yield f"  {file}: {{file: ./{CERTS}/{other.source}/{file}, name: {self.named(file)}}}"
            for file, what in FILES.items():
                name = f"{service(task)}-{what}"
                yield f"  {name}: {{file: ./{CERTS}/{bundle.source}/{file}, name: {self.named(name)}}}"

    def named(self, what: str) -> str:
        """A name that is new with each VERSION: a swarm changes neither secrets nor configurations."""
        return f'"{self.options.name}-{what}-${{VERSION:-1}}"'


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _readme(config: RunConfig, plan: Plan, options: Options) -> str:
    digest = "" if "@sha256:" in options.image else BY_TAG
    return README.format(
        name=options.name,
        made_by=options.made_by.replace("`", ""),
        run=RUN,
        certs=CERTS,
        server=plan.places.server,
        file=FILE,
        digest=digest,
        metrics=METRICS.format(port=metrics_port(config), name=options.name) if has_token(config) else "",
    ) + needs_section(config, IMAGE)


README = """\
# The run {name} on Docker Swarm

Made by `{made_by}`.
On a manager of the swarm, in this folder:

```sh
docker node update --label-add varangian=server NODE      # once: the machine that keeps the results
varangian certs cluster {certs} {run} --hosts {server}    # keys and certificates, in a folder
docker stack deploy --compose-file {file} {name}          # start
docker service logs --follow {name}_server                # watch
```
{digest}
The results are in the volume `{name}_runs` on NODE. `docker stack rm {name}` stops the run; deployed again,
it goes on from its newest checkpoint. A worker keeps what it remembers in a volume of its machine: on
another machine its momentum begins anew.

A swarm changes no secret: after `varangian certs` has made or revoked some, or {run} was changed, deploy
with `VERSION=2 docker stack deploy ...`, then 3, and so on. `{certs}/authority` can make anybody a member:
no task sees it, and you may take it away from this machine once the stack runs.
{metrics}"""
METRICS = f"""
Metrics and the page are at `https://server:{{port}}` in the network `{{name}}_cluster`, which a service of
another stack can join, for whoever has the secret `{{name}}-{METRICS_TOKEN}-1`; with `{{name}}-ca-1` it
checks who answers.
"""
BY_TAG = """
The image is named by a tag, which may change: make these files again with `--image NAME@sha256:...`.
"""
HEAD = """\
#
# No port is published: workers and server meet in a network of the stack, which is encrypted, and over TLS.
# A worker sees the key of that worker alone, and only attackers are told what they do. The server stays on
# the node with the label varangian=server, where its results are. Workers wait for it, and go on when it is
# there again.
"""
NETWORK = """\
networks:
  cluster:
    driver: overlay
    driver_opts: {encrypted: "true"}
"""
SHARED = """\
  environment: *settings
  configs:
    - CONFIG
  networks: [cluster]
  init: true
  read_only: true
  cap_drop: [ALL]
  ulimits:
    nofile: {soft: 4096, hard: 16384}
    core: 0
  stop_grace_period: GRACE
  logging:
    driver: json-file
    options: {max-size: 10m, max-file: "3"}
"""
