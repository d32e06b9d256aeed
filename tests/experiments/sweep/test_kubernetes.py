"""Sweeps through Kubernetes: the Jobs that are made, what answers mean, and sweeps in a cluster."""

import json
import pathlib
import sys

import pytest
from tests.kubernetes.conftest import cluster  # noqa: F401

from varangian.experiments.sweep.engines.batch import FOLDER, Batch, batches
from varangian.experiments.sweep.engines.choice import engine
from varangian.experiments.sweep.engines.kubernetes import Kubernetes, job_name, state_of
from varangian.experiments.sweep.engines.queue import QueueError, QueueFullError, State
from varangian.experiments.sweep.processes.job import Job
from varangian.experiments.sweep.sweep import run_sweep
from varangian.launch import RunError, run

NEEDED = "image=host/varangian claim=runs"


@pytest.fixture
def batch(tmp_path):
    jobs = [Job(f"id{i}", {"seed": i}, tmp_path / "runs", ("varangian", "sweep")) for i in range(3)]
    return Batch.write("kubernetes", "My grid.yaml", [[job] for job in jobs])


def made(batch, options="", limit=None):
    place = batch.output.parent
    return Kubernetes(f"{NEEDED}:{place} {options}").job(batch, limit)


@pytest.mark.parametrize("version", [pytest.param("1.31", marks=pytest.mark.exhaustive), "1.37"])
def test_the_job_is_valid(batch, version):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubernetes_validate.validate(made(batch, "gpus=1 cpu=500m memory=3Gi", 2), version, strict=True)


def test_a_batch_is_an_indexed_job_and_a_task_a_pod_without_privileges(batch, monkeypatch):
    monkeypatch.chdir(batch.output)
    job = made(batch, "cpu=2 memory=3Gi user=1000:100", 2)
    assert job["metadata"]["name"] == job_name(batch)
    assert job["metadata"]["name"].startswith("varangian-my-grid-yaml-")
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (3, 2)
    assert job["spec"]["backoffLimitPerIndex"] == 0
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (1000, 100)
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "3Gi"}
    assert {"name": "VARANGIAN_TASK_CORES", "value": "2"} in container["env"]
    assert container["workingDir"] == str(batch.output)
    assert container["volumeMounts"][0] == {"name": "output", "mountPath": str(batch.output.parent)}
    assert container["command"][3:5] == [str(batch.path), "python"]
    assert sys.executable not in container["command"], "the image has its own"


def test_a_place_elsewhere_is_no_working_directory(batch, monkeypatch):
    monkeypatch.chdir("/")
    assert "workingDir" not in made(batch)["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", "image is missing"),
        ("image=x", "claim is missing"),
        (f"{NEEDED} partition=x", "Found 'partition'; there are image, claim"),
        (f"{NEEDED} memory=much", "Found memory=much"),
        (f"{NEEDED} cpu", "Found 'cpu'"),
        (f"{NEEDED} user=root", "Found user=root"),
        ("image='x", "No closing quotation"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(QueueError, match=f"--kubernetes-options should be .* as --kubern.*{said}"):
        Kubernetes(options).chosen  # noqa: B018


@pytest.mark.parametrize(
    ("claim", "said"), [("runs:/mnt/nowhere", "should lie in /mnt/nowhere"), ("runs:/", "no volume")]
)
def test_an_output_folder_that_pods_do_not_see_is_refused(batch, claim, said):
    with pytest.raises(QueueError, match=said):
        Kubernetes(f"image=x claim={claim}").job(batch, None)


def test_a_volume_is_looked_for_at_its_mount_point(batch, monkeypatch):
    monkeypatch.setattr(
        pathlib.Path, "is_mount", lambda path: path in (batch.output.parent, pathlib.Path("/"))
    )
    assert Kubernetes(NEEDED).place(batch.output) == ("runs", batch.output.parent)


def test_a_machine_without_kubectl_is_one_clear_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(QueueError, match="needs the command kubectl, and there is none on the PATH"):
        Kubernetes(NEEDED).check()


def pod(index, phase, **status):
    return {
        "metadata": {"labels": {"batch.kubernetes.io/job-completion-index": str(index)}},
        "status": {"phase": phase, **status},
    }


def container(**state):
    return {"containerStatuses": [{"state": state}]}


PULL = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
NO_NODE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}


@pytest.mark.parametrize(
    ("one", "state"),
    [
        (pod(0, "Pending", **container(waiting={"reason": "ContainerCreating"})), State("waiting")),
        (
            pod(0, "Pending", **container(waiting=PULL)),
            State("waiting", "ImagePullBackOff Back-off pulling image"),
        ),
        (pod(0, "Pending", conditions=[NO_NODE]), State("waiting", "Unschedulable 0/3 nodes")),
        (pod(0, "Pending"), State("waiting")),
        (pod(0, "Running"), State("running")),
        (
            pod(0, "Failed", **container(terminated={"reason": "OOMKilled", "exitCode": 137})),
            State("ended", "OOMKilled, exit code 137"),
        ),
        (pod(0, "Failed", reason="Evicted"), State("ended", "Evicted")),
    ],
)
def test_what_a_pod_says_about_its_task(one, state):
    assert state_of(one) == state


