"""Compose files where no validator looks: replicas, health, hardening, and our own command line."""

import os
import pathlib
import re
import shlex
import subprocess
import time

import pytest
import yaml

from varangian.cli.arguments.main import parse
from varangian.cli.commands.provision import provide
from varangian.cli.credentials import read_choice
from varangian.cli.main import CommandError, main
from varangian.config import load
from varangian.protos.identity.bundle import Bundle, Role
from varangian.registry import ConfigError

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ("certs", "server", "worker", "byzantine", "worker-gpu")
OBSERVING = ("prometheus", "grafana")
TRAINING = ("server", "worker", "byzantine", "worker-gpu")
REPLICATED = ("worker", "byzantine", "worker-gpu")
STATES = {
    "worker": "honest-states:/state",
    "byzantine": "byzantine-states:/state",
    "worker-gpu": "honest-states:/state",
}


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
    assert tuple(compose.services) == (*NAMES, *OBSERVING)
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
    written = {mount for mount in compose.services[name]["volumes"] if not mount.endswith(":ro")}
    assert written == {STATES[name]}, "which has a folder for each worker"


def mounts(compose, name, **environment):
    """Volumes to the places where a service sees them."""
    written = [compose.filled(mount, **environment) for mount in compose.services[name].get("volumes", [])]
    return dict(mount.removesuffix(":ro").split(":") for mount in written)


def test_nobody_sees_the_keys_of_others(compose):
    """A container that attacks could otherwise be any honest worker, or the server, or make new workers."""
    seen = {name: {*mounts(compose, name)} for name in TRAINING}
    assert seen == {
        "server": {"server-certs", "runs"},
        "worker": {"honest-certs", "honest-states"},
        "byzantine": {"byzantine-certs", "byzantine-states"},
        "worker-gpu": {"honest-certs", "honest-states"},
    }
    keys = {volume for volume in set().union(*seen.values()) if volume.endswith("certs")}
    assert set(mounts(compose, "certs")) == {"authority", "monitor-certs"} | keys
    assert {name for name in mounts(compose, "prometheus") if "certs" in name} == {"monitor-certs"}
    assert not [name for name in mounts(compose, "grafana") if "certs" in name]


def test_what_crashes_goes_on(compose, apart):
    """The server with its newest run, workers with what they remember, which lies where they may write."""
    assert command(compose, "server").resume == ""
    assert compose.filled(compose.services["server"]["restart"]) == documented()["RESTART"]
    for name in REPLICATED:
        settings = load(None, [], compose.settings(name), whole=False)
        assert STATES[name].endswith(f":{settings.worker.state}")
        assert compose.services[name]["restart"] == compose.services["server"]["restart"]
    private = re.search(r"--mode=700 (.*?) \$", " ".join(line[1] for line in instructions()))
    assert settings.worker.state in private[1].split()


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
    assert (read_choice(args).certs is not None) is tls
    assert read_choice(args).insecure is not tls


def provision(compose, **environment):
    """The command of the service that makes certificates and tokens."""
    words = compose.services["certs"]["command"]
    assert isinstance(words, list)
    return parse([compose.filled(word, **environment) for word in words])


HARMFUL = "x; touch harm $(touch harm) `touch harm` --force --apart"


def test_no_setting_reaches_a_shell_or_the_words_of_a_command(compose, apart):
    """What a user sets is the value of one variable, or one argument of the command."""
    for file in (compose, apart):
        for service in file.services.values():
            assert not {"sh", "-c", "bash"} & set(service.get("entrypoint", []))
            assert isinstance(service.get("command", []), list) or "$" not in service["command"]
    assert provision(compose, TLS_HOSTS=HARMFUL).hosts == HARMFUL
    assert provision(compose, SETTINGS=HARMFUL) == provision(compose)
    for name in NAMES:
        assert compose.settings(name, SETTINGS=HARMFUL)["VARANGIAN_SETTINGS"] == HARMFUL


