"""`varangian sweep` on the command line."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import yaml

from varangian import __version__
from varangian.cli.main import INTERRUPTED, main
from varangian.experiments.sweep.processes.folders import RunFolders
from varangian.experiments.sweep.processes.job import Ending
from varangian.experiments.sweep.progress import Outcome, Progress
from varangian.experiments.sweep.sweep import run_sweep
from varangian.experiments.sweep.view import sweep_view


@pytest.fixture
def grid(tmp_path, small_settings):
    """The file of a grid of four points."""
    content = {"base": small_settings, "grid": {"aggregator": ["median", "mean"]}, "seeds": 2}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(content))
    return "rules.yaml"


@pytest.fixture
def sweep(capsys, monkeypatch, tmp_path, runner):
    """The command in this process, without processes: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    swept = partial(run_sweep, make_runner=lambda: runner)
    monkeypatch.setattr("varangian.experiments.sweep.command.run_sweep", swept)
    monkeypatch.setattr("varangian.launch.children.fork_server.start", lambda: None)

    def run(*argv):
        code = main(["sweep", *argv])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_line_for_each_run_the_table_and_the_report(sweep, grid):
    code, out, err = sweep(grid, "--jobs", "1")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0] == "4 points, 0 of them done before, 4 to run with 1 job"
    assert lines[1].startswith("1/4  median  seed 1  accuracy 1.0 %")
    assert "4 of 4 runs done, 4 of them now" in lines
    assert lines[-1] == "the report: varangian report runs/rules.sweep.json"


def test_settings_options_and_seeds_of_the_command_line(sweep, grid, tmp_path, runner):
    code, _, _ = sweep(grid, "rounds=9", "--seeds", "3", "--output", "elsewhere")
    assert (code, len(runner.started)) == (0, 6)
    assert {job.settings["rounds"] for job in runner.started} == {9}
    assert len([*(tmp_path / "elsewhere").glob("*/result.json")]) == 6


def test_a_dry_run_lists_the_points_and_estimates_from_finished_runs(sweep, grid, tmp_path, runner):
    code, out, _ = sweep(grid, "--dry-run", "--jobs", "2")
    assert code == 0
    assert out.count("  to run  ") == 4
    assert out.splitlines()[-1].startswith("no estimate: no run like these is finished in runs")
    assert not (tmp_path / "runs").exists()
    sweep(grid, "--seeds", "1")
    _, out, _ = sweep(grid, "--dry-run", "--jobs", "2")
    assert out.count("  done  ") == 2
    assert out.splitlines()[-2:] == [
        "4 points, 2 of them done, 2 to run with 2 jobs",
        "estimate: 2 s, from 2 finished runs",
    ]


def test_impossible_and_excluded_points_are_told_once_before_anything_runs(sweep, tmp_path, small_settings):
    base = {**small_settings, "byzantine": {"attack": "ipm", "count": 1}}
    content = {
        "base": base,
        "grid": {"aggregator": ["krum", "mean", "median"], "f": [1, 2]},
        "exclude": [{"aggregator": "mean"}],
        "seeds": 2,
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content))
    code, out, _ = sweep("grid.yaml")
    first, second, third, *_ = out.splitlines()
    assert code == 0
    assert first == "excluded: mean  f 1; mean  f 2: exclude.0: mean"
    assert second.startswith("impossible: krum  f 2: aggregator: with 5 workers, f = 2 the rule promises")
    assert third.startswith("6 points, 0 of them done before, 6 to run with ")


def test_programs_read_json_lines(sweep, grid):
    code, out, _ = sweep(grid, "--format", "json")
    first, *runs, last = map(json.loads, out.splitlines())
    assert code == 0
    assert first["sweep"] | {"file": ""} == {
        "name": "rules",
        "points": 4,
        "done": 0,
        "excluded": 0,
        "impossible": [],
        "file": "",
    }
    assert [run["run"]["accuracy"] for run in runs] == [0.01, 0.01, 0.02, 0.02]
    assert last["result"]["failed"] == 0


