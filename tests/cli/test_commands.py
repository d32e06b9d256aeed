import json
import os
import pathlib
import subprocess
import sys

import pytest
import yaml
from tests.extent import patience

import varangian as package
from varangian.aggregators import MIXINGS, RULES
from varangian.cli.main import main
from varangian.config import load, loads
from varangian.worker.attacks import ATTACKS

WORKER = ("worker", "--server", "127.0.0.1:9")
SOURCE = str(pathlib.Path(package.__file__).parents[1])


def fresh_python(code):
    """What a new interpreter prints."""
    environment = {"PYTHONPATH": SOURCE, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=patience(60)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["run", "--help"],
        ["bench", "--help"],
        ["--version"],
        ["run", "--format", "html"],
        ["health", "--server", "127.0.0.1:9"],
    ],
)
def test_what_needs_no_mathematics_imports_none(argv):
    code = f"""
import sys
from varangian.__main__ import main
try:
    main({argv!r})
except SystemExit:
    pass
heavy = "torch", "numpy", "pydantic", "rich", "yaml", "sklearn"
print("heavy:", [name for name in heavy if name in sys.modules])
"""
    assert fresh_python(code).rstrip().endswith("heavy: []")


def test_a_run_and_its_children_import_no_more_of_their_libraries_than_they_need(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # nothing is cached: the digits are read
    code = f"""
import sys
import varangian.launch.children.preload  # what the processes of workers begin with
print("configuration:", [name for name in ("pydantic", "rich", "yaml") if name in sys.modules])
from varangian.__main__ import main
small = ["workers=3", "f=0", "aggregator=nnm+median", "rounds=2", "output={tmp_path}", "--format", "plain"]
assert main(["run", "backend=simulate", *small]) == 0
heavy = "torch._dynamo", "sympy", "sklearn", "scipy", "matplotlib", "rich", "cryptography", "pyarrow", "PIL"
print("heavy:", [name for name in heavy if name in sys.modules])
"""
    said = fresh_python(code).rstrip()
    assert said.startswith("configuration: []\n")
    assert said.endswith("heavy: []")


@pytest.mark.parametrize("module", ["cli.commands.certs", "launch.children.fork_server"])
def test_modules_that_need_no_mathematics(module):
    code = (
        f"import sys, varangian.{module}\n"
        "print({'torch', 'numpy', 'pydantic', 'yaml'} & set(sys.modules))"
    )
    assert fresh_python(code).strip() == "set()"


@pytest.mark.parametrize(
    ("argv", "started"),
    [
        (["run", "rounds=0"], True),
        (["run", "rounds=0", "--backend", "simulate"], False),
        (["run", "rounds=0", "backend=simulate"], False),
        (["run", "simulated.yaml"], False),
        (["check", "rounds=0"], False),
    ],
)
def test_the_fork_server_imports_torch_while_the_command_does(
    argv, started, varangian, monkeypatch, tmp_path
):
    (tmp_path / "simulated.yaml").write_text("backend: simulate\nrounds: 0\n")
    monkeypatch.chdir(tmp_path)
    starts = []
    monkeypatch.setattr("varangian.launch.children.fork_server.start", lambda: starts.append(True))
    assert varangian(*argv)[0] == 2
    assert bool(starts) is started


def test_version(varangian):
    assert varangian("--version") == (0, f"varangian {package.__version__}\n", "")


def test_help_explains_the_exit_codes(varangian):
    code, out, _ = varangian("--help")
    assert code == 0
    for line in ("0  it worked", "1  the run failed", "2  the configuration", "130  interrupted"):
        assert line in out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "the following arguments are required: command"),
        (["fly"], "invalid choice: 'fly'"),
        (["run", "--fromat", "json"], "unrecognized arguments: --fromat"),
        (["run", "a.yaml", "b.yaml"], "there can be one configuration file"),
        (["run", "a.yaml", "--backend", "simulate", "b.yaml"], "Found a.yaml, b.yaml"),
        (["list", "rules"], "invalid choice: 'rules'"),
        (["list", "models", "extra"], "unrecognized arguments: extra"),
        (["worker"], "the following arguments are required: --server"),
        (["worker", "--server", "x:1"], "--name: is needed to know which worker this is"),
        (["worker", "--server", "x:1", "--name", "w00"], "--certs: is needed beyond this machine"),
        (["worker", "--server", "x", "--name", "w00"], "--server: should be HOST:PORT. Found 'x'."),
        (["server", "--bind", "0.0.0.0:1"], "or add --insecure, if you trust everyone on that network"),
        (["server", "--insecure", "--certs", "x"], "not allowed with argument"),
        (["server", "server.tls=true"], "server.tls: needs --certs DIR here"),
        (["certs"], "the following arguments are required: action"),
        (["certs", "init", "x", "--days", "0"], "should be a number of days above 0. Found '0'"),
        (["worker", "--server", "x:1", "--name", "w00", "--claim", "honest"], "not allowed with argument"),
    ],
)
def test_a_command_line_that_makes_no_sense(varangian, argv, said):
    code, out, err = varangian(*argv)
    assert (code, out) == (2, "")
    assert said in err


