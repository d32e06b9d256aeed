"""A sweep on an engine: runs go to it in batches, fill the same folders, and are found again."""

import dataclasses
import json
import os
import stat

import pytest

from varangian.api import sweep
from varangian.cli.main import main
from varangian.experiments.sweep.engines import runner as running
from varangian.experiments.sweep.engines import task
from varangian.experiments.sweep.engines.batch import FOLDER, Batch, BatchError, batches
from varangian.experiments.sweep.engines.choice import Engine, engine
from varangian.experiments.sweep.engines.queue import QueueError, QueueFullError, State
from varangian.experiments.sweep.engines.runner import QueueRunner, rounds_of
from varangian.experiments.sweep.engines.slurm import Slurm, script, state_of
from varangian.experiments.sweep.processes.folders import RunComplete
from varangian.experiments.sweep.processes.job import Ending, Job
from varangian.experiments.sweep.sweep import run_sweep
from varangian.launch import RunError
from varangian.registry import ConfigError


class FakeQueue:
    """An engine that carries tasks out when it is asked how they are, so many at each question."""

    title, name, most = "Fake", "fake", 3

    def __init__(self, carry_out):
        self.carry_out, self.batches, self.cancelled = carry_out, {}, []
        self.ended, self.fate, self.full, self.per_question = {}, {}, False, 100
        self.limits, self.idle = [], 0

    def check(self):
        pass

    def submit(self, batch, limit):
        if self.full:
            raise QueueFullError("Fake is full.")
        handle = f"j{len(self.batches)}"
        self.batches[handle] = batch
        self.limits.append(limit)
        return handle

    def states(self, handle):
        batch, done = self.batches[handle], 100 if self.idle else 0
        self.idle = max(0, self.idle - 1)
        for index in range(len(batch.tasks)):
            if (handle, index) in self.ended or done >= self.per_question:
                continue
            fate = self.fate.pop((handle, index), None)
            if fate is None:
                for job in batch.jobs(index):
                    batch.tell(dataclasses.replace(self.carry_out(job, lambda rounds: None), seconds=2.0))
                fate = State("ended")
            self.ended[handle, index] = fate
            done += 1
        tasks = range(len(batch.tasks))
        return {index: self.ended.get((handle, index), State("waiting")) for index in tasks}

    def cancel(self, handle):
        self.cancelled.append(handle)
        for index in range(len(self.batches[handle].tasks)):
            self.ended.setdefault((handle, index), State("ended", "CANCELLED"))


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    for name in ("LOOK", "ASK"):
        monkeypatch.setattr(running, name, 0.0)


@pytest.fixture
def queue(runner):
    def carry_out(job, tell):
        try:
            return runner.carry_out(job, tell)
        except RunComplete:
            return Ending(job.id, "found")

    return FakeQueue(carry_out)


@pytest.fixture
def plan(planned):
    return planned(grid={"aggregator": ["median", "mean"]}, seeds=2)


@pytest.fixture
def swept(queue):
    def sweep(plan, **options):
        view = options.pop("view", None)
        return run_sweep(plan, view=view, engine=Engine(queue, **options), command=["varangian", "sweep"])

    return sweep


class Notes:
    """A view that keeps what is told."""

    def __init__(self):
        self.notes, self.waiting = [], []

    def begin(self, progress):
        pass

    def note(self, text):
        self.notes.append(text)

    def ended(self, progress, outcome):
        pass

    def update(self, progress):
        self.waiting.append((len(progress.waiting), len(progress.running)))


def test_runs_go_over_in_batches_and_fill_the_folders_of_any_sweep(plan, swept, queue, runner):
    result = swept(plan)
    assert [batch.tasks for batch in queue.batches.values()] == [
        tuple((point.id,) for point in sorted(plan.points, key=lambda point: point.seed)[:3]),
        ((plan.points[-1].id,),),
    ]
    assert (result.carried_out, len(result.outcomes), result.failed) == (4, 4, ())
    assert {outcome.seconds for outcome in result.outcomes} == {2.0}
    assert not (plan.output / FOLDER).exists()
    assert run_sweep(plan, make_runner=lambda: runner).carried_out == 0


