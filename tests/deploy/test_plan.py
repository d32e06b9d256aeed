"""The plan of a deployment, compared with what is written here by hand."""

import shlex

import pytest
import yaml

from varangian.cli.arguments.main import parse
from varangian.cli.main import main
from varangian.config import load
from varangian.config.identity import with_effect
from varangian.config.load import loads
from varangian.deploy.plan import (
    Credentials,
    Places,
    Plan,
    Port,
    Resources,
    Task,
    changes,
    make_plan,
    needs,
)

RUN = [
    *("workers=[carol, alice, bob, mallory, dave]", "f=1", "byzantine.count=1", "rounds=3"),
    *("byzantine.attack={gaussian: {sigma: 5.0}}", "aggregator=median", "server.stop_grace=7.5"),
]
PLACES = Places(
    config="/c/run.yaml",
    certs="/k",
    runs="/r",
    state="/s",
    heartbeat="/t/beat",
    bind="10.0.0.1",
    server="head",
)
COMMON = {
    "VARANGIAN_CERTS": "/k",
    "VARANGIAN__SERVER__DATA_PORT": "50052",
    "VARANGIAN__WORKER__STATE": "/s",
}
SMALL, LARGE = Resources(cpus=0.5, memory=1 << 20), Resources(cpus=2, memory=1 << 30)


def honest(index, name):
    return Task(
        role="worker",
        index=index,
        name=name,
        argv=("varangian", "worker", "/c/run.yaml", "--server", "head:50051"),
        identity=("--name", name),
        environment=COMMON,
        files=("run.yaml",),
        secrets=(Credentials(f"honest/{name}", f"/k/{name}", ("ca.pem", "cert.pem", "key.pem")),),
        resources=SMALL,
    )


EXPECTED = Plan(
    tasks=(
        Task(
            role="certs",
            index=0,
            name="certs",
            argv=("varangian", "certs", "cluster", "/k", "/c/run.yaml", "--hosts", "head"),
            environment=COMMON,
            files=("run.yaml",),
        ),
        Task(
            role="server",
            index=0,
            name="server",
            argv=(
                *("varangian", "server", "/c/run.yaml", "--resume", "--bind", "10.0.0.1:50051"),
                *("--output", "/r", "server.heartbeat=/t/beat"),
            ),
            environment=COMMON,
            files=("run.yaml",),
            secrets=(
                Credentials("server/server", "/k/server", ("ca.pem", "cert.pem", "key.pem", "revoked")),
            ),
            resources=LARGE,
            ports=(Port("grpc", 50051), Port("data", 50052)),
        ),
        honest(0, "alice"),
        honest(1, "bob"),
        honest(2, "carol"),
        honest(3, "dave"),
        Task(
            role="byzantine",
            index=0,
            name="mallory",
            argv=("varangian", "worker", "/c/run.yaml", "--server", "head:50051"),
            identity=("--name", "mallory"),
            environment=COMMON | {"VARANGIAN__BYZANTINE__ATTACK": "{gaussian: {sigma: 5.0}}"},
            files=("run.yaml",),
            secrets=(Credentials("byzantine/mallory", "/k/mallory", ("ca.pem", "cert.pem", "key.pem")),),
            resources=SMALL,
        ),
    ),
    files={
        "run.yaml": """\
workers:
- alice
- bob
- carol
- dave
- mallory
f: 1
rounds: 3
aggregator:
  median:
    convention: midpoint
server:
  stop_grace: 7.5
byzantine:
  count: 1
"""
    },
    places=PLACES,
    stop_grace=23,
)


def test_the_plan_of_a_run():
    made = make_plan(load(None, RUN), places=PLACES, worker=SMALL, server=LARGE)
    for task, expected in zip(made.tasks, EXPECTED.tasks, strict=True):
        assert task == expected
    assert made == EXPECTED
    assert made.workers == EXPECTED.tasks[2:]