def test_a_failed_run_is_named_with_its_reason_and_the_exit_code_is_1(sweep, grid, runner):
    def fail(job, tell):
        with RunFolders(job.output).claim(job.id) as claim:
            claim.fail(job.settings, "the disk is on fire", "OSError")
        return Ending(job.id, "error", "the disk is on fire")

    runner.carry_out = fail
    code, out, _ = sweep(grid)
    assert code == 1
    assert "4 failed:" in out
    assert out.count("the disk is on fire") >= 5  # as each ends, and once at the end
    assert "no table: " in out


def test_a_run_that_ends_early_is_named_and_is_no_failure(sweep, grid, runner, ended):
    def diverge(job, tell):
        with RunFolders(job.output).claim(job.id) as claim:
            (claim.path / "manifest.json").write_text(json.dumps({"varangian": __version__}))
            claim.finish(ended(outcome="failed", reason="10 rounds had no update; the last, round 9: NaN"))
        return Ending(job.id, "complete")

    runner.carry_out = diverge
    code, out, _ = sweep(grid, "--seeds", "1")
    assert code == 0
    assert "1/2  median  seed 1  accuracy 50.0 %, ended early: 10 rounds had no update" in out
    ending = out[out.index("2 of 2 runs done") :].splitlines()
    assert ending[1] == "2 ended before their last round, and count with the score that they had:"
    assert ending[2] == "  10 rounds had no update"
    assert ending[3].startswith("    median  seed 1")


def test_tuning_says_what_was_chosen(sweep, tmp_path, small_settings):
    content = {"base": small_settings, "grid": {"optimizer.lr": [0.1, 0.2]}, "tune": "optimizer.lr"}
    (tmp_path / "lr.yaml").write_text(yaml.safe_dump(content))
    code, out, _ = sweep("lr.yaml")
    assert code == 0
    assert "optimizer.lr, by the worst case over attacks on the validation split:" in out
    chosen = json.loads((tmp_path / "runs" / "lr.sweep.json").read_text())["tune"]
    assert chosen["path"] == "optimizer.lr"
    assert [one["value"] for one in chosen["chosen"]] == [0.1]


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ([], 2, "the grid: should be given once: GRID.yaml, or --from-byzfl CONFIG.json."),
        (["no.yaml"], 2, "no.yaml: the configuration cannot be read: no such file or directory"),
        (["rules.yaml", "--from-byzfl", "config.json"], 2, "the grid: should be given once"),
        (["rules.yaml", "--write", "new.yaml"], 2, "--write: writes the grid of --from-byzfl"),
        (
            ["rules.yaml", "aggregator=mean"],
            2,
            "aggregator: varies in the grid, so it cannot be set for all",
        ),
        (
            ["rules.yaml", "roundz=3"],
            2,
            "roundz: there is no such setting. Found 3. Did you mean 'rounds'?",
        ),
        (["rules.yaml", "--output", "rules.yaml"], 1, "rules.sweep.json cannot be written"),
    ],
)
def test_one_clear_error(sweep, grid, argv, code, words):
    found, out, err = sweep(*argv)
    assert (found, out) == (code, "")
    assert words in err
    assert "Traceback" not in err


def test_a_file_of_byzfl_is_translated_and_written(sweep, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BYZFL))
    code, out, err = sweep("--from-byzfl", "config.json", "--write", "grid.yaml")
    assert (code, err) == (0, "")
    assert "varangian sweep grid.yaml" in out
    code, _, err = sweep("--from-byzfl", "config.json", "--write", "grid.yaml")
    assert (code, err) == (1, "varangian: grid.yaml cannot be written: File exists.\n")
    assert "to run" in sweep("grid.yaml", "--dry-run")[1]
    assert "note: " in sweep("--from-byzfl", "config.json", "--dry-run")[1]


BYZFL = {
    "benchmark_config": {
        "training_algorithm": {"name": "DSGD", "parameters": {}},
        "nb_honest_clients": 5,
        "f": [1],
        "nb_steps": 10,
    },
    "model": {"name": "fc_mnist", "dataset_name": "mnist", "nb_labels": 10, "loss": "NLLLoss"},
    "aggregator": [{"name": "Median", "parameters": {}}],
    "attack": [{"name": "SignFlipping", "parameters": {}}],
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_live_view_shows_counts_time_left_and_failures(planned):
    plan = planned(grid={"aggregator": ["median", "mean"]}, seeds=2)
    progress = Progress(plan, jobs=2)
    first, second, *_ = plan.points
    screen = Terminal()
    with sweep_view("auto", screen) as view:
        view.begin(progress)
        progress.running = {second.id: time.monotonic()}
        progress.rounds = {second.id: 1}
        progress.outcomes[first.id] = Outcome(first, "failed", None, "no \x1b memory", 1.0)
        progress.pace.add(2, 10.0)
        view.ended(progress, progress.outcomes[first.id])
        view.finish(["the end"], {})
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert "median  seed 1  failed: no \\x1b memory" in shown
    assert "1 of 4 runs done, 1 running, 1 failed" in shown
    assert "round 1/2" in shown
    assert "time left 12 s" in shown
    assert shown.splitlines()[-1] == "the end"


def started(tmp_path, *argv):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "varangian", "sweep", *argv]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **streams)


