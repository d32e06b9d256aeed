"""What no validator of compose files looks at: replicas, health, hardening, and our own command line."""

import pathlib
import re
import shlex

import pytest
import yaml

from varangian.cli.parser import parse
from varangian.config import load

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
SERVICES = yaml.safe_load(TEXT)["services"]
REFERENCE = re.compile(r"\$\{(\w+):?-?([^}]*)\}")
REPLICATED = [name for name, service in SERVICES.items() if "replicas" in service.get("deploy", {})]


def filled(value, **environment):
    """A value of the file with its variables replaced as compose does."""
    return REFERENCE.sub(lambda found: environment.get(found[1]) or found[2], str(value))


def documented():
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))


@pytest.mark.parametrize("name", SERVICES)
def test_who_waits_for_health_waits_for_something(name):
    for other, condition in SERVICES[name].get("depends_on", {}).items():
        assert condition == {"condition": "service_healthy"}
        assert SERVICES[other]["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", REPLICATED)
def test_a_replica_takes_nothing_that_there_is_once(name):
    assert not {"ports", "container_name", "volumes", "hostname"} & SERVICES[name].keys()


def test_ports_are_open_to_this_host_only():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_no_more_than_it_needs(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["init"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == ["/tmp"]
    assert {"pids_limit", "mem_limit", "stop_grace_period", "logging"} <= service.keys()
    assert not {"privileged", "network_mode", "pid", "devices"} & service.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_every_volume_is_declared(name):
    declared = yaml.safe_load(TEXT)["volumes"]
    assert {mount.partition(":")[0] for mount in SERVICES[name].get("volumes", [])} <= declared.keys()


def test_every_variable_is_documented_at_its_default():
    used = dict(REFERENCE.findall(TEXT))
    assert len(used) >= 10
    assert used == documented()


def test_the_seats_are_as_many_as_the_containers():
    values = documented()
    assert int(values["TOTAL"]) == int(values["WORKERS"]) + int(values["BYZANTINE"])


def test_only_the_attackers_are_told_the_attack():
    attack = "VARANGIAN__BYZANTINE__ATTACK"
    assert [name for name, service in SERVICES.items() if attack in service["environment"]] == ["byzantine"]
    assert SERVICES["byzantine"]["profiles"] == ["attack"]


def settings(name, **environment):
    return {key: filled(value, **environment) for key, value in SERVICES[name]["environment"].items()}


CHANGES = [
    {},
    {"AGGREGATOR": "mean", "ATTACK": "uniform"},
    {"AGGREGATOR": "{mix: [nnm], rule: {krum: {select: 3}}}", "ATTACK": "{alie: {z: 1.5}}"},
    {"SETTINGS": "model=cnn optimizer.lr=0.1", "TOTAL": "8", "BYZANTINE": "0", "F": "1"},
]


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("environment", CHANGES, ids=lambda change: ",".join(change) or "defaults")
def test_the_command_is_understood(name, environment):
    args = parse(shlex.split(filled(SERVICES[name]["command"], **environment)))
    config = load(args.config, args.settings, settings(name, **environment), whole=False)
    assert config.workers == int(environment.get("TOTAL", 10))
    assert config.rounds == 100


@pytest.mark.parametrize("environment", CHANGES, ids=lambda change: ",".join(change) or "defaults")
def test_all_containers_have_one_configuration(environment):
    names = ("server", "worker")
    assert settings("server", **environment) == settings("worker", **environment)
    configs = [load(None, [], settings(name, **environment), whole=False) for name in names]
    assert configs[0] == configs[1]


def test_the_health_check_asks_the_server_on_its_own_port():
    bind = parse(shlex.split(filled(SERVICES["server"]["command"]))).bind
    health = parse(SERVICES["server"]["healthcheck"]["test"][2:])
    assert health.command == "health"
    assert health.server == f"127.0.0.1:{bind.rpartition(':')[2]}"
    assert all(port.endswith(f":{bind.rpartition(':')[2]}") for port in SERVICES["server"]["ports"])


def test_workers_look_for_the_server_where_it_is():
    for name in REPLICATED:
        address = parse(shlex.split(filled(SERVICES[name]["command"]))).server
        assert address.partition(":")[0] in SERVICES


def test_the_secret_is_long_enough():
    from varangian.server.roster import SECRET_BYTES

    assert len(settings("server")["VARANGIAN_SECRET"].encode()) >= SECRET_BYTES


def instructions():
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    return [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]


def test_the_classic_builder_understands_the_image():
    text = (ROOT / "Dockerfile").read_text()
    assert not re.search(r"^# *syntax *=|--mount|--chmod|--link|<<", text, re.MULTILINE)


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