def test_settings_may_stand_between_options(varangian, tmp_path):
    (tmp_path / "run.yaml").write_text("rounds: 7\n")
    _, between, _ = varangian("check", "--static", "seed=3", "run.yaml", "f=2")
    assert loads(yaml.safe_load(between)) == load(tmp_path / "run.yaml", ["seed=3", "f=2"])


def test_check_prints_what_loads_equal(varangian):
    code, out, err = varangian("check", "aggregator=nnm+krum", "workers=20", "--static")
    assert (code, err) == (0, "")
    assert loads(yaml.safe_load(out)) == load(None, ["aggregator={mix: [nnm], rule: krum}", "workers=20"])
    assert "# ok: the condition of the rule holds with a quorum of 17 of 20 workers" in out


def test_check_warns_of_a_rule_that_promises_nothing(varangian):
    code, _, err = varangian("check", "aggregator=mean", "--static")
    assert code == 0
    assert err.startswith("warning: aggregator: this rule promises nothing")


def test_check_lists_every_problem(varangian):
    code, out, err = varangian("check", "wrokers=3", "aggregator=krun", "server.port=x")
    assert (code, out) == (2, "")
    assert err.splitlines()[0] == "3 problems in the configuration:"
    assert "  wrokers: there is no such setting. Found 3. Did you mean 'workers'?" in err.splitlines()


def test_a_file_that_is_not_there(varangian):
    code, _, err = varangian("run", "nowhere.yaml")
    assert code == 2
    assert "nowhere.yaml: the configuration cannot be read" in err


def test_the_environment_counts(varangian, monkeypatch):
    monkeypatch.setenv("VARANGIAN__ROUNDS", "17")
    assert yaml.safe_load(varangian("check", "--static")[1])["rounds"] == 17


def test_the_schema_is_json(varangian):
    code, out, _ = varangian("schema")
    assert code == 0
    assert json.loads(out)["properties"]["workers"]["default"] == 15


@pytest.mark.parametrize(
    ("kind", "names"),
    [("aggregators", RULES), ("mixings", MIXINGS), ("attacks", ATTACKS), ("models", ["mlp", "cnn"])],
)
def test_everything_that_can_be_named_is_listed(varangian, kind, names):
    code, out, _ = varangian("list", kind)
    assert code == 0
    assert set(names) <= set(out.splitlines())


def test_a_listed_rule_says_what_it_takes_and_needs(varangian):
    out = varangian("list", "aggregators")[1]
    krum = out[out.index("\nkrum\n") : out.index("\nmean\n")]
    assert "f: an integer; default the f of the run." in krum
    assert "select: an integer or 'max'; default 1. Rows to average; \"max\" is Multi-Krum's" in krum
    assert "Holds from n = 5, 7, 9 rows for f = 1, 2, 3." in krum
    assert (
        "Promises nothing against Byzantine workers."
        in out[out.index("\nmean\n") : out.index("\nmedian\n")]
    )


def test_health_of_nobody(varangian):
    code, out, err = varangian("health", "--server", "127.0.0.1:9", "--timeout", "2")
    assert (code, out) == (1, "")
    assert err.startswith("127.0.0.1:9 does not serve: ")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([*WORKER, "--name", "w99"], "--name: there is no such worker. Found 'w99'. Did you mean"),
        (
            [*WORKER, "--name", "w14", "byzantine.count=2"],
            "byzantine.attack: is needed by a Byzantine worker",
        ),
        (
            [*WORKER, "--claim", "byzantine"],
            "byzantine.count: should be at least 1 to claim a Byzantine name",
        ),
        (["server", "--bind", "localhost"], "--bind: should be HOST:PORT. Found 'localhost'"),
    ],
)
def test_a_worker_or_server_that_cannot_be(varangian, monkeypatch, argv, said):
    monkeypatch.setenv("VARANGIAN_SECRET", "a secret of this test")
    code, _, err = varangian(*argv)
    assert code == 2
    assert said in err


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="this system has no full disk to try")
@pytest.mark.parametrize(
    "command", [["list", "attacks"], pytest.param(["check", "--static"], marks=pytest.mark.exhaustive)]
)
def test_an_output_that_takes_nothing_is_one_sentence(command):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "varangian", *command], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "varangian: the output cannot be written: No space left on device\n"


def test_standard_streams_that_are_closed_are_opened_on_the_null_device(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["list", "mixings"]) == 0
    assert main(["run", "workers=0"]) == 2
    for stream in (sys.stdout, sys.stderr):
        # A child has it, too: otherwise the first socket of the child would have its number.
        assert os.get_inheritable(stream.fileno())
        stream.close()


def test_ctrl_c_before_the_command_is_known_is_an_exit_code_like_any_other(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("varangian.cli.main.parse", interrupted)
    assert main(["run"]) == 130
    assert capsys.readouterr().err == "varangian: interrupted\n"


STUCK = """
import sys, time
from varangian.cli import main

main.CLEANING = 0.2
with main._terminable(last=True):
    try:
        print("here", flush=True)
        time.sleep(600)
    finally:
        time.sleep(600)  # as for a lock that nobody gives back
"""


@pytest.mark.slow
def test_a_process_that_cannot_clean_up_after_sigterm_just_ends():
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        process.terminate()
        assert process.wait(patience(60)) == 143
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
