"""The plan of a deployment: the tasks that carry a run out, as plain data that belongs to no engine.

n  workers, of which the last ones may be Byzantine, as in `RunConfig`
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from varangian.config import RunConfig
from varangian.config.overrides import PREFIX
from varangian.config.settings import groups
from varangian.config.yaml_text import dump, dump_line
from varangian.protos.identity.bundle import CA, CERTIFICATE, KEY, METRICS_TOKEN
from varangian.registry import join

TaskRole: TypeAlias = Literal["certs", "server", "worker", "byzantine"]
"""`certs` makes credentials and ends; `server` ends when the run does; workers end after it."""

RUN = "run.yaml"
"""The file of a plan that has the settings of the run."""
PORT, DATA_PORT, METRICS_PORT = 50051, 50052, 9464
"""Ports of the server where the settings take any free one: other machines must be told a number."""
SHUTDOWN = 15
"""Seconds that a server needs, beside `server.stop_grace`, to write everything and end."""
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a task finds its files and its server; by default the paths of the image."""

    config: str = f"/etc/varangian/{RUN}"
    certs: str = "/certs"
    """The folder that a task's own credentials are mounted below."""
    runs: str = "/runs"
    """The folder of run folders, of the server alone; it must outlive the task."""
    rows: str | None = "/rows"
    """The folder of the server for files in which vectors lie, where the settings want some; None leaves it
    where they have it."""
    state: str = "/state"
    """The folder in which a worker keeps what it needs to go on; it should outlive the task."""
    heartbeat: str = "/tmp/serving"
    """The file that a server touches every second while it answers."""
    worker_heartbeat: str | None = None
    """The same of a worker; None has none."""
    bind: str = "0.0.0.0"
    server: str = "server"
    """The host name that workers reach the server under, which its certificate has, too."""
    metrics_token: str = f"/certs/server/{METRICS_TOKEN}"
    """The file of the server with the token that opens the metrics port."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a task may take at most, and is given."""

    cpus: float = 1.0
    memory: int = GIB
    """Bytes."""
    gpus: int = 0
    rows: int = 0
    """Bytes of the volume of a server for files of vectors; 0: nobody has said."""


IN_THE_IMAGE = Places()
WORKER, SERVER = Resources(), Resources(memory=2 * GIB)


@dataclass(frozen=True)
class Port:
    """A port that a task listens on."""

    name: Literal["grpc", "data", "enrol", "metrics"]
    number: int


@dataclass(frozen=True)
class Credentials:
    """Files that a task alone may read."""

    source: str
    """The folder that has them, inside the folder that `varangian certs cluster` fills."""
    target: str
    """The folder in which the task looks for them."""
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One program of a run."""

    role: TaskRole
    index: int
    """Its place among the tasks of its role, from 0."""
    name: str
    """Unique in its plan: the name of the worker, or the role."""
    argv: tuple[str, ...]
    """The program and its arguments, without `identity`."""
    identity: tuple[str, ...] = ()
    """The arguments that tell it from the others of its role. An engine that starts several copies of one
    command has others in their place: `--claim honest`, or `--claim honest --index 3`."""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    files: tuple[str, ...] = ()
    """Names of files of the plan that it reads."""
    secrets: tuple[Credentials, ...] = ()
    resources: Resources = Resources()
    ports: tuple[Port, ...] = ()

    @property
    def command(self) -> tuple[str, ...]:
        """All of the command."""
        return (*self.argv, *self.identity)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The tasks of one run."""

    tasks: tuple[Task, ...]
    """The authority's, the server, then workers by name."""
    files: Mapping[str, str]
    """Texts by name."""
    places: Places
    stop_grace: int
    """Seconds from the signal to end until the server has written everything."""
    rows: tuple[str, ...] = ()
    """The settings that want files for vectors: the server needs a place for them."""

    def of(self, role: TaskRole) -> tuple[Task, ...]:
        """The tasks of a role, by index."""
        return tuple(task for task in self.tasks if task.role == role)

    @property
    def server(self) -> Task:
        return self.of("server")[0]

    @property
    def certs(self) -> Task:
        return self.of("certs")[0]

    @property
    def workers(self) -> tuple[Task, ...]:
        """Honest and Byzantine ones, by name."""
        return (*self.of("worker"), *self.of("byzantine"))


