"""Compose: a run on one machine with a container engine, for Compose v2 and 1.29 alike.

The compose file at the root of the repository is made here, too: with `--variables`, where settings of the
run are variables with a default, so that one file serves for many runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from varangian.config import RunConfig
from varangian.config.overrides import PREFIX
from varangian.config.yaml_text import dump_line
from varangian.deploy.emitter import IMAGE, File, Options, comment, needs_section
from varangian.deploy.plan import (
    GIB,
    METRICS_PORT,
    RUN,
    Places,
    Plan,
    Resources,
    Task,
    attack_text,
    changes,
    data_port,
    metrics_port,
)
from varangian.protos.identity.bundle import METRICS_TOKEN
from varangian.registry import ConfigError, Problem

FILE = "docker-compose.yml"
PLACES = Places(worker_heartbeat="/tmp/working", metrics_token=f"/certs/{METRICS_TOKEN}")
VARIABLE = {"aggregator", "workers", "f", "byzantine", "rounds", "seed", "backend", "output"}
"""Sections whose values are variables with `--variables`, or have no meaning in containers."""
VARIABLE_OF_SERVER = {"deadline", "data_port", "host", "port", "heartbeat", "tls"}
BASE_IMAGE = (
    "python:3.11.17-slim-trixie@sha256:45037981b62b34b44602584fccbc4d884d5f7dc92c7ee86bb38a698a79fe1e51"
)
"""What the image is built on: that of the Dockerfile."""
DEVICES = "devices: [{driver: nvidia, count: all, capabilities: [gpu]}]"


def render(config: RunConfig, options: Options) -> Sequence[File]:
    """The files of a deployment with Compose.

    Raises:
        ConfigError: with `--variables` a setting has a value that the default of a variable cannot have.
    """
    plan = options.plan(config, PLACES)
    if options.variables:
        check_variables(config)
    text = "\n".join(_Compose(config, plan, options).lines()) + "\n"
    files = [File(FILE, text), File("README.md", _readme(config, options))]
    return files if options.variables else [*files, File(RUN, _run_file(plan, options))]


def check_variables(config: RunConfig) -> None:
    """Only settings that are variables may be set, and these to what the default of a variable can be.

    Raises:
        ConfigError: others are.
    """
    changed = changes(config)
    server, byzantine = changed.pop("server", {}), changed.pop("byzantine", {})
    others = [name for name in changed if name not in VARIABLE]
    others += [f"server.{name}" for name in server if name not in VARIABLE_OF_SERVER]
    others += [f"byzantine.{name}" for name in byzantine if name not in ("count", "attack")]
    rule = "is no variable of the compose file. Leave --variables out: then settings are in a file"
    problems = [Problem(path, rule) for path in others]
    if config.names is not None:
        problems.append(Problem("workers", "should be a number with --variables", list(config.names)))
    for path, value in (("aggregator", _aggregator(config)), ("byzantine.attack", _attack(config))):
        if "}" in value or "$" in value:
            problems.append(
                Problem(path, "should be a name alone with --variables: it is a default", value)
            )
    if problems:
        raise ConfigError(problems)


def _aggregator(config: RunConfig) -> str:
    """The aggregator by its name, where it has no other settings than its name would give it."""
    from varangian.config.load import loads

    full = config.resolved()["aggregator"]
    if len(full) == 1:
        (name,) = full
        plain = {"aggregator": name, "workers": config.workers, "f": config.f}
        try:
            if loads(plain).resolved()["aggregator"] == full:
                return str(name)
        except ConfigError:
            pass
    return dump_line(full)


def _attack(config: RunConfig) -> str:
    """The attack by its name, where its settings are at their defaults."""
    if config.byzantine.attack is None:
        return "sign_flip"
    full = config.resolved()["byzantine"]["attack"]
    (name,) = full
    usual = RunConfig.model_validate({"byzantine": {"count": 1, "attack": name}})
    same = usual.resolved()["byzantine"]["attack"] == full
    return str(name) if same else dump_line(full)


def memory(resources: Resources) -> str:
    """`2g`, or `1536m`."""
    whole = resources.memory % GIB == 0
    return f"{resources.memory // GIB}g" if whole else f"{resources.memory >> 20}m"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def literal(text: str) -> str:
    """A text in which Compose replaces nothing."""
    return text.replace("$", "$$")


class _Compose:
    """One compose file, part by part."""

    def __init__(self, config: RunConfig, plan: Plan, options: Options) -> None:
        self.config, self.plan, self.options = config, plan, options
        self.variables = options.variables
        self.honest, self.byzantine = len(config.honest_names), len(config.byzantine_names)
        self.mount = [] if self.variables else [f"./{RUN}:{plan.places.config}:ro"]

    def lines(self) -> Iterator[str]:
        yield from self.head()
        yield from self.settings()
        yield from self.shared()
        yield "services:"
        yield from self.certs()
        yield from self.server()
        yield from self.workers(self.plan.of("worker")[0], "honest", self.honest)
        if self.byzantine:
            yield from self.workers(self.plan.of("byzantine")[0], "byzantine", self.byzantine)
        if self.variables:
            yield from self.workers(self.plan.of("worker")[0], "gpu", self.honest)
            yield from OBSERVE.splitlines()
            yield ""
        yield "volumes:"
        yield from (f"  {name}: {{}}" for name in self.volumes())

    # The top

    def head(self) -> Iterator[str]:
        attack = " --profile attack" if self.byzantine else ""
        many = f"{self.honest} honest and {self.byzantine} Byzantine workers"
        if self.variables:
            more = ", and, with the profile `attack`, BYZANTINE more" if self.byzantine else ""
            yield f"# A cluster on one machine: a server and WORKERS honest workers{more}."
            yield "#"
            yield f"#   AGGREGATOR={_aggregator(self.config)} docker compose{attack} up --build"
            yield f"#   AGGREGATOR=mean ATTACK=uniform docker compose{attack} up"
        else:
            yield from comment(
                f"The run {self.options.name} on one machine: a server, {many}."
            ).splitlines()
            yield "#"
            yield f"#   docker compose{attack} up"
        yield "#"
        yield from comment(f"Made by: {self.options.made_by}").splitlines()
        yield "#"
        if self.variables:
            yield "# Every variable has a default and is explained in .env.example."
        else:
            yield f"# Settings are in {RUN}; those in a variable SETTINGS, as `a=b c.d=e`, replace them."
        apart, gpu = (APART, GPU) if self.variables else ("", "")
        yield from (TOP.replace("APART", apart) + gpu).splitlines()
        yield ""

    def settings(self) -> Iterator[str]:
        if self.variables:
            yield "# One configuration for all, as key=value on the command line; SETTINGS on top of it."
        else:
            yield f"# The same for all, beside {RUN}; SETTINGS on top of it."
        yield "x-settings: &settings"
        yield "  VARANGIAN_CERTS: /certs"
        yield "  VARANGIAN_INSECURE: ${VARANGIAN_INSECURE:-0}"
        yield "  VARANGIAN_TOKEN_FILE: /certs/tokens"
        if self.variables:
            config = self.config
            yield f"  {PREFIX}AGGREGATOR: ${{AGGREGATOR:-{_aggregator(config)}}}"
            yield f"  {PREFIX}WORKERS: ${{TOTAL:-{config.workers}}}"
            yield f"  {PREFIX}F: ${{F:-{config.f}}}"
            yield f"  {PREFIX}BYZANTINE__COUNT: ${{BYZANTINE:-{self.byzantine}}}"
            yield f"  {PREFIX}ROUNDS: ${{ROUNDS:-{config.rounds}}}"
            yield f"  {PREFIX}SEED: ${{SEED:-{config.seed}}}"
            yield f"  {PREFIX}SERVER__DEADLINE: ${{DEADLINE:-{_number(config.server.deadline)}}}"
        yield f"  {PREFIX}SERVER__DATA_PORT: {self.data_port()}"
        yield f"  {PREFIX}WORKER__STATE: {self.plan.places.state}"
        yield "  VARANGIAN_SETTINGS: ${SETTINGS:-}"
        yield ""

    def data_port(self) -> str:
        port = data_port(self.config)
        return '"null"' if port is None else f"${{DATA_PORT:-{port}}}"

    def shared(self) -> Iterator[str]:
        yield "x-varangian: &varangian"
        yield f"  image: ${{IMAGE:-{self.options.image}}}"
        if self.variables:
            yield from BUILD.splitlines()
        worker = self.options.worker
        text = SHARED.replace("MEMORY_OF_A_WORKER", memory(worker)).replace(
            "CPUS_OF_A_WORKER", f"{worker.cpus:.1f}"
        )
        yield from text.replace("GRACE", f"{self.plan.stop_grace}s").splitlines()
        yield ""

    # Services

    def certs(self) -> Iterator[str]:
        words = [*self.words(self.plan.certs)]
        words[words.index("--hosts") + 1] = f"${{TLS_HOSTS:-{self.plan.places.server}}}"
        yield "  # Makes what is missing or runs out soon, and ends: `docker compose up certs` renews."
        yield "  certs:"
        yield "    <<: *varangian"
        yield f"    command: [{', '.join(_quoted(word) for word in words)}]"
        yield "    network_mode: none"
        yield "    volumes:"
        mounts = ["authority:/certs/authority", "server-certs:/certs/server", "honest-certs:/certs/honest"]
        mounts += ["byzantine-certs:/certs/byzantine"] if self.byzantine else []
        mounts += ["monitor-certs:/certs/monitor"]
        yield from (f"      - {mount}" for mount in [*mounts, *self.mount])
        yield ""

    def server(self) -> Iterator[str]:
        server = self.options.server
        mounts = ["runs:/runs", "server-certs:/certs:ro", *self.mount]
        mounts += [f"rows:{self.plan.places.rows}"] if self.plan.rows else []
        ports = [f"127.0.0.1:${{PORT:-{port.number}}}:{port.number}" for port in self.plan.server.ports[:1]]
        if data_port(self.config) is not None:
            ports.append(f"127.0.0.1:{self.data_port()}:{self.data_port()}")
        if (metrics := metrics_port(self.config)) is not None:
            ports.append(f"127.0.0.1:${{METRICS_PORT:-{metrics}}}:{metrics}")
        yield "  server:"
        yield "    <<: *varangian"
        yield f"    command: {shlex.join(self.words(self.plan.server))}"
        if data_port(self.config) is not None:
            yield "    # Workers elsewhere are told the data port, so it is the same inside and outside."
        yield "    environment:"
        yield "      <<: *settings"
        yield "      VARANGIAN_SECRET_FILE: /certs/secret"
        if self.variables:
            yield f'      {PREFIX}SERVER__METRICS_PORT: "{METRICS_PORT}"'
            yield f"      {PREFIX}SERVER__METRICS_HOST: {self.plan.places.bind}"
            yield f"      {PREFIX}SERVER__METRICS_TOKEN: {self.plan.places.metrics_token}"
        yield f"    mem_limit: ${{SERVER_MEMORY:-{memory(server)}}}"
        yield f"    cpus: ${{SERVER_CPUS:-{server.cpus:.1f}}}"
        yield f"    ports: [{', '.join(map(_quoted, ports))}]"
        yield f"    volumes: [{', '.join(map(_quoted, mounts))}]"
        yield "    restart: ${RESTART:-on-failure:5}"
        yield "    depends_on:"
        yield "      certs: {condition: service_completed_successfully}"
        yield "    # Whether the server has touched its file lately, as it does while it accepts pushes. To"
        yield "    # start a Python that asks takes seconds, and more on a machine with other things to do."
        yield from self.healthcheck(self.plan.places.heartbeat, "2s")
        yield ""

    def workers(self, task: Task, kind: str, many: int) -> Iterator[str]:
        """The service of honest workers, of Byzantine ones, or of honest ones that compute on GPUs."""
        claim = "byzantine" if kind == "byzantine" else "honest"
        variable = {"honest": "WORKERS", "byzantine": "BYZANTINE", "gpu": "GPU_WORKERS"}[kind]
        mounts = [f"{claim}-certs:/certs:ro", f"{claim}-states:/state", *self.mount]
        own: dict[str, str] = {}
        if kind == "byzantine":
            attack = f"${{ATTACK:-{_attack(self.config)}}}" if self.variables else ""
            own[f"{PREFIX}BYZANTINE__ATTACK"] = attack or _quoted(literal(attack_text(self.config)))
        if kind == "gpu":
            own[f"{PREFIX}WORKER__DEVICE"] = "cuda"
        yield f"  {'worker-gpu' if kind == 'gpu' else task.role}:"
        yield "    <<: *varangian"
        if kind != "honest":
            yield f"    profiles: [{'attack' if kind == 'byzantine' else 'gpu'}]"
        yield f"    command: {shlex.join([*self.words(task), '--claim', claim])}"
        if own:
            yield "    environment:"
            yield "      <<: *settings"
            yield from (f"      {name}: {value}" for name, value in own.items())
        yield f"    volumes: [{', '.join(map(_quoted, mounts))}]"
        yield "    restart: ${RESTART:-on-failure:5}"
        yield "    depends_on:"
        yield "      server: {condition: service_healthy}"
        yield from self.healthcheck(str(self.plan.places.worker_heartbeat), "10s")
        yield "    deploy:"
        yield f"      replicas: {f'${{{variable}:-{many}}}' if self.variables else many}"
        if kind == "gpu" or task.resources.gpus:
            yield "      resources:"
            yield "        reservations:"
            yield f"          {DEVICES}"
        yield ""

    def words(self, task: Task) -> list[str]:
        """The command of a task in a container, whose entry point is the program."""
        without = {self.plan.places.config} if self.variables else set[str]()
        return [word for word in task.argv[1:] if word not in without]

    def healthcheck(self, file: str, interval: str) -> Iterator[str]:
        yield "    healthcheck:"
        yield f"""      test: ["CMD-SHELL", 'test -n "$$(find {file} -newermt "-15 seconds")"']"""
        yield f"      interval: {interval}"
        yield "      timeout: 10s"
        yield "      retries: 5"
        yield "      start_period: 300s"

    def volumes(self) -> list[str]:
        kinds = ["honest", "byzantine"] if self.byzantine else ["honest"]
        of_workers = [f"{kind}-{what}" for kind in kinds for what in ("certs", "states")]
        observing = ["prometheus"] if self.variables else []
        rows = ["rows"] if self.plan.rows else []
        return ["runs", *rows, "authority", "server-certs", *of_workers, "monitor-certs", *observing]


def _quoted(text: str) -> str:
    """In double quotes, as YAML reads it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _run_file(plan: Plan, options: Options) -> str:
    return (
        comment("The settings of the run that are not at their defaults.", f"Made by: {options.made_by}")
        + plan.files[RUN]
    )