def complete(tmp_path):
    """The results of complete runs, and when they were written."""
    found = [path for path in (tmp_path / "runs").glob("*/result.json") if path.parent.suffix != ".running"]
    return {path: path.stat().st_mtime_ns for path in found}


def until_done(tmp_path, process, count):
    """Wait until so many runs are complete."""
    while len(complete(tmp_path)) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.exhaustive
def test_a_killed_sweep_goes_on_where_it_was_and_does_no_run_twice(tmp_path, grid):
    killed = started(tmp_path, grid, "rounds=6", "--seeds", "3", "--jobs", "2")
    until_done(tmp_path, killed, 2)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    before = complete(tmp_path)
    again = started(tmp_path, grid, "rounds=6", "--seeds", "3", "--jobs", "2")
    out, err = again.communicate()
    assert (again.returncode, err) == (0, "")
    after = complete(tmp_path)
    assert len(after) == 6
    assert before.items() <= after.items()
    assert not [*(tmp_path / "runs").glob("*.running")]
    whole = started(tmp_path, grid, "rounds=6", "--seeds", "3", "--output", "other")
    assert table(whole.communicate()[0]) == table(out)


def table(out):
    lines = out.splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith("accuracy in %")) : -1]


@pytest.mark.exhaustive
def test_two_sweeps_at_the_same_time_share_the_runs(tmp_path, grid):
    both = [started(tmp_path, grid, "rounds=6", "--jobs", "1") for _ in range(2)]
    outs = [process.communicate() for process in both]
    assert [(process.returncode, err) for process, (_, err) in zip(both, outs, strict=True)] == [
        (0, "")
    ] * 2
    now = [int(line.split()[5]) for out, _ in outs for line in out.splitlines() if " runs done, " in line]
    assert sum(now) == 4


@pytest.mark.exhaustive
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, 143)])
def test_an_interrupted_sweep_leaves_nothing_of_the_runs_in_hand(tmp_path, grid, number, code):
    process = started(tmp_path, grid, "rounds=2000", "--seeds", "4", "--jobs", "2")
    while not [*(tmp_path / "runs").glob("*.running/rounds.jsonl")]:
        time.sleep(0.02)
    os.killpg(process.pid, number)  # as a terminal and `timeout` do
    out, err = process.communicate()
    assert process.returncode == code
    assert "8 runs are missing: type the command again, and it does them" in out
    assert "Traceback" not in err
    assert not [*(tmp_path / "runs").glob("*.running")]


@pytest.mark.exhaustive
def test_a_run_whose_process_is_killed_fails_and_the_others_go_on(tmp_path, small_settings):
    (tmp_path / "mine.py").write_text(
        "import os, signal\n"
        "from torch import nn\n"
        "def model(features, outputs, dies=False):\n"
        "    print('about to die' if dies else 'alive', flush=True)\n"
        "    if dies:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return nn.Linear(features[0], outputs)\n"
    )
    target = {"custom": {"target": "mine:model"}}
    dying = {"custom": {"target": "mine:model", "options": {"dies": True}}}
    content = {"base": small_settings, "grid": {"model": [dying, target]}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content))
    process = started(tmp_path, "grid.yaml")
    out, err = process.communicate()
    assert (process.returncode, err) == (1, "")
    assert "2 of 2 runs done" in out
    assert "the process of the run was ended by SIGKILL, and printed last: about to die" in out
    (folder,) = (path.parent for path in (tmp_path / "runs").glob("*/result.json"))
    assert (folder / "output.log").read_text().startswith("alive")
