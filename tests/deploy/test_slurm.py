"""A run as a job of Slurm: what the script says, and what it does with a stand-in for srun."""

import json
import shlex
import subprocess
import sys

import pytest

from varangian.api import run
from varangian.cli.main import main
from varangian.config.load import load
from varangian.deploy.emitter import Options
from varangian.deploy.slurm import _inside, render
from varangian.registry import ConfigError

SETTINGS = [
    *("data=synthetic", "model=softmax", "workers=4", "f=1", "rounds=6", "seed=1", "aggregator=median"),
    *("byzantine.count=1", "byzantine.attack={gaussian: {sigma: 5.0}}"),
    *("server.quorum=4", "server.deadline=300", "server.wait_factor=null"),
]


def files(*more, options=None):
    config = load(None, [*SETTINGS, *more], {})
    return {
        file.path: file for file in render(config, options or Options(made_by="varangian deploy slurm"))
    }


def test_the_job_has_a_task_for_the_server_and_each_worker():
    found = files()
    assert sorted(found) == ["README.md", "job.sh", "run.yaml"]
    lines = found["job.sh"].text.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert "# Made by: varangian deploy slurm" in lines
    for line in ("ntasks=5", "cpus-per-task=1", "mem-per-cpu=2048M", "requeue", "signal=B:USR1@50"):
        assert f"#SBATCH --{line}" in lines
    assert found["job.sh"].mode == 0o755
    assert (
        subprocess.run(["bash", "-n"], input=found["job.sh"].text, text=True, check=False).returncode == 0
    )


def test_only_attackers_are_told_the_attack():
    found = files()
    (line,) = [line for line in found["job.sh"].text.splitlines() if "gaussian" in line]
    assert line.startswith("env VARANGIAN_CERTS=certs/byzantine VARANGIAN__BYZANTINE__ATTACK='{gaussian: ")
    assert "gaussian" not in found["run.yaml"].text + found["README.md"].text


@pytest.mark.parametrize("text", ["it's", "$(id)", "`id`", 'a"b', "a\nb", "${HOME} %", "\\'"])
def test_words_stay_words_inside_of_quotes(text):
    """As in the script: a shell that is told in single quotes what to do."""
    script = f"bash -c 'printf %s {_inside(shlex.quote(text))}'"
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == text


def test_ports_are_those_of_the_settings_or_free_ones():
    assert "port=$((20000 + SLURM_JOB_ID % 10000))\n" in files()["job.sh"].text
    assert "DATA_PORT" not in files()["job.sh"].text
    chosen = files("server.port=4000", "server.data_port=null")["job.sh"].text
    assert "port=4000\n" in chosen
    assert "export VARANGIAN__SERVER__DATA_PORT=null\n" in chosen


def test_metrics_are_for_whoever_has_the_token_that_the_job_makes():
    found = files("server.metrics_port=0")
    for setting in ("port=9464", "host=0.0.0.0", "token=certs/server/metrics-token"):
        assert f" server.metrics_{setting}" in found["job.sh"].text
    assert "`https://NODE:9464`" in found["README.md"].text
    assert "https" not in files()["README.md"].text
    own = files("server.metrics_port=0", "server.metrics_token=/shared/token")
    assert "metrics_token: /shared/token" in own["run.yaml"].text
    assert "metrics_token" not in own["job.sh"].text


def test_workers_alone_have_gpus():
    from varangian.deploy.plan import Resources

    text = files("worker.device=cuda", options=Options(worker=Resources(cpus=3.5, gpus=2)))["job.sh"].text
    assert "#SBATCH --gpus=8\n" in text
    assert "--cpus-per-task=4 --gpus=0 --nodelist" in text
    assert text.count("--gpus-per-task=2") == 2


def test_without_attackers_there_is_no_step_for_them():
    assert "byzantine" not in files("byzantine.count=0", "byzantine.attack=null")["job.sh"].text


def test_an_image_is_refused():
    with pytest.raises(ConfigError, match=r"--image.*Slurm starts programs"):
        files(options=Options(image="x@sha256:" + "0" * 64))


SRUN = """\
#!/usr/bin/env bash
# Starts the tasks of a step here.
tasks=1 output=/dev/null
while [[ $1 == --* ]]; do
  case $1 in --ntasks=*) tasks=${1#*=} ;; --output=*) output=${1#*=} ;; esac
  shift
done
trap 'kill -TERM "${started[@]}"' TERM
for ((i = 0; i < tasks; i++)); do
  SLURM_PROCID=$i "$@" >>"${output//%t/$i}" 2>&1 &
  started+=($!)
done
status=0
for one in "${started[@]}"; do wait "$one" || status=$?; done
exit "$status"
"""


@pytest.mark.slow
@pytest.mark.exhaustive  # test_slurm_cluster.py shows the same on a real cluster
def test_the_job_ends_with_the_digest_of_a_run_without_slurm(tmp_path, monkeypatch, capsys):
    pytest.importorskip("cryptography")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (
        ("srun", SRUN),
        ("varangian", f'#!/bin/sh\nexec {sys.executable} -m varangian "$@"\n'),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    folder = tmp_path / "deployment"
    assert main(["deploy", "slurm", *SETTINGS, "-o", str(folder)]) == 0
    assert str(folder / "job.sh") in capsys.readouterr().out
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    for name, value in {"SUBMIT_DIR": str(folder), "JOB_ID": "77", "RESTART_COUNT": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURMD_NODENAME", "localhost")
    done = subprocess.run(["bash", folder / "job.sh"], capture_output=True, text=True, check=False)
    logs = "".join(path.read_text() for path in sorted((folder / "logs").iterdir()))
    assert done.returncode == 0, done.stderr + logs
    (result,) = (folder / "runs").glob("*/result.json")
    expected = run(load(None, [*SETTINGS, "backend=simulate"], {}), folder=tmp_path / "here")
    assert json.loads(result.read_text())["digest"] == expected.digest
    assert (folder / "certs").stat().st_mode & 0o077 == 0
