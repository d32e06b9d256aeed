"""A sweep: what is missing is run, what is there is read, and nothing is lost or done twice."""

import json
import shutil

import pytest
from tests import own_parts

from varangian import __version__
from varangian.experiments.sweep.processes.folders import RunFolders
from varangian.experiments.sweep.sweep import run_sweep
from varangian.launch import RunError, run


@pytest.fixture
def plan(planned):
    return planned(grid={"aggregator": ["median", "mean"]}, seeds=2)


@pytest.fixture
def swept(runner):
    """A sweep in this process."""

    def sweep(plan, runner=runner, **options):
        return run_sweep(plan, make_runner=lambda: runner, **options)

    return sweep


def test_a_point_has_a_run_folder_of_its_identity_and_the_numbers_of_a_run(planned, swept, training):
    plan = planned(grid={"f": [1]})
    (outcome,) = swept(plan, training).outcomes
    (point,) = plan.points
    folder = plan.output / point.id
    found = json.loads((folder / "result.json").read_text())
    assert (found["rounds"], found["folder"]) == (2, str(folder))
    assert json.loads((folder / "manifest.json").read_text())["varangian"] == __version__
    assert (folder / "parameters.safetensors").exists()
    assert not [*plan.output.glob("*.running")]
    assert json.loads(plan.file.read_text())["tune"] is None
    assert (outcome.state, outcome.result["digest"]) == ("finished", run(point.config).digest)


def test_the_same_sweep_again_does_only_what_is_missing(plan, swept, runner):
    swept(plan)
    shutil.rmtree(plan.output / plan.points[2].id)
    runner.started.clear()
    again = swept(plan)
    assert [job.id for job in runner.started] == [plan.points[2].id]
    assert (again.carried_out, len(again.outcomes)) == (1, 4)


@pytest.mark.parametrize(
    ("every", "asked"), [(None, None), (5, {"every": 5, "keep": 3, "best": "accuracy"})]
)
def test_a_sweep_keeps_checkpoints_where_it_is_asked_to(planned, swept, runner, every, asked):
    """A run that is killed is done again, with the same numbers."""
    base = {"server": {"checkpoint": {"every": every}}} if every else {}
    swept(planned(base=base, grid={"aggregator": ["median"]}))
    (job,) = runner.started
    assert job.settings["server"]["checkpoint"] == asked


def test_nothing_is_left_of_the_checkpoints_of_a_complete_run(planned, swept, training):
    plan = planned(base={"server": {"checkpoint": {"every": 1}}}, grid={"f": [1]})
    (outcome,) = swept(plan, training).outcomes
    assert outcome.state == "finished"
    found = {path.name for path in (plan.output / plan.points[0].id).iterdir()}
    assert "result.json" in found
    assert not found & {"checkpoints", "workers", "lock"}


def test_two_sweeps_share_runs(planned, plan, swept, runner):
    swept(plan)
    runner.started.clear()
    larger = planned(grid={"aggregator": ["mean", "krum"]}, seeds=3)
    result = swept(larger)
    assert len(runner.started) == 4
    assert {point.id for point in plan.points} & {outcome.point.id for outcome in result.outcomes}


def test_what_a_killed_process_has_left_is_done_again(plan, swept):
    left = RunFolders(plan.output).running(plan.points[0].id)
    left.mkdir(parents=True)
    (left / "rounds.jsonl").write_text("{")
    assert swept(plan).carried_out == 4
    assert not left.exists()


def test_a_run_of_another_sweep_is_waited_for(plan, swept, held, runner, monkeypatch):
    monkeypatch.setattr("varangian.experiments.sweep.sweep.LOOK", 0.0)
    folders, first = RunFolders(plan.output), plan.points[0]
    with held(folders, first.id) as claim:
        events = runner.events

        def ended_meanwhile(seconds):
            yield from events(seconds)
            if len(runner.started) == 4 and not claim.finished:
                claim.path.joinpath("result.json").write_text('{"outcome": "finished", "rounds": 2}')
                claim.path.rename(folders.path(first.id))
                claim.finished = True

        runner.events = ended_meanwhile
        result = swept(plan, jobs=1)
    assert (result.carried_out, len(result.outcomes)) == (3, 4)
    assert result.outcomes[0].result == {"outcome": "finished", "rounds": 2}


def test_a_run_that_another_sweep_gave_up_is_taken_over(plan, swept, held, runner, monkeypatch):
    monkeypatch.setattr("varangian.experiments.sweep.sweep.LOOK", 0.0)
    context = held(RunFolders(plan.output), plan.points[0].id)
    context.__enter__()
    events = runner.events

    def given_up_meanwhile(seconds):
        yield from events(seconds)
        context.__exit__(None, None, None) if len(runner.started) == 4 else None

    runner.events = given_up_meanwhile
    assert swept(plan, jobs=1).carried_out == 4