def _readme(config: RunConfig, options: Options) -> str:
    attack = " --profile attack" if config.byzantine.count else ""
    return README.format(
        name=options.name,
        made_by=options.made_by.replace("`", ""),
        attack=attack,
        honest=len(config.honest_names),
        workers=config.workers,
        file=FILE,
    ) + needs_section(config, IMAGE)


README = """\
# The run {name} with Compose

Made by `{made_by}`.
It needs Compose v2 or 1.29, and the image that [{file}]({file}) names.

```sh
docker compose{attack} up --detach     # start, and go on after a crash
docker compose logs --follow server     # watch
docker cp "$(docker compose ps --all --quiet server)":/runs ./runs     # the results
```

`docker compose{attack} down` stops it; with `--volumes` it also deletes results and keys.
"""

TOP = """\
# The file keeps to what Compose 1.29 and Compose v2 both understand: no `name`, no `include`, no
# `start_interval`. No variable reaches a shell or the words of a command: what a user sets is the value of
# one variable or of one argument.
#
# TLS is on: `certs` makes the certificates once, and each service below sees only the volume with its own.
# With VARANGIAN_INSECURE=1 nobody looks at them, and workers show the tokens that `certs` made beside them.
# The secret that makes tokens is drawn there once, and only the server sees it.
#
# Whatever is killed goes on: `server --resume` takes up the newest run with these settings that has rounds
# left, from its newest checkpoint in the volume `runs`, and workers find in a volume of theirs what they
# remember. The engine starts again what crashes, and `docker compose up` what was stopped by hand.
#
# The replicas of a service see the same volumes. So honest workers share one, the attackers another: who
# takes over one honest container has the keys of all of them.APART
"""

