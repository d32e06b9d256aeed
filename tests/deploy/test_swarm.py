"""`varangian deploy swarm`."""

import shutil
import subprocess

import pytest
import yaml

from varangian.cli.arguments.main import parse
from varangian.cli.main import main
from varangian.config import load

RUN = """\
workers: [carol, alice, server, Dave, erin]
f: 1
byzantine: {count: 1, attack: {gaussian: {sigma: 50.0}}}
rounds: 3
aggregator: {trimmed_mean: {}}
"""
IMAGE = "registry.example/varangian@sha256:" + "0" * 64


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "small.yaml").write_text(RUN)
    words = ["deploy", "swarm", str(tmp_path / "small.yaml"), "--image", IMAGE, "-o", str(tmp_path / "out")]
    assert main(words) == 0
    return tmp_path / "out"


@pytest.fixture
def stack(folder):
    return yaml.safe_load((folder / "stack.yaml").read_text())


SERVICES = {
    "server": "server",
    "worker-0": "Dave",
    "alice": "alice",
    "carol": "carol",
    "erin": "erin",
    "byzantine-0": "server",
}
"""Of each service the name of its certificate: not every name of a worker can be that of a service."""


def test_each_task_is_a_service_with_its_own_secrets(stack):
    assert stack["services"].keys() == SERVICES.keys()
    for name, service in stack["services"].items():
        found = {secret["source"]: secret["target"] for secret in service["secrets"]}
        place = f"/certs/{SERVICES[name]}"
        assert found == {
            "ca": f"{place}/ca.pem",
            f"{name}-cert": f"{place}/cert.pem",
            f"{name}-key": f"{place}/key.pem",
        }
        assert {secret["mode"] for secret in service["secrets"]} == {0o400}
        assert {secret["uid"] for secret in service["secrets"]} == {"10001"}


def test_the_secrets_are_the_files_that_certs_makes(folder, stack, monkeypatch):
    pytest.importorskip("cryptography")
    monkeypatch.chdir(folder)
    assert main(["certs", "cluster", "certs", "run.yaml", "--hosts", "server"]) == 0
    listed = [*stack["secrets"].values(), *stack["configs"].values()]
    for entry in listed:
        # An engine takes no empty file.
        assert (folder / entry["file"]).stat().st_size > 0
        assert entry["name"].startswith("small-")
        assert entry["name"].endswith("-${VERSION:-1}")
    assert len({entry["name"] for entry in listed}) == len(listed)


def test_the_token_of_the_metrics_port_is_a_secret_of_the_server(tmp_path, monkeypatch):
    pytest.importorskip("cryptography")
    (tmp_path / "small.yaml").write_text(RUN)
    out = tmp_path / "out"
    assert (
        main(["deploy", "swarm", str(tmp_path / "small.yaml"), "server.metrics_port=0", "-o", str(out)])
        == 0
    )
    stack = yaml.safe_load((out / "stack.yaml").read_text())
    server = stack["services"]["server"]
    place = "/certs/server/metrics-token"
    assert {"server.metrics_host=0.0.0.0", f"server.metrics_token={place}"} <= {*server["command"]}
    holders = {
        name: [secret for secret in service["secrets"] if secret["source"] == "metrics-token"]
        for name, service in stack["services"].items()
    }
    (secret,) = holders.pop("server")
    assert (secret["target"], secret["mode"]) == (place, 0o400)
    assert not any(holders.values())
    assert "ports" not in server
    monkeypatch.chdir(out)
    assert main(["certs", "cluster", "certs", "run.yaml", "--hosts", "server"]) == 0
    assert len((out / stack["secrets"]["metrics-token"]["file"]).read_text()) > 16
    assert "`small-metrics-token-1`" in (out / "README.md").read_text()


def test_nothing_can_be_reached_from_outside(stack):
    assert not [name for name, service in stack["services"].items() if "ports" in service]
    assert stack["networks"] == {"cluster": {"driver": "overlay", "driver_opts": {"encrypted": "true"}}}
    for service in stack["services"].values():
        assert service["networks"] == ["cluster"]
        assert service["deploy"]["endpoint_mode"] == "dnsrr"
        assert service["image"] == IMAGE


def test_a_container_has_no_more_than_it_needs(stack):
    for service in stack["services"].values():
        assert service["read_only"] is True
        assert service["init"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
        assert service["deploy"]["update_config"]["order"] == "stop-first"
        assert not {"privileged", "build", "mem_limit", "security_opt"} & service.keys()


def test_the_server_stays_where_its_results_are(stack):
    deploy = stack["services"]["server"]["deploy"]
    assert deploy["placement"] == {"constraints": ["node.labels.varangian == server"]}
    assert deploy["replicas"] == 1
    states = [
        mount
        for name, service in stack["services"].items()
        for mount in service["volumes"]
        if isinstance(mount, str) and name != "server"
    ]
    assert len(states) == len({*states}) == 5


def test_only_the_attacker_is_told_the_attack(folder, stack):
    for name, service in stack["services"].items():
        args = parse(service["command"])
        config = load(folder / "run.yaml", args.settings, service["environment"], whole=False)
        assert (config.byzantine.attack is not None) == (name == "byzantine-0")
        assert (config.server.data_port, config.worker.state) == (50052, "/state")
        if name != "server":
            assert args.name == [SERVICES[name]]
            assert args.server == "server:50051"


def test_docker_reads_the_stack(folder):
    """No engine is needed for this."""
    docker = shutil.which("docker")
    if (
        docker is None
        or subprocess.run([docker, "stack", "config", "--help"], capture_output=True).returncode
    ):
        pytest.skip("there is no docker here that has `stack config`")
    words = [docker, "stack", "config", "--compose-file", "stack.yaml"]
    found = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "nsupported" not in found.stderr
    assert "gnoring" not in found.stderr