def test_a_task_may_have_several_runs_and_the_engine_a_limit(plan, swept, queue):
    assert not swept(plan, per_task=3, limit=2).failed
    assert [[len(ids) for ids in batch.tasks] for batch in queue.batches.values()] == [[3, 1]]
    assert queue.limits == [2]


def test_with_a_limit_a_batch_waits_for_the_one_before(plan, swept, queue):
    queue.per_question = 1
    view = Notes()
    assert not swept(plan, limit=2, view=view).failed
    assert len(queue.batches) == 2
    assert max(waiting for waiting, _ in view.waiting) == 3


def test_an_engine_that_is_full_gets_the_rest_later(plan, swept, queue):
    submit = queue.submit

    def sometimes(batch, limit):
        queue.full = len(queue.batches) == 1 and len(queue.ended) < 3
        return submit(batch, limit)

    queue.submit, view = sometimes, Notes()
    assert not swept(plan, view=view).failed
    assert view.notes == ["Fake is full. 1 runs are handed over when others have ended."]


def test_an_engine_that_takes_nothing_is_an_error_and_nothing_is_left(plan, swept, queue):
    queue.full = True
    with pytest.raises(RunError, match=r"^Fake is full\.$"):
        swept(plan)
    assert not (plan.output / FOLDER).exists()


def test_a_task_that_is_cancelled_is_an_error_of_its_runs_alone(plan, swept, queue):
    queue.fate["j0", 1] = State("ended", "CANCELLED")
    result = swept(plan)
    (outcome,) = result.failed
    assert outcome.reason == "its task 1 of Fake j0 ended without a result: CANCELLED"
    folder = plan.output / outcome.point.id
    assert json.loads((folder / "error.json").read_text())["error"] == outcome.reason
    assert swept(plan).carried_out == 1


def test_what_a_task_printed_last_is_in_the_error(plan, swept, queue):
    submit = queue.submit

    def printing(batch, limit):
        (batch.path / "logs" / "0.log").write_text("Traceback\nno \x1b[31m such module\n")
        return submit(batch, limit)

    queue.submit = printing
    queue.fate["j0", 0] = State("ended", "FAILED")
    (outcome,) = swept(plan).failed
    assert outcome.reason.endswith("FAILED; and printed last: Traceback no \\x1b[31m such module")
    assert "no" in (plan.output / outcome.point.id / "output.log").read_text()


def test_a_run_that_is_lost_with_its_node_is_handed_over_again_but_not_for_ever(plan, swept, queue):
    queue.fate |= {("j0", 0): State("ended", "NODE_FAIL", lost=True)}
    assert not swept(plan).failed
    assert len(queue.batches) == 3
    only = plan.points[0].id
    for batch in queue.batches.values():
        assert not batch.path.exists()
    assert sum(only in batch.ids for batch in queue.batches.values()) == 2
    for point in plan.points:
        (plan.output / point.id / "result.json").unlink()
        (plan.output / point.id / "manifest.json").unlink()
        (plan.output / point.id).rmdir()
    queue.fate = {
        (f"j{n}", index): State("ended", "NODE_FAIL", lost=True) for n in range(99) for index in range(3)
    }
    first = len(queue.batches)
    assert len(swept(plan).failed) == 4
    assert sum(only in batch.ids for batch in [*queue.batches.values()][first:]) == running.TRIES


def test_a_task_that_the_engine_does_not_know_is_over(plan, swept, queue):
    states = queue.states
    queue.states = lambda handle: {k: v for k, v in states(handle).items() if (handle, k) != ("j0", 2)}
    queue.fate["j0", 2] = State("ended")
    (outcome,) = swept(plan).failed
    assert "Fake knows it no more" in outcome.reason


