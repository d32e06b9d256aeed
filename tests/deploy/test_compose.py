"""`varangian deploy compose`, and the compose file at the root, which it makes."""

import pathlib
import shlex
import subprocess

import pytest
import yaml

from varangian.cli.arguments.main import parse
from varangian.cli.main import main
from varangian.config import load
from varangian.deploy.emitter import comment

ROOT = pathlib.Path(__file__).parents[2]
RUN = """\
workers: [carol, alice, bob, dave, mallory]
f: 1
byzantine: {count: 1, attack: {gaussian: {sigma: 50.0}}}
rounds: 3
aggregator: {trimmed_mean: {}}
"""


@pytest.fixture
def deployed(tmp_path):
    """Deploy the run above with more words on the command line; the folder."""

    def deploy(*words):
        (tmp_path / "small.yaml").write_text(RUN)
        folder = tmp_path / "out"
        assert main(["deploy", "compose", str(tmp_path / "small.yaml"), *words, "-o", str(folder)]) == 0
        return folder

    return deploy


def content(folder):
    return yaml.safe_load((folder / "docker-compose.yml").read_text())


def filled(value):
    """A value in which Compose has replaced what stands for a dollar sign."""
    return str(value).replace("$$", "$")


def test_the_file_at_the_root_is_made_by_its_own_command(tmp_path):
    text = (ROOT / "docker-compose.yml").read_text()
    (made_by,) = [line for line in text.splitlines() if line.startswith("# Made by: ")]
    program, *words = shlex.split(made_by.removeprefix("# Made by: "))
    assert program == "varangian"
    assert main([str(tmp_path / "new") if word == "DIR" else word for word in words]) == 0
    assert (tmp_path / "new" / "docker-compose.yml").read_text() == text


def test_a_run_is_its_file_and_what_containers_are_told(deployed):
    """What each program is started with is the run of the file, and only attackers are told the attack."""
    folder = deployed("seed=7")
    run = folder / "run.yaml"
    services = content(folder)["services"]
    assert [*services] == ["certs", "server", "worker", "byzantine"]
    assert [services[name]["deploy"]["replicas"] for name in ("worker", "byzantine")] == [4, 1]
    for name in ("server", "worker", "byzantine"):
        service = services[name]
        assert "./run.yaml:/etc/varangian/run.yaml:ro" in service["volumes"]
        args = parse(shlex.split(service["command"]))
        assert args.config == "/etc/varangian/run.yaml"
        environment = {key: filled(value) for key, value in service["environment"].items()}
        environment |= {"VARANGIAN_SETTINGS": "", "VARANGIAN__SERVER__DATA_PORT": "50052"}
        config = load(run, args.settings, environment, whole=False)
        assert (config.seed, config.rounds, config.f) == (7, 3, 1)
        assert config.byzantine_names == ("mallory",)
        assert (config.byzantine.attack is not None) == (name == "byzantine")
    assert config.byzantine.attack.sigma == 50.0
    assert "gaussian" not in run.read_text()


def test_without_attackers_there_is_nothing_for_them(deployed):
    text = (deployed("byzantine.count=0", "byzantine.attack=null") / "docker-compose.yml").read_text()
    assert "byzantine-" not in text
    assert "profiles" not in text


def test_metrics_are_for_this_machine_and_whoever_has_the_token(deployed):
    server = content(deployed("server.metrics_port=0"))["services"]["server"]
    assert "127.0.0.1:${METRICS_PORT:-9464}:9464" in server["ports"]
    assert {*server["command"].split()} >= {
        "server.metrics_port=9464",
        "server.metrics_host=0.0.0.0",
        "server.metrics_token=/certs/metrics-token",
    }


def test_what_makes_credentials_can_write_where_it_writes(deployed, monkeypatch):
    """The root of the container is read-only, so each folder that is made there should be a volume."""
    pytest.importorskip("cryptography")
    folder = deployed()
    monkeypatch.chdir(folder)
    words = content(folder)["services"]["certs"]["command"]
    local = {"/certs": "certs", "/etc/varangian/run.yaml": "run.yaml", "${TLS_HOSTS:-server}": "server"}
    assert main([local.get(word, word) for word in words]) == 0
    volumes = content(folder)["services"]["certs"]["volumes"]
    mounted = {mount.split(":")[1] for mount in volumes if not mount.startswith("./")}
    assert mounted == {f"/certs/{path.name}" for path in (folder / "certs").iterdir()}


