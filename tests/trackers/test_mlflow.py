"""MLflow: a run in a local store, read back by its own client."""

from dataclasses import replace

import pytest

from varangian.trackers import Followers, Mlflow

pytestmark = [
    pytest.mark.exhaustive,  # to import MLflow and make a store takes seconds
    pytest.mark.filterwarnings("ignore"),  # what MLflow uses of others is not ours
]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where artifacts of a local store go
    pytest.importorskip("sqlalchemy", reason="a local store needs sqlalchemy")
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    return uri, mlflow.MlflowClient(tracking_uri=uri)


def test_a_run_that_goes_on_is_the_same_run(store, facts, record):
    uri, client = store
    for following, rounds, outcome in ((None, range(4), "interrupted"), (2, range(2, 6), "finished")):
        notes = []
        followers = Followers([Mlflow(uri=uri)], replace(facts, following=following), notes.append)
        followers.begin()
        for round in rounds:
            followers.round(record(round, loss=1.0 + round))
        followers.end({"outcome": outcome, "reason": "why", "digest": "d1", "rounds": 6})
        followers.close()
        assert [note for note in notes if not note.startswith(("tracker mlflow: ", "waiting for"))] == []
        experiment = client.get_experiment_by_name("varangian")
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.status == {"interrupted": "KILLED", "finished": "FINISHED"}[outcome]
    assert run.info.run_name == "a-run"
    assert run.data.params["optimizer.lr"] == "0.5"
    assert run.data.tags["varangian.outcome"] == "finished"
    losses = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "loss")}
    assert losses == {round: 1.0 + round for round in range(6)}
    assert run.data.metrics["weight/w00"] == 0.75
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"config.yaml", "manifest.json", "worker_weights.csv"}


def test_a_server_that_is_not_there_costs_nothing_but_its_lines(facts, record, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    notes = []
    followers = Followers([Mlflow(uri="http://127.0.0.1:9")], facts, notes.append)
    followers.begin()
    followers.round(record(0))
    followers.end({"outcome": "finished"})
    followers.close()
    said = [note for note in notes if "failed" in note or "lacks" in note]
    assert said[0].startswith("warning: tracker mlflow failed: MlflowException: API request")
    assert said[1:] == ["warning: tracker mlflow lacks 1 of 1 rounds"]