def test_why_tasks_wait_is_told_once(plan, swept, queue):
    asked, states = [], queue.states

    def held(handle):
        asked.append(handle)
        found = states(handle) if len(asked) > 8 else None
        return found or {index: State("waiting", "JobHeldUser\x1b[2J\n") for index in range(3)}

    queue.states, view = held, Notes()
    assert not swept(plan, view=view).failed
    assert view.notes == [f"Fake j{n}: 3 tasks wait: JobHeldUser\\x1b[2J\\n" for n in (0, 1)]


def test_an_engine_that_does_not_answer_is_asked_again(plan, swept, queue):
    asked, states = [], queue.states

    def silent(handle):
        asked.append(handle)
        if len(asked) < 5:
            raise QueueError("Fake has not answered.")
        return states(handle)

    queue.states, view = silent, Notes()
    assert not swept(plan, view=view).failed
    assert view.notes == ["Fake has not answered. The sweep goes on when it does."]


def test_a_sweep_that_was_killed_finds_its_runs_with_the_engine(plan, swept, queue):
    queue.per_question = 0
    swept(plan, detach=True)  # leaves as a process that is killed does
    queue.idle = 2
    handed = {*queue.batches}
    assert [batch.handle for batch in batches(plan.output, "fake")] != []
    queue.per_question, view = 100, Notes()
    result = swept(plan, view=view)
    assert (len(result.outcomes), result.failed) == (4, ())
    assert {*queue.batches} == handed
    assert sorted(view.notes) == ["Fake j0 still has 3 of these runs", "Fake j1 still has 1 of these runs"]
    assert not (plan.output / FOLDER).exists()


def test_what_has_ended_since_the_sweep_was_killed_is_not_handed_over_again(plan, swept, queue):
    queue.per_question = 0
    swept(plan, detach=True)
    queue.per_question = 100  # at the first question
    result = swept(plan)
    assert (len(result.outcomes), result.carried_out, len(queue.batches)) == (4, 0, 2)
    assert not (plan.output / FOLDER).exists()


def test_runs_of_another_sweep_that_goes_on_are_waited_for(plan, swept, queue, monkeypatch):
    monkeypatch.setattr("varangian.experiments.sweep.sweep.LOOK", 0.0)
    queue.per_question = 0
    other = QueueRunner(queue, plan.output, "other")
    with other:
        for point in plan.points:
            other.start(Job(point.id, point.config.resolved(), plan.output.absolute(), ("x",)))
        assert [*other.events(0.0)] == []
        queue.per_question, queue.idle, view = 100, 2, Notes()
        result = swept(plan, view=view)
        assert (len(result.outcomes), result.carried_out, len(queue.batches)) == (4, 0, 2)
        assert view.notes == ["another sweep carries some of these runs out; this one takes what is left"]
        assert len([*other.events(0.0)]) == 4
    assert not (plan.output / FOLDER).exists()


def test_an_interruption_cancels_what_is_with_the_engine(plan, swept, queue):
    queue.per_question, view = 1, Notes()

    def interrupt(progress):
        if progress.outcomes:
            raise KeyboardInterrupt

    view.update = interrupt
    result = swept(plan, view=view)
    assert result.interruption is not None
    assert result.missing > 0
    assert queue.cancelled == ["j0"]  # j1 was over
    assert not (plan.output / FOLDER).exists()
    assert not [*plan.output.glob("*.running")]


def test_a_batch_of_another_version_is_left_alone(plan, swept, queue):
    path = plan.output / FOLDER / "fake-old"
    path.mkdir(parents=True)
    (path / "batch.json").write_text('{"varangian": "0.0.1", "tasks": []}')
    assert not swept(plan).failed
    assert (path / "batch.json").exists()
    with pytest.raises(BatchError, match=r"made by varangian 0\.0\.1"):
        Batch.read(path)