def test_what_is_harmful_in_settings_or_hosts_is_refused(compose, tmp_path):
    settings = compose.settings("certs", SETTINGS=HARMFUL)
    with pytest.raises(ConfigError, match="VARANGIAN_SETTINGS: should be key=value"):
        load(None, [], settings, whole=False)
    args = provision(compose, TLS_HOSTS=HARMFUL)
    args.dir = str(tmp_path / "certs")
    with pytest.raises(CommandError, match="--hosts should be a host name or an IP address"):
        provide(args)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def provided(compose, tmp_path, monkeypatch):
    """Run the service `certs` with other values of its variables; the folder that it fills."""
    pytest.importorskip("cryptography")

    def run(file=compose, **environment):
        for name, value in compose.settings("certs", **environment).items():
            monkeypatch.setenv(name, value)
        args = provision(file, **environment)
        args.dir = args.dir.replace("/certs", str(tmp_path))
        provide(args)
        return tmp_path

    return run


SMALL = {"TOTAL": "4", "BYZANTINE": "1", "F": "1", "SETTINGS": "aggregator=median"}
SMALL["TLS_HOSTS"] = "server, a.b"


def test_certificates_are_made_where_the_volumes_are(compose, provided):
    folder = provided(**SMALL)
    volumes = {
        name: place.replace("/certs", str(folder)) for name, place in mounts(compose, "certs").items()
    }
    found = {name: sorted(os.listdir(place)) for name, place in volumes.items()}
    assert found == {
        "authority": ["cert.pem", "issued", "key.pem", "revoked"],
        "server-certs": ["metrics-token", "secret", "server"],
        "honest-certs": ["tokens", "w00", "w01", "w02"],
        "byzantine-certs": ["tokens", "w03"],
        "monitor-certs": ["ca.pem", "metrics-token"],
    }
    assert {"server", "a.b"} <= set(Bundle.load(folder / "server" / "server", Role.SERVER).hosts)


def test_what_is_good_is_kept_at_the_next_start(provided, capsys):
    provided(**SMALL)
    capsys.readouterr()
    provided(**SMALL)
    assert "made" not in "".join(capsys.readouterr())


def test_who_was_revoked_gets_no_certificate_at_the_next_start(provided, capsys):
    folder = provided(**SMALL)
    assert main(["certs", "revoke", str(folder), "w01"]) == 0
    listed = (folder / "server" / "server" / "revoked").read_text()
    before = (folder / "honest" / "w01" / "cert.pem").read_bytes()
    capsys.readouterr()
    provided(**SMALL)
    assert "w01, which is revoked. To take w01 in again: varangian certs issue" in capsys.readouterr().out
    assert (folder / "honest" / "w01" / "cert.pem").read_bytes() == before
    assert "w01" in listed
    assert (folder / "server" / "server" / "revoked").read_text() == listed


def test_apart_each_honest_worker_has_a_volume_of_its_own(compose, apart, provided):
    honest = [name for name in apart.services if name not in NAMES]
    places = mounts(apart, "certs")
    assert [places[f"{name}-certs"] for name in honest] == [f"/certs/apart/{name}" for name in honest]
    assert len(honest) == int(documented()["WORKERS"])
    assert apart.services["worker"]["deploy"]["replicas"] == 0
    usual = compose.services["worker"]
    for name in honest:
        service = apart.services[name]
        assert mounts(apart, name) == {f"{name}-certs": "/certs", f"{name}-states": "/state"}
        own = service | {"volumes": usual["volumes"], "deploy": usual["deploy"]}
        assert own == {key: value for key, value in usual.items() if key != "build"}
    folder = provided(apart, **SMALL)
    assert sorted(os.listdir(folder / "apart")) == ["w00", "w01", "w02"]
    assert sorted(os.listdir(folder / "apart" / "w01")) == ["tokens", "w01"]
    assert (folder / "apart" / "w01" / "tokens").read_text().startswith("w01:")
    assert not (folder / "honest").exists()


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
    assert {"pids_limit", "mem_limit", "cpus", "stop_grace_period", "logging"} <= service.keys()
    assert service["ulimits"]["core"] == 0
    assert 1024 < service["ulimits"]["nofile"]["soft"] <= service["ulimits"]["nofile"]["hard"]
    assert not {"privileged", "pid", "devices"} & service.keys()
    assert service.get("network_mode", "none") == "none"


