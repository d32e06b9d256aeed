"""What no validator of compose files looks at: replicas, health, hardening, and our own command line."""

import os
import pathlib
import re
import shlex
import subprocess
import time

import pytest

from varangian.cli.parser import parse
from varangian.cli.security import choice
from varangian.config import load

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ("certs", "server", "worker", "byzantine")
TRAINING = ("server", "worker", "byzantine")
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
    assert compose.services[other]["healthcheck"]["test"][0] == "CMD-SHELL"


@pytest.mark.parametrize("name", REPLICATED)
def test_a_replica_takes_nothing_that_there_is_once(compose, name):
    assert not {"ports", "container_name", "hostname"} & compose.services[name].keys()
    assert all(mount.endswith(":ro") for mount in compose.services[name]["volumes"])


def mounts(compose, name):
    """Volumes to the places where a service sees them."""
    return dict(mount.removesuffix(":ro").split(":") for mount in compose.services[name].get("volumes", []))


def test_nobody_sees_the_keys_of_others(compose):
    """A container that attacks could otherwise be any honest worker, or the server, or make new workers."""
    seen = {name: {volume for volume in mounts(compose, name) if volume != "runs"} for name in TRAINING}
    assert seen == {
        "server": {"server-certs"},
        "worker": {"honest-certs"},
        "byzantine": {"byzantine-certs"},
    }
    assert set(mounts(compose, "certs")) == {"authority"}.union(*seen.values())


@pytest.mark.parametrize("name", TRAINING)
def test_certificates_are_where_they_are_looked_for(compose, name):
    (mount,) = [mount for mount in compose.services[name]["volumes"] if "certs" in mount]
    assert mount.endswith(f":{compose.settings(name)['VARANGIAN_CERTS']}:ro")


def test_the_server_starts_when_there_are_certificates(compose):
    condition = {"condition": "service_completed_successfully"}
    assert compose.services["server"]["depends_on"] == {"certs": condition}
    assert compose.services["certs"]["network_mode"] == "none"


@pytest.mark.parametrize(("value", "tls"), [({}, True), ({"VARANGIAN_INSECURE": "1"}, False)])
def test_tls_is_on_unless_it_is_turned_off(compose, monkeypatch, value, tls):
    args = command(compose, "server")
    for name, text in compose.settings("server", **value).items():
        monkeypatch.setenv(name, text)
    assert (choice(args).certs is not None) is tls
    assert choice(args).insecure is not tls


def scripted(compose, **environment):
    """The commands of the service that makes certificates."""
    (script,) = compose.services["certs"]["command"]
    lines = [shlex.split(line) for line in compose.filled(script, **environment).splitlines()]
    assert compose.services["certs"]["entrypoint"] == ["sh", "-euc"]
    assert {line[0] for line in lines} == {"varangian"}
    return [parse(line[1:]) for line in lines]


def test_certificates_are_made_where_the_volumes_are(compose):
    init, *issued = [args for args in scripted(compose) if args.command == "certs"]
    places = mounts(compose, "certs")
    assert f"{init.dir}/authority" == places["authority"]
    assert [args.into for args in issued] == [
        places[f"{name}-certs"] for name in ("server", "honest", "byzantine")
    ]
    assert issued[0].server == ["server"]
    assert [args.claim for args in issued[1:]] == ["honest", "byzantine"]
    assert all(args.keep for args in (init, *issued))


def test_the_settings_of_the_run_decide_who_gets_a_certificate(compose):
    settings = {"SETTINGS": "workers=7 f=1"}
    assert [args.names for args in scripted(compose, **settings)[2:]] == [["workers=7", "f=1"]] * 4


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
    assert not {"privileged", "pid", "devices"} & service.keys()
    assert service.get("network_mode", "none") == "none"


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


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("environment", CHANGES, ids=lambda change: ",".join(change) or "defaults")
def test_the_command_is_understood(compose, name, environment):
    args = command(compose, name, **environment)
    config = load(args.config, args.settings, compose.settings(name, **environment), whole=False)
    assert config.workers == int(environment.get("TOTAL", 10))
    assert config.rounds == 100


def test_all_containers_have_one_configuration(compose):
    certs, server, worker, byzantine = map(compose.settings, NAMES)
    assert certs == worker
    assert server.items() - worker.items() == {("VARANGIAN_SECRET_FILE", "/certs/secret")}
    assert byzantine.items() - worker.items() == {("VARANGIAN__BYZANTINE__ATTACK", "sign_flip")}


def test_health_is_the_age_of_the_file_that_the_server_touches(compose, tmp_path):
    """No program that takes seconds to start: the check is run as it stands, on a file of this machine."""
    args = command(compose, "server")
    heartbeat = load(None, args.settings, compose.settings("server"), whole=False).server.heartbeat
    kind, text = compose.services["server"]["healthcheck"]["test"]
    assert (kind, "varangian" in text, heartbeat in text) == ("CMD-SHELL", False, True)
    file = tmp_path / "serving"
    check = text.replace("$$", "$").replace(heartbeat, str(file))

    def healthy():
        return subprocess.run(["sh", "-c", check], capture_output=True).returncode == 0

    assert not healthy()
    file.touch()
    assert healthy()
    os.utime(file, (time.time() - 60,) * 2)
    assert not healthy()


def test_everybody_finds_the_server(compose):
    server = compose.services["server"]
    port = command(compose, "server").bind.rpartition(":")[2]
    data_port = compose.settings("server")["VARANGIAN__SERVER__DATA_PORT"]
    published = [compose.filled(mapping).split(":") for mapping in server["ports"]]
    assert published == [["127.0.0.1", port, port], ["127.0.0.1", data_port, data_port]]
    assert {command(compose, name).server for name in REPLICATED} == {f"server:{port}"}


def test_the_secret_of_tokens_is_drawn_and_only_the_server_has_it(compose):
    *_, honest, byzantine = scripted(compose)
    volumes = mounts(compose, "certs")
    assert {args.secret for args in (honest, byzantine)} == {f"{volumes['server-certs']}/secret"}
    for kind, args in (("honest", honest), ("byzantine", byzantine)):
        assert (args.claim, args.out) == (kind, f"{volumes[f'{kind}-certs']}/tokens")
    assert compose.settings("server")["VARANGIAN_SECRET_FILE"] == "/certs/secret"
    for name in REPLICATED:
        assert not [key for key in compose.settings(name) if "SECRET" in key]
        assert compose.settings(name)["VARANGIAN_TOKEN_FILE"] == "/certs/tokens"
    assert "change-this-secret" not in compose.text


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