def test_a_task_carries_its_runs_out(planned, monkeypatch, capsys):
    """In this process only until it would fork: the rest is in the tests with a real engine."""
    plan = planned(grid={"f": [1]})
    (point,) = plan.points
    job = Job(point.id, point.config.resolved(), plan.output.absolute(), ("varangian", "sweep"))
    batch = Batch.write("fake", "small", [[job]])
    assert Batch.read(batch.path) == batch
    assert batch.jobs(0) == [dataclasses.replace(job, settings=json.loads(json.dumps(job.settings)))]
    batch.tell(Ending(point.id, "complete", seconds=1.5))
    assert batch.has_ended(point.id)
    assert [*batch.endings(set())] == [Ending(point.id, "complete", seconds=1.5)]
    monkeypatch.setattr(task, "prepare", lambda: None)
    monkeypatch.setattr(task.signal, "signal", lambda *given: None)
    assert task.main([str(batch.path), "0"]) == 0  # nothing is left to do
    assert task.main([str(batch.path), "1"]) == 1
    assert "1.json should have the settings of a task" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cores", "found"), [({}, 1), ({"SLURM_CPUS_PER_TASK": "4"}, 4), ({"SLURM_CPUS_PER_TASK": "x"}, 1)]
)
def test_a_task_has_as_many_runs_at_once_as_it_has_cores(monkeypatch, cores, found):
    for name in task.CORES:
        monkeypatch.delenv(name, raising=False)
    for name, value in cores.items():
        monkeypatch.setenv(name, value)
    assert task.cores() == found


@pytest.mark.parametrize(
    ("text", "rounds"), [(None, 0), ('{"round": 3}\n{"round": 4}\n{"rou', 5), ("\n", 0), ("[]\n", 0)]
)
def test_rounds_of_a_run_in_progress(tmp_path, text, rounds):
    if text is not None:
        (tmp_path / "rounds.jsonl").write_text(text)
    assert rounds_of(tmp_path) == rounds


# -- Slurm's commands, as far as their texts go; the real ones are in test_slurm.py


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Stand-ins on the PATH that print what they are told to, and keep what they are given."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def add(name, printed="", error="", code=0):
        file = folder / name
        file.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$*" >>{folder}/{name}.given\n'
            f"cat <<'EOS'\n{printed}\nEOS\ncat >&2 <<'EOS'\n{error}\nEOS\nexit {code}\n"
        )
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setenv("PATH", f"{folder}:{os.defpath}")
    for name in ("sbatch", "squeue", "scancel"):
        add(name)
    return add


@pytest.fixture
def batch(tmp_path):
    return Batch(tmp_path / "runs" / FOLDER / "slurm-1", "slurm", "my sweep!", (("a",), ("b", "c")))


def test_the_script_of_a_job_array(batch):
    lines = script(batch, 7).splitlines()
    assert lines[0] == "#!/bin/sh"
    assert "#SBATCH --job-name=varangian-my-sweep-" in lines
    assert "#SBATCH --array=0-1%7" in lines
    assert "#SBATCH --requeue" in lines
    assert lines[-1].endswith(f'engines.task {batch.path} "$SLURM_ARRAY_TASK_ID"')
    assert "#SBATCH --array=0-1" in script(batch, None).splitlines()
    strange = dataclasses.replace(batch, path=batch.path.with_name("a%j b"))
    assert f'--output="{strange.path.parent}/a%%j b/logs/%a.log"' in script(strange, None)
    assert f"'{strange.path}'" in script(strange, None)


def test_a_batch_is_submitted_with_the_options_of_the_user(batch, commands, tmp_path):
    batch.path.mkdir(parents=True)
    commands("sbatch", "4711;cluster")
    assert Slurm("--partition=short --time 30").submit(batch, None) == "4711"
    given = (tmp_path / "bin" / "sbatch.given").read_text()
    assert given == f"--parsable --partition=short --time 30 {batch.path}/array.sh\n"


@pytest.mark.parametrize(
    ("options", "named"),
    [("--array=1-2", "--array"), ("-o x", "-o"), ("--wrap=x", "--wrap"), ("-Jx", "-Jx")],
)
def test_options_that_are_those_of_the_sweep_are_refused(commands, options, named):
    with pytest.raises(
        QueueError, match=rf"--slurm-options may not have {named}, which the sweep sets itself"
    ):
        Slurm(options).check()