def test_resources_and_devices_are_those_of_the_command_line(deployed):
    folder = deployed(
        *("--memory", "1536m", "--cpus", "0.5", "--server-memory", "4g", "--gpus", "2"),
        *("worker.device=cuda", "--image", "registry.example/v@sha256:" + "0" * 64),
    )
    services = content(folder)["services"]
    worker = services["worker"]
    assert worker["image"] == "${IMAGE:-registry.example/v@sha256:" + "0" * 64 + "}"
    assert (worker["mem_limit"], worker["cpus"]) == ("${MEMORY:-1536m}", "${CPUS:-0.5}")
    assert services["server"]["mem_limit"] == "${SERVER_MEMORY:-4g}"
    devices = worker["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]


def test_no_secret_is_in_an_environment_or_a_command(deployed):
    for service in content(deployed())["services"].values():
        names = [name for name in service["environment"] if "SECRET" in name or "TOKEN" in name]
        assert all(name.endswith("_FILE") for name in names)
        assert "secret" not in str(service.get("command", "")).lower()


def test_every_service_that_stays_has_a_health_check(deployed):
    for name, service in content(deployed())["services"].items():
        if name == "certs":
            continue
        kind, text = service["healthcheck"]["test"]
        (heartbeat,) = [word for word in shlex.split(service["command"]) if "heartbeat=" in word]
        assert kind == "CMD-SHELL"
        assert heartbeat.partition("=")[2] in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--variables"], "workers: should be a number with --variables"),
        (["--variables", "workers=5", "names=null", "optimizer.lr=0.3"], "optimizer: is no variable"),
        (["--gpus", "1"], "--gpus: is of use where workers compute on one"),
        (["aggregator=krm"], "Did you mean"),
        (["server.metrics_token=/home/me/token"], "server.metrics_token: is a file of this machine"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, capsys, words, said):
    (tmp_path / "small.yaml").write_text(RUN)
    assert (
        main(["deploy", "compose", str(tmp_path / "small.yaml"), *words, "-o", str(tmp_path / "out")]) == 2
    )
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_files_of_others_are_kept_unless_they_may_go(deployed, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.yaml").write_text("mine")
    command = ["deploy", "compose", "rounds=3", "-o", str(tmp_path / "out")]
    assert main(command) == 1
    assert "should be empty. Found run.yaml" in capsys.readouterr().err
    assert (tmp_path / "out" / "run.yaml").read_text() == "mine"
    deployed("--force")
    assert "rounds: 3" in (tmp_path / "out" / "run.yaml").read_text()


def test_what_is_typed_stays_in_its_comment(tmp_path):
    """A line break in a setting would otherwise begin a line of the file."""
    words = ["output='a\n\nevil: {image: x}'", "-o", str(tmp_path / "out")]
    assert main(["deploy", "compose", *words]) == 0
    text = (tmp_path / "out" / "docker-compose.yml").read_text()
    assert "evil" in text
    assert all(line.startswith("#") for line in text.splitlines() if "evil" in line)
    assert set(yaml.safe_load(text)["services"]) == {"certs", "server", "worker"}
    assert yaml.safe_load(comment("the file \x1b[2J\x00\u2028evil: 1") + "a: 1\n") == {"a": 1}


@pytest.mark.parametrize("program", [["docker", "compose"], ["docker-compose"]])
def test_compose_reads_the_files(deployed, program):
    """No engine is needed for this."""
    try:
        subprocess.run([*program, "version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"there is no {' '.join(program)} here")
    for file in (ROOT / "docker-compose.yml", deployed() / "docker-compose.yml"):
        words = [*program, "--file", str(file), "--profile", "attack", "--profile", "gpu", "config"]
        found = subprocess.run(words, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        assert "byzantine" in yaml.safe_load(found.stdout)["services"]