@pytest.fixture
def answering(monkeypatch):
    """A cluster that answers with this Job and these pods."""

    def answer(job, *pods):
        said = [json.dumps(job) if job else "", json.dumps({"items": pods})]
        monkeypatch.setattr(Kubernetes, "_kubectl", lambda *arguments: said["pods" in arguments])
        return Kubernetes(NEEDED).states("a-job")

    return answer


def test_states_come_from_the_job_and_from_the_pods_that_have_not_succeeded(answering):
    status = {"completedIndexes": "0,2-3", "failedIndexes": "4"}
    dead = pod(4, "Failed", **container(terminated={"reason": "OOMKilled", "exitCode": 137}))
    # One that has lost its node has a successor, which may not be there yet.
    lost, again = pod(1, "Failed", reason="NodeLost"), pod(1, "Running")
    found = answering({"spec": {"completions": 7}, "status": status}, again, lost, dead, pod(6, "Failed"))
    assert {index: state.where for index, state in found.items()} == {
        **dict.fromkeys((0, 2, 3, 4), "ended"),
        1: "running",
        5: "waiting",
        6: "waiting",
    }
    assert found[4].reason == "OOMKilled, exit code 137"


def test_all_tasks_of_a_job_that_is_over_have_ended(answering):
    condition = {
        "type": "Failed",
        "status": "True",
        "reason": "DeadlineExceeded",
        "message": "Job was active",
    }
    found = answering(
        {"spec": {"completions": 2}, "status": {"conditions": [condition], "completedIndexes": "1"}}
    )
    assert found == {0: State("ended", "DeadlineExceeded Job was active"), 1: State("ended")}


def test_a_job_that_the_cluster_does_not_know_has_no_states(answering):
    assert answering(None) == {}


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("forbidden: exceeded quota: jobs, requested: count/jobs.batch=1", QueueFullError),
        ("no route", QueueError),
    ],
)
def test_what_kubectl_refuses_is_told_in_its_words(batch, tmp_path, monkeypatch, said, kind):
    program = tmp_path / "kubectl"
    program.write_text(
        f"#!/bin/sh\ncat >/dev/null\necho 'Error from server (Forbidden): {said}' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(QueueError, match=rf"kubectl create failed: \(Forbidden\): {said}") as caught:
        Kubernetes(f"{NEEDED}:{tmp_path}").submit(batch, None)
    assert type(caught.value) is kind


@pytest.fixture
def volume(cluster, tmp_path):  # noqa: F811
    """Options for a claim that is bound to the folder of the test."""
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "runs"}}
    claim["spec"] = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    (tmp_path / "claim.json").write_text(json.dumps(claim))
    cluster.kubectl("apply", "-f", str(tmp_path / "claim.json"))
    (cluster.path / "volumes").mkdir()
    (cluster.path / "volumes" / "runs").symlink_to(tmp_path)
    return f"{NEEDED}:{tmp_path}"


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_sweep_has_the_digests_of_runs_here(planned, volume):
    plan = planned(grid={"aggregator": ["median", "mean"]}, seeds=2)
    result = run_sweep(
        plan, engine=engine("kubernetes", volume, per_task=2), command=["varangian", "sweep"]
    )
    assert [outcome.reason for outcome in result.failed] == []
    assert not (plan.output / FOLDER).exists()
    digests = {outcome.point.id: outcome.result["digest"] for outcome in result.outcomes}
    assert digests == {point.id: run(point.config).digest for point in plan.points}


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_sweep_that_left_finds_its_runs_and_what_is_cancelled_is_done_again(planned, volume):
    plan = planned(grid={"f": [0, 1]})
    left = engine("kubernetes", volume, limit=1, detach=True)
    assert run_sweep(plan, engine=left, command=["x"]).missing == 2
    (batch,) = batches(plan.output, "kubernetes")
    assert set(Kubernetes(volume).states(batch.handle)) == {0, 1}
    Kubernetes(volume).cancel(batch.handle)
    result = run_sweep(plan, engine=engine("kubernetes", volume), command=["x"])
    assert [outcome.state for outcome in result.outcomes] == ["finished", "finished"]
    assert not (plan.output / FOLDER).exists()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_claim_that_is_not_there_fails_the_sweep_before_a_run(planned, volume):
    plan = planned(grid={"f": [1]})
    with pytest.raises(RunError, match="should lie in /elsewhere"):
        run_sweep(plan, engine=engine("kubernetes", f"{NEEDED}:/elsewhere"), command=["x"])
    assert not (plan.output / FOLDER).exists()
