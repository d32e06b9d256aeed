"""What no validator of compose files looks at: replicas, health, hardening, and our own command line."""

import pathlib
import re
import shlex

import pytest

from varangian.cli.parser import parse
from varangian.config import load
from varangian.server.roster import SECRET_BYTES

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ("server", "worker", "byzantine")
REPLICATED = ("worker", "byzantine")


def documented():
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))


def command(compose, name, **environment):
    """What our command line makes of the command of a service."""
    return parse(shlex.split(compose.filled(compose.services[name]["command"], **environment)))


def test_these_are_the_services(compose):
    replicated = [
        name for name, service in compose.services.items() if "replicas" in service.get("deploy", {})
    ]
    assert tuple(compose.services) == NAMES
    assert tuple(replicated) == REPLICATED


@pytest.mark.parametrize("name", REPLICATED)
def test_who_waits_for_health_waits_for_something(compose, name):
    (other, condition), *others = compose.services[name]["depends_on"].items()
    assert not others
    assert condition == {"condition": "service_healthy"}
    assert compose.services[other]["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", REPLICATED)
def test_a_replica_takes_nothing_that_there_is_once(compose, name):
    assert not {"ports", "container_name", "volumes", "hostname"} & compose.services[name].keys()


def test_ports_are_open_to_this_host_only(compose):
    ports = [port for service in compose.services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("name", NAMES)
def test_a_container_has_no_more_than_it_needs(compose, name):
    service = compose.services[name]
    assert service["read_only"] is True
    assert service["init"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == ["/tmp"]
    assert {"pids_limit", "mem_limit", "stop_grace_period", "logging"} <= service.keys()
    assert not {"privileged", "network_mode", "pid", "devices"} & service.keys()


def test_every_volume_is_declared(compose):
    mounts = [mount for service in compose.services.values() for mount in service.get("volumes", [])]
    assert {mount.partition(":")[0] for mount in mounts} == compose.content["volumes"].keys()


def test_every_variable_is_documented_at_its_default(compose):
    assert len(compose.variables) >= 10
    assert compose.variables == documented()


def test_the_seats_are_as_many_as_the_containers():
    values = documented()
    assert int(values["TOTAL"]) == int(values["WORKERS"]) + int(values["BYZANTINE"])


def test_only_the_attackers_are_told_the_attack(compose):
    attack = "VARANGIAN__BYZANTINE__ATTACK"
    assert [name for name in NAMES if attack in compose.settings(name)] == ["byzantine"]
    assert compose.services["byzantine"]["profiles"] == ["attack"]


CHANGES = [
    {},
    {"AGGREGATOR": "mean", "ATTACK": "uniform"},
    {"AGGREGATOR": "{mix: [nnm], rule: {krum: {select: 3}}}", "ATTACK": "{alie: {z: 1.5}}"},
    {"SETTINGS": "model=cnn optimizer.lr=0.1", "TOTAL": "8", "BYZANTINE": "0", "F": "1"},
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("environment", CHANGES, ids=lambda change: ",".join(change) or "defaults")
def test_the_command_is_understood(compose, name, environment):
    args = command(compose, name, **environment)
    config = load(args.config, args.settings, compose.settings(name, **environment), whole=False)
    assert config.workers == int(environment.get("TOTAL", 10))
    assert config.rounds == 100


def test_all_containers_have_one_configuration(compose):
    server, worker, byzantine = map(compose.settings, NAMES)
    assert server == worker
    assert byzantine.items() - worker.items() == {("VARANGIAN__BYZANTINE__ATTACK", "sign_flip")}


def test_everybody_finds_the_server(compose):
    server = compose.services["server"]
    port = command(compose, "server").bind.rpartition(":")[2]
    health = parse(server["healthcheck"]["test"][2:])
    assert (health.command, health.server) == ("health", f"127.0.0.1:{port}")
    assert [mapping.rpartition(":")[2] for mapping in server["ports"]] == [port]
    assert {command(compose, name).server for name in REPLICATED} == {f"server:{port}"}


def test_the_secret_is_long_enough(compose):
    assert len(compose.settings("server")["VARANGIAN_SECRET"].encode()) >= SECRET_BYTES


def instructions():
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    return [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]


def test_the_classic_builder_understands_the_image():
    assert not re.search(r"^# *(syntax|escape) *=", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    words = " ".join(word for line in instructions() for word in line).split()
    assert not [word for word in words if re.match(r"--(mount|chmod|link|parents)\b|<<", word)]


def test_the_image_runs_as_nobody_in_particular():
    found = dict(instructions())
    assert found["USER"] == "10001:10001"
    assert found["ENTRYPOINT"] == '["varangian"]'


def test_the_image_is_built_from_everything():
    """A copy of src/ alone would build and lack what its links point to."""
    assert ["COPY", ". ."] in instructions()
    ignored = set((ROOT / ".dockerignore").read_text().split())
    assert not ignored & {
        "src",
        "server",
        "worker",
        "aggregators",
        "protos",
        "wheelhouse",
        "README.md",
        "LICENSE",
    }