def test_ports_are_those_of_the_settings_where_they_are_numbers():
    config = load(
        None,
        ["server.port=6000", "server.data_port=null", "server.enrol_port=6001", "server.metrics_port=0"],
    )
    plan = make_plan(config)
    assert plan.server.ports == (Port("grpc", 6000), Port("enrol", 6001), Port("metrics", 9464))
    assert "0.0.0.0:6000" in plan.server.argv
    assert "server:6000" in plan.workers[0].argv
    assert plan.server.environment["VARANGIAN__SERVER__DATA_PORT"] == "null"


def test_a_metrics_port_has_a_token_as_a_secret():
    place = Places(metrics_token="/m/metrics-token")
    server = make_plan(load(None, ["server.metrics_port=0"]), places=place).server
    assert server.argv[-3:] == (
        "server.metrics_port=9464",
        "server.metrics_host=0.0.0.0",
        "server.metrics_token=/m/metrics-token",
    )
    assert server.secrets[1:] == (Credentials("server", "/m", ("metrics-token",)),)
    own = make_plan(load(None, ["server.metrics_port=0", "server.metrics_token=mine"]), places=place).server
    assert len(own.secrets) == 1
    assert not [word for word in own.argv if "metrics_token" in word]


@pytest.mark.parametrize(
    "settings",
    [
        [],
        RUN,
        ["aggregator={mix: [nnm], rule: {krum: {select: 3}}}", "optimizer={name: adam, lr: 0.01}"],
        ["server.checkpoint=null", "participation={fedavg: {participants: 5}}", "f=1", "seed=7"],
        [
            "partition={dirichlet: {alpha: 0.3}}",
            "ema={decay: 0.9, reference_batch: 8}",
            "metrics=[accuracy]",
        ],
    ],
)
def test_what_a_plan_changes_is_where_the_run_takes_place(settings, tmp_path):
    """The server and the attackers together have the settings of the run."""
    config = load(None, settings)
    assert loads(changes(config)) == config
    plan = make_plan(config)
    file = tmp_path / "run.yaml"
    file.write_text(plan.files["run.yaml"])
    attacker = load(file, [], plan.workers[-1].environment)
    assert with_effect(attacker.resolved()) == with_effect(config.resolved())
    server = load(file, [], plan.server.environment, whole=False)
    assert server.byzantine == config.byzantine.model_copy(update={"attack": None})


ROWS = [
    *("server.rows_folder=/somewhere/not here", "participation.fedlaavg.folder=/nowhere"),
    *("participation.fedlaavg.participants=3", "f=1", "workers=5", "rounds=3"),
]


def deployed(tmp_path, engine, *words):
    folder = tmp_path / engine
    code = main(["deploy", engine, *words, "-o", str(folder)])
    return code, {str(path.relative_to(folder)): path.read_text() for path in folder.glob("**/*.*")}


@pytest.mark.parametrize(
    ("engine", "file", "more"),
    [
        ("compose", "docker-compose.yml", []),
        ("swarm", "stack.yaml", []),
        ("kubernetes", "base/server.yaml", ["--rows", "40g"]),
    ],
)
def test_files_of_vectors_lie_on_a_volume_of_the_server(tmp_path, engine, file, more):
    """Where the settings want such files; the folders that they name are not those of the tasks."""
    code, files = deployed(tmp_path, engine, *ROWS, *more)
    assert code == 0
    documents = [*yaml.safe_load_all(files[file])]
    if engine == "kubernetes":
        (job,) = [one for one in documents if one["kind"] == "Job"]
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        (volume,) = [one for one in pod["volumes"] if one["name"] == "rows"]
        claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]
        assert claim["resources"] == {"requests": {"storage": "40Gi"}}
        assert {"name": "rows", "mountPath": "/rows"} in container["volumeMounts"]
        words, others = container["args"], str([*yaml.safe_load_all(files["base/workers.yaml"])])
        assert "name: rows" in files["overlays/jobset/jobset.yaml"]
        run = files["base/run.yaml"]
    else:
        (whole,) = documents
        server = whole["services"].pop("server")
        assert "rows:/rows" in server["volumes"]
        assert "rows" in whole["volumes"]
        command = server["command"]
        words = shlex.split(command) if isinstance(command, str) else command
        others, run = str(whole["services"]), files["run.yaml"]
    assert "rows" not in others
    (tmp_path / "run.yaml").write_text(run)
    args = parse(words)
    config = load(tmp_path / "run.yaml", args.settings, {}, whole=False)
    assert (config.server.rows_folder, config.participation.folder) == ("/rows", "/rows")
    assert config.participation.participants == 3
    plain = load(tmp_path / "run.yaml", [], {})
    assert (plain.server.rows_folder, plain.participation.folder) == (None, None)