def test_a_run_that_fails_is_recorded_and_the_sweep_goes_on(planned, swept, training):
    plan = planned(
        grid={"data.synthetic.classes": [3, 2]}, base={"model": {"custom": {"target": "no:such"}}}
    )
    result = swept(plan, training)
    assert [outcome.state for outcome in result.outcomes] == ["failed", "failed"]
    folder = plan.output / plan.points[0].id
    found = json.loads((folder / "error.json").read_text())
    assert found["error"] == result.outcomes[0].reason
    assert "no" in found["error"]
    assert (found["varangian"], found["settings"]["seed"]) == (__version__, 1)
    assert (folder / "config.yaml").exists()
    assert not (folder / "result.json").exists()


def test_a_rule_of_the_user_that_fails_at_last_is_an_error_of_its_run(
    planned, swept, training, tmp_path, monkeypatch
):
    (tmp_path / "tired.py").write_text(
        "calls = []\n"
        "def rule(rows, f):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 3:\n"
        "        raise ValueError('no more')\n"
        "    return rows.mean(0)\n"
    )
    monkeypatch.chdir(tmp_path)
    plan = planned({"rounds": 6}, grid={"aggregator": ["tired:rule"]})
    (outcome,) = swept(plan, training).outcomes
    assert outcome.state == "failed"
    assert outcome.reason == (
        "tired:rule failed: ValueError: no more (tired.py, line 5). "
        "This was so in 4 of 6 rounds, so the scores do not count."
    )
    folder = plan.output / plan.points[0].id
    assert (folder / "error.json").exists()
    assert not (folder / "result.json").exists()


def test_a_run_that_failed_is_done_again(plan, swept):
    folders, first = RunFolders(plan.output), plan.points[0]
    with folders.claim(first.id) as claim:
        claim.fail(first.config.resolved(), "no memory", "MemoryError")
    assert folders.error(first.id) == "no memory"
    result = swept(plan)
    assert (result.carried_out, result.failed) == (4, ())
    assert not (folders.path(first.id) / "error.json").exists()


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (
            {"aggregator": "tests.own_parts:late"},
            "tests.own_parts:late failed: KeyError: 'oops' (",
        ),
        (
            {"byzantine": {"count": 1, "attack": "tests.own_parts:tardy"}},
            "`byzantine.attack` 'tests.own_parts:tardy' failed: ZeroDivisionError",
        ),
    ],
)
def test_scores_of_a_run_in_which_code_of_the_user_failed_do_not_count(
    planned, swept, training, monkeypatch, settings, error
):
    monkeypatch.setattr(own_parts.late, "calls", -1, raising=False)  # it is tried once before the run
    plan = planned({"rounds": 5, **settings}, grid={"f": [1]})
    result = swept(plan, training)
    (outcome,) = result.failed
    assert outcome.reason.startswith(error)
    assert "in 1 of 5 rounds, so the scores do not count" in outcome.reason
    folder = RunFolders(plan.output).path(plan.points[0].id)
    assert (folder / "error.json").exists()
    assert (folder / "rounds.jsonl").exists()
    assert not (folder / "result.json").exists()


def test_a_run_that_ends_early_has_a_result_that_counts(planned, swept, training):
    plan = planned({"optimizer": {"lr": 1e38}, "aggregator": "mean", "rounds": 30}, grid={"f": [0]})
    (outcome,) = swept(plan, training).outcomes
    assert (outcome.state, outcome.short_reason) == ("early", "10 rounds in a row had no update")
    assert outcome.result["outcome"] == "failed"
    assert outcome.reason == outcome.result["reason"]
    assert swept(plan).carried_out == 0


def test_a_folder_of_another_version_is_an_error_and_stays(plan, swept, runner):
    folder = plan.output / plan.points[1].id
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"varangian": "0.0.1"}')
    (folder / "result.json").write_text("{}")
    with pytest.raises(RunError, match=rf"was made by varangian 0\.0\.1, and this is {__version__}"):
        swept(plan)
    assert (runner.started, [*plan.output.iterdir()]) == ([], [folder])


def test_a_folder_that_is_no_run_is_an_error_and_stays(plan, swept):
    folder = plan.output / plan.points[1].id
    folder.mkdir(parents=True)
    (folder / "precious.txt").write_text("")
    with pytest.raises(RunError, match=r"should be a complete run, with result\.json or error\.json"):
        swept(plan)
    assert (folder / "precious.txt").exists()


def test_an_interruption_leaves_nothing_of_the_runs_in_hand(plan, swept, runner):
    folders, events = RunFolders(plan.output), runner.events

    def interrupted(seconds):
        yield next(events(seconds))  # how far the first run is
        folders.running(runner.started[1].id).mkdir()
        raise KeyboardInterrupt

    runner.events = interrupted
    result = swept(plan, jobs=2)
    assert isinstance(result.interruption, KeyboardInterrupt)
    assert ([outcome.point for outcome in result.outcomes], result.missing) == ([plan.points[0]], 3)
    assert not [*plan.output.glob("*.running")]


def test_an_output_that_cannot_be_written(plan, swept, tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match=r"small.sweep.json cannot be written: .* --output DIR"):
        swept(plan)
