import pytest

from varangian import run
from varangian.launch.children.worker_processes import WorkerProcesses, assign_processes, describe_exit


@pytest.fixture
def dealt_among(small, monkeypatch):
    def deal(cores, *settings):
        monkeypatch.setattr("varangian.launch.children.worker_processes.usable_cores", lambda: cores)
        return [" ".join(workers) for workers in assign_processes(small(*settings))]

    return deal


@pytest.mark.parametrize(
    ("cores", "settings", "processes"),
    [
        (2, [], ["w00 w01", "w02 w03 w04"]),
        (0.5, [], ["w00 w01 w02 w03 w04"]),
        (64, [], ["w00", "w01", "w02", "w03", "w04"]),
        (2, ["byzantine.count=2"], ["w00", "w01 w02", "w03 w04"]),
        (2, ["byzantine.count=2", "worker.per_process=1"], ["w00", "w01", "w02", "w03", "w04"]),
        (2, ["byzantine.count=1", "worker.per_process=3"], ["w00 w01", "w02 w03", "w04"]),
        (2, ["worker.per_process=9"], ["w00 w01 w02 w03 w04"]),
    ],
)
def test_workers_share_processes_but_never_with_an_attacker(dealt_among, cores, settings, processes):
    attack = ["byzantine.attack=mimic"] if any("count" in setting for setting in settings) else []
    assert dealt_among(cores, *settings, *attack) == processes


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "ended with exit code 0"), (1, "ended with exit code 1"), (-9, "was ended by SIGKILL")],
)
def test_how_a_process_ended(code, words):
    assert describe_exit(code) == words


def test_a_run_whose_workers_cannot_be_started_ends(small, monkeypatch, tmp_path):
    def start(worker_group, posts):
        raise EOFError("no fork server")

    monkeypatch.setattr(WorkerProcesses, "start", start)
    result = run(small("backend=processes", f"output={tmp_path}"))
    assert result.outcome == "failed"
    assert "cannot be started: EOFError: no fork server" in result.reason