APART = """ docker-compose.apart.yml, after this file, gives
# each honest worker a volume of its own, at the price of a service for each."""

GPU = """\
#
# With WORKERS=0 and the profile `gpu`, GPU_WORKERS honest workers compute on the GPUs of this machine, by
# way of the container toolkit of NVIDIA.
"""

OBSERVE = """\
  # The profile `observe`: Prometheus at 127.0.0.1:9090 with alert rules, and Grafana at 127.0.0.1:3000 with
  # a dashboard, for everybody on this machine to look at and nobody to change. The images are of others.
  prometheus:
    image: ${PROMETHEUS_IMAGE:-prom/prometheus:v3.13.2}
    profiles: [observe]
    # The user of the image of Varangian, who may read the token, in the group of this image, who may write.
    user: "10001:65534"
    command:
      - --config.file=/etc/prometheus/prometheus.yml
      - --storage.tsdb.path=/prometheus
      - --storage.tsdb.retention.time=30d
    volumes:
      - ./examples/observe/compose/insecure-${VARANGIAN_INSECURE:-0}.yml:/etc/prometheus/prometheus.yml:ro
      - ./examples/observe/alerts.yml:/etc/prometheus/alerts.yml:ro
      - monitor-certs:/certs:ro
      - prometheus:/prometheus
    ports: ["127.0.0.1:${PROMETHEUS_PORT:-9090}:9090"]
    depends_on:
      certs: {condition: service_completed_successfully}
    healthcheck:
      test: ["CMD", "wget", "--quiet", "--spider", "http://127.0.0.1:9090/-/ready"]
      interval: 5s
      timeout: 10s
      retries: 12
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    pids_limit: 256
    mem_limit: 1g
    cpus: 1.0
    restart: ${RESTART:-on-failure:5}
    stop_grace_period: 20s
    logging:
      driver: json-file
      options: {max-size: 10m, max-file: "3"}

  grafana:
    image: ${GRAFANA_IMAGE:-grafana/grafana:12.4}
    profiles: [observe]
    environment:
      PROMETHEUS_URL: http://prometheus:9090
      GF_AUTH_ANONYMOUS_ENABLED: "true"
      GF_AUTH_ANONYMOUS_ORG_ROLE: Viewer
      GF_AUTH_DISABLE_LOGIN_FORM: "true"
      GF_AUTH_BASIC_ENABLED: "false"
      GF_ANALYTICS_REPORTING_ENABLED: "false"
      GF_ANALYTICS_CHECK_FOR_UPDATES: "false"
    volumes:
      - ./examples/observe/grafana/provisioning:/etc/grafana/provisioning:ro
      - ./examples/observe/grafana/dashboards:/etc/grafana/dashboards:ro
    ports: ["127.0.0.1:${GRAFANA_PORT:-3000}:3000"]
    depends_on:
      prometheus: {condition: service_healthy}
    read_only: true
    tmpfs: [/tmp, "/var/lib/grafana:mode=1777", "/var/log/grafana:mode=1777"]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    pids_limit: 256
    mem_limit: 512m
    cpus: 1.0
    restart: ${RESTART:-on-failure:5}
    stop_grace_period: 20s
    logging:
      driver: json-file
      options: {max-size: 10m, max-file: "3"}
"""

BUILD = f"""\
  build:
    context: .
    args:
      BASE_IMAGE: ${{BASE_IMAGE:-{BASE_IMAGE}}}
      LOCK: ${{LOCK:-requirements.lock}}
      PIP_ARGS: ${{PIP_ARGS:-}}
"""

SHARED = """\
  environment: *settings
  init: true
  read_only: true
  tmpfs: [/tmp]
  cap_drop: [ALL]
  security_opt: ["no-new-privileges:true"]
  # Every connection is a file. Threads count as processes; nproc is not set, since it would count those of
  # all containers together, and pids_limit those of one. No core files: a key could be in them.
  ulimits:
    nofile: {soft: 4096, hard: 16384}
    core: 0
  pids_limit: 256
  mem_limit: ${MEMORY:-MEMORY_OF_A_WORKER}
  cpus: ${CPUS:-CPUS_OF_A_WORKER}
  stop_grace_period: GRACE
  logging:
    driver: json-file
    options: {max-size: 10m, max-file: "3"}
"""