@pytest.mark.parametrize("name", OBSERVING)
def test_what_observes_has_no_more_than_it_needs(compose, name):
    service = compose.services[name]
    assert service["profiles"] == ["observe"]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"pids_limit", "mem_limit", "cpus", "logging"} <= service.keys()
    for mount in service["volumes"]:
        if mount.startswith("./"):
            assert mount.endswith(":ro")
            assert (ROOT / compose.filled(mount).partition(":")[0]).exists()


@pytest.mark.parametrize("insecure", ["0", "1"])
def test_prometheus_asks_the_server_with_its_token(compose, insecure):
    settings = compose.settings("server", VARANGIAN_INSECURE=insecure)
    seen = mounts(compose, "prometheus", VARANGIAN_INSECURE=insecure)
    (path,) = [path for path, place in seen.items() if place == "/etc/prometheus/prometheus.yml"]
    (job,) = yaml.safe_load((ROOT / path).read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"server:{settings['VARANGIAN__SERVER__METRICS_PORT']}"]}]
    tls = {"scheme": "https", "tls_config": {"ca_file": "/certs/ca.pem", "server_name": "server"}}
    assert {name: job[name] for name in tls if name in job} == (tls if insecure == "0" else {})
    assert job["authorization"] == {"credentials_file": "/certs/metrics-token"}
    assert mounts(compose, "prometheus")["monitor-certs"] == "/certs"


def test_every_volume_is_declared(compose):
    mounts = [mount for service in compose.services.values() for mount in service.get("volumes", [])]
    named = {mount.partition(":")[0] for mount in mounts if not mount.startswith("./")}
    assert named == compose.content["volumes"].keys()


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
    certs, server, worker, byzantine, gpu = map(compose.settings, NAMES)
    assert certs == worker
    assert server.items() - worker.items() == {
        ("VARANGIAN_SECRET_FILE", "/certs/secret"),
        ("VARANGIAN__SERVER__METRICS_PORT", "9464"),
        ("VARANGIAN__SERVER__METRICS_HOST", "0.0.0.0"),
        ("VARANGIAN__SERVER__METRICS_TOKEN", "/certs/metrics-token"),
    }
    assert byzantine.items() - worker.items() == {("VARANGIAN__BYZANTINE__ATTACK", "sign_flip")}
    assert gpu.items() - worker.items() == {("VARANGIAN__WORKER__DEVICE", "cuda")}


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


def test_the_secret_of_tokens_is_drawn_and_only_the_server_has_it(compose, provided):
    folder = provided(**SMALL)
    assert len((folder / "server" / "secret").read_text()) > 32
    assert [file.name for file in folder.rglob("secret")] == ["secret"]
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


def test_the_base_image_is_pinned_by_digest(compose):
    """The same one everywhere, and written once more where Dependabot reads it."""
    (pinned,) = [line[1].partition("=")[2] for line in instructions() if line[1].startswith("BASE_IMAGE=")]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}", pinned)
    (renewed,) = re.findall(r"^FROM (.*)$", (ROOT / ".ci/base/Dockerfile").read_text(), re.MULTILINE)
    assert {compose.variables["BASE_IMAGE"], documented()["BASE_IMAGE"], renewed} == {pinned}
    bases = {line[1].split()[0] for line in instructions() if line[0] == "FROM"}
    assert bases == {"${BASE_IMAGE}", "dependencies"}


def test_the_image_installs_only_what_has_a_hash():
    commands = [part for line in instructions() for part in line[1].split("&&")]
    calls = [shlex.split(part) for part in commands if " -m pip " in part and "pip uninstall" not in part]
    online = [words for words in calls if "--no-index" not in words]
    assert len(calls) == 3
    assert len(online) == 1
    assert {"--require-hashes", "--only-binary", "-r"} <= set(online[0])
    assert "--no-deps" not in online[0]


def test_the_image_holds_no_installer_and_no_setuid_program():
    commands = [part.strip() for line in instructions() for part in line[1].split("&&")]
    last = max(number for number, line in enumerate(instructions()) if line[0] == "FROM")
    assert [line for line in instructions()[last:] if "pip install" in line[1]] == []
    assert any("pip uninstall" in part for part in commands)
    assert "find / -xdev -type f -perm /6000 -exec chmod ug-s {} +" in commands


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