BUNDLE = (CA, CERTIFICATE, KEY)
"""The files of a worker's bundle."""
SERVER_BUNDLE = (*BUNDLE, "revoked")


def make_plan(
    config: RunConfig,
    *,
    places: Places = IN_THE_IMAGE,
    worker: Resources = WORKER,
    server: Resources = SERVER,
) -> Plan:
    """The tasks of a run.

    Args:
        config: of the run.
        places: where tasks find what they need.
        worker: what each worker is given.
        server: what the server is given.
    """
    port, rows = config.server.port or PORT, rows_settings(config)
    common = {
        "VARANGIAN_CERTS": places.certs,
        f"{PREFIX}SERVER__DATA_PORT": _setting(data_port(config)),
        f"{PREFIX}WORKER__STATE": places.state,
    }
    beat = [] if places.worker_heartbeat is None else [f"worker.heartbeat={places.worker_heartbeat}"]
    attack = {} if config.byzantine.attack is None else {f"{PREFIX}BYZANTINE__ATTACK": attack_text(config)}
    token = list[Credentials]()
    if has_token(config):
        token.append(Credentials("server", places.metrics_token.rpartition("/")[0], (METRICS_TOKEN,)))
    certs = Task(
        role="certs",
        index=0,
        name="certs",
        argv=("varangian", "certs", "cluster", places.certs, places.config, "--hosts", places.server),
        environment=common,
        files=(RUN,),
    )
    serving = Task(
        role="server",
        index=0,
        name="server",
        argv=(
            *("varangian", "server", places.config, "--resume", "--bind", f"{places.bind}:{port}"),
            *("--output", places.runs, f"server.heartbeat={places.heartbeat}"),
            *(() if config.server.metrics_port is None else _metrics(config, places)),
            *(f"{path}={places.rows}" for path in rows if places.rows is not None),
        ),
        environment=common,
        files=(RUN,),
        secrets=(Credentials("server/server", f"{places.certs}/server", SERVER_BUNDLE), *token),
        resources=server,
        ports=_ports(config, port),
    )

    def working(role: Literal["worker", "byzantine"], folder: str, names: Sequence[str]) -> list[Task]:
        return [
            Task(
                role=role,
                index=index,
                name=name,
                argv=("varangian", "worker", places.config, "--server", f"{places.server}:{port}", *beat),
                identity=("--name", name),
                environment=common | (attack if role == "byzantine" else {}),
                files=(RUN,),
                secrets=(Credentials(f"{folder}/{name}", f"{places.certs}/{name}", BUNDLE),),
                resources=worker,
            )
            for index, name in enumerate(names)
        ]

    return Plan(
        tasks=(
            certs,
            serving,
            *working("worker", "honest", config.honest_names),
            *working("byzantine", "byzantine", config.byzantine_names),
        ),
        files={RUN: run_file(config, () if places.rows is None else rows)},
        places=places,
        rows=(*rows,),
        stop_grace=math.ceil(config.server.stop_grace) + SHUTDOWN,
    )


def rows_settings(config: RunConfig) -> dict[str, str]:
    """The settings that want files for vectors at the server, with the folders that they name."""
    ((name, participation),) = config.resolved()["participation"].items()
    found = {
        "server.rows_folder": config.server.rows_folder,
        f"participation.{name}.folder": participation.get("folder"),
    }
    return {path: folder for path, folder in found.items() if folder is not None}