def test_a_job_makes_the_folders_for_files_of_vectors_on_the_node_of_its_server(tmp_path):
    _, files = deployed(tmp_path, "slurm", *ROWS, "participation.fedlaavg.folder=~/a b")
    made = [line for line in files["job.sh"].splitlines() if line.startswith("mkdir -p --")]
    assert made == [
        "mkdir -p -- '/somewhere/not here' || exit 2",
        "mkdir -p -- \"$HOME\"'/a b' || exit 2",
    ]
    assert "folder: ~/a b" in files["run.yaml"]
    _, files = deployed(tmp_path / "same", "slurm", *ROWS, "server.rows_folder=/nowhere")
    assert files["job.sh"].count("mkdir -p --") == 1


@pytest.mark.parametrize("engine", ["compose", "swarm", "kubernetes", "slurm"])
def test_without_files_of_vectors_there_is_no_place_for_them(tmp_path, engine):
    code, files = deployed(tmp_path, engine, "rounds=3")
    assert code == 0
    assert not any("rows_" in text or "/rows" in text or "mkdir -p --" in text for text in files.values())


def test_sizes_and_settings_of_files_of_vectors_that_cannot_be(tmp_path, capsys):
    for engine, words, says in [
        ("kubernetes", ROWS, "--rows: should be the size of the volume for server.rows_folder and part"),
        ("compose", [*ROWS, "--rows", "1g"], "--rows: is of use with kubernetes only"),
        ("kubernetes", ["--rows", "1g"], "--rows: is of use where the settings want files for vectors"),
        ("swarm", [*ROWS, "aggregator=nothing"], "aggregator: "),
        ("swarm", [*ROWS, "byzantine.count=1", "byzantine.attack=null"], "byzantine.attack: "),
        ("compose", [*ROWS, "--variables"], "server.rows_folder: is no variable of the compose file"),
    ]:
        code, files = deployed(tmp_path, engine, *words)
        said = capsys.readouterr().err
        assert (code, files) == (2, {}), said
        assert says in said
        assert ("should be a folder that exists" in said) is False


def test_what_tasks_have_to_find_where_they_run_is_said(tmp_path, monkeypatch, capsys):
    assert needs(load(None, RUN)) == ()
    (tmp_path / "mine_of_deploy.py").write_text("def net(features, classes):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    settings = [
        "model={custom: {target: 'mine_of_deploy:net'}}",
        "data={cifar10: {path: /my/data}}",
        "trackers=[tensorboard]",
    ]
    expected = {
        "the module mine_of_deploy (model.custom.target)",
        "the files at /my/data (data.cifar10.path)",
        "the package tensorboardX (trackers.0)",
    }
    assert {*needs(load(None, [*RUN, *settings]))} == expected
    for engine in ("compose", "swarm", "slurm", "kubernetes"):
        assert main(["deploy", engine, *RUN, *settings, "-o", engine]) == 0
        readme, printed = (tmp_path / engine / "README.md").read_text(), capsys.readouterr().out
        for text in expected:
            assert f"- {text}\n" in readme
            assert f"note: the tasks need {text} where they run\n" in printed
        assert main(["deploy", engine, *RUN, "-o", f"plain-{engine}"]) == 0
        assert "What the tasks need" not in (tmp_path / f"plain-{engine}" / "README.md").read_text()
        assert "note:" not in capsys.readouterr().out


def test_a_file_is_no_folder_for_a_deployment(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for place in ("file", "file/below"):
        assert main(["deploy", "compose", *RUN, "-o", str(tmp_path / place)]) == 1
        assert "-o should be a folder" in capsys.readouterr().err