def test_options_that_are_no_words(commands):
    with pytest.raises(
        QueueError, match=r"should be options of sbatch\. Found '--comment=\"a': No closing"
    ):
        Slurm('--comment="a').check()


def test_no_slurm_here(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QueueError, match="Slurm needs the command sbatch, and there is none on the PATH"):
        Slurm().check()


def test_the_errors_of_sbatch_are_told(batch, commands):
    batch.path.mkdir(parents=True)
    said = "sbatch: error: invalid partition specified: no\nsbatch: error: Batch job submission failed: 7"
    commands("sbatch", error=said, code=1)
    with pytest.raises(QueueError) as caught:
        Slurm("--partition=no").submit(batch, None)
    assert str(caught.value) == (
        "sbatch failed: invalid partition specified: no; Batch job submission failed: 7."
    )
    assert not isinstance(caught.value, QueueFullError)
    commands("sbatch", error="sbatch: error: QOSMaxSubmitJobPerUserLimit", code=1)
    with pytest.raises(QueueFullError):
        Slurm().submit(batch, None)


def test_the_states_of_an_array(commands):
    commands(
        "squeue",
        "0|COMPLETED|None\n1|RUNNING|None\n2|PENDING|Resources\n3|PENDING|JobHeldUser\n4|NODE_FAIL|None",
    )
    assert Slurm().states("1") == {
        0: State("ended"),
        1: State("running"),
        2: State("waiting"),
        3: State("waiting", "JobHeldUser"),
        4: State("ended", "NODE_FAIL", lost=True),
    }


def test_an_array_that_squeue_has_forgotten_is_asked_of_the_accounts(commands):
    commands("squeue", error="slurm_load_jobs error: Invalid job id specified", code=1)
    assert Slurm().states("7") == {}
    commands("sacct", "7_0|COMPLETED\n7_1|CANCELLED by 1000\n7_2.batch|FAILED\n7_[3-5]|PENDING")
    assert Slurm().states("7") == {0: State("ended"), 1: State("ended", "CANCELLED")}


def test_a_controller_that_is_away_is_an_error_and_no_answer(commands):
    commands(
        "squeue",
        error="slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        code=1,
    )
    with pytest.raises(QueueError, match="Unable to contact slurm controller"):
        Slurm().states("7")


@pytest.mark.parametrize("state", ["TIMEOUT", "OUT_OF_MEMORY", "CANCELLED", "DEADLINE"])
def test_what_a_user_or_a_limit_has_ended_is_not_lost(state):
    assert state_of(state, "") == State("ended", state)


def test_an_engine_that_does_not_exist():
    with pytest.raises(ConfigError, match=r"there is no such engine.*slurm"):
        engine("slum")


@pytest.mark.parametrize("options", [["--detach"], ["--per-task", "2"], ["--slurm-options=--time=30"]])
def test_options_of_engines_need_one(tmp_path, capsys, options):
    (tmp_path / "g.yaml").write_text("grid: {f: [1]}\n")
    assert main(["sweep", str(tmp_path / "g.yaml"), "--dry-run", *options]) == 2
    assert f"{options[0].partition('=')[0]}: is for a sweep on an engine" in capsys.readouterr().err


def test_a_dry_run_names_the_engine(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "g.yaml").write_text("grid: {f: [1]}\n")
    assert main(["sweep", "g.yaml", "--dry-run", "--slurm", "--format=plain"]) == 0
    assert "1 points, 0 of them done, 1 to run in Slurm with 1 job\n" in capsys.readouterr().out


def test_programs_name_an_engine_too(small_settings, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    grid = {"base": {**small_settings, "output": str(tmp_path / "runs")}, "grid": {"f": [1]}}
    with pytest.raises(ConfigError, match="there is no such engine"):
        sweep(grid, engine="slum")
    with pytest.raises(RunError, match="Slurm needs the command sbatch"):
        sweep(grid, engine="slurm", engine_options="--time=30")