def needs(config: RunConfig) -> tuple[str, ...]:
    """What tasks have to find where they run, each with the setting that names it."""
    found = list[str]()
    for path, text in _texts(changes(config), ""):
        if OWN_CODE.fullmatch(text):
            found.append(f"the module {text.partition(':')[0]} ({path})")
        elif path.rpartition(".")[2] == "path":
            found.append(f"the files at {text} ({path})")
    for place, tracker in enumerate(config.trackers or ()):
        if package := getattr(tracker, "package", ""):
            found.append(f"the package {package} (trackers.{place})")
    return (*dict.fromkeys(found),)


OWN_CODE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""What stands for a class or a function of the user."""


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """All texts in settings with their paths: values, and names that have settings of their own."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield path, str(name)
            yield from _texts(inner, join(path, str(name)))
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _texts(inner, join(path, str(place)))
    elif isinstance(value, str):
        yield path, value


def data_port(config: RunConfig) -> int | None:
    """The port of the data channel: a number, where the settings take any free port; None without one."""
    return DATA_PORT if config.server.data_port == 0 else config.server.data_port


def metrics_port(config: RunConfig) -> int | None:
    """The same of metrics."""
    return METRICS_PORT if config.server.metrics_port == 0 else config.server.metrics_port


def has_token(config: RunConfig) -> bool:
    """Whether the server is given the token of the metrics port that `varangian certs cluster` makes."""
    return config.server.metrics_port is not None and config.server.metrics_token is None


def _metrics(config: RunConfig, places: Places) -> Iterator[str]:
    """The server of a task shows metrics beyond its machine, to whoever proves that it may look."""
    yield f"server.metrics_port={metrics_port(config)}"
    yield f"server.metrics_host={places.bind}"
    if has_token(config):
        yield f"server.metrics_token={places.metrics_token}"


def _ports(config: RunConfig, port: int) -> tuple[Port, ...]:
    server = config.server
    found: list[tuple[Literal["grpc", "data", "enrol", "metrics"], int | None]] = [
        ("grpc", port),
        ("data", data_port(config)),
        ("enrol", server.enrol_port),
        ("metrics", metrics_port(config)),
    ]
    return tuple(Port(name, number) for name, number in found if number)


def attack_text(config: RunConfig) -> str:
    """The attack as the value of a setting."""
    return dump_line(config.resolved()["byzantine"]["attack"])


def run_file(config: RunConfig, elsewhere: Iterable[str] = ()) -> str:
    """The settings of a run that are not at their defaults, as YAML.

    Without what the tasks are told by other means: where the run takes place, and, which only attackers are
    told, the attack; and without the settings at the paths `elsewhere`.
    """
    changed = changes(config)
    names = changed.pop("names", None)
    if names is not None:
        changed["workers"] = names
    for path in (*ELSEWHERE, *elsewhere):
        _remove(changed, path.split("."))
    return dump(changed) if changed else "{}\n"


ELSEWHERE = (
    *("backend", "output", "simulate", "byzantine.attack"),
    *("server.host", "server.port", "server.data_port", "server.heartbeat", "server.tls"),
    *("worker.state", "worker.heartbeat"),
)
"""Settings that are no part of the file."""


def changes(config: RunConfig) -> dict[str, Any]:
    """The settings that are not at their defaults, as a tree that loads equal."""
    return _changes(config.resolved(), RunConfig().resolved(), "")


def _changes(values: Mapping[str, Any], usual: Mapping[str, Any], path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        at, default = join(path, name), usual.get(name)
        if value == default:
            continue
        if isinstance(value, dict) and isinstance(default, dict) and at not in groups():
            found[name] = _changes(value, default, at)
        else:
            found[name] = value
    return found


def _remove(settings: dict[str, Any], path: Sequence[str]) -> None:
    """Take out what is at a path, and the sections that are empty without it."""
    name, *rest = path
    if name not in settings:
        return
    if rest and isinstance(settings[name], dict):
        _remove(settings[name], rest)
    if not rest or not settings[name]:
        del settings[name]


def _setting(value: int | None) -> str:
    return "null" if value is None else str(value)
