"""MLflow, by its client alone: nothing of a program that uses `mlflow` itself is changed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import yaml

from varangian.server.observability.record import RoundRecord
from varangian.trackers.base import TRACKERS, RunFacts, Tracking
from varangian.trackers.numbers import numbers_of
from varangian.trackers.weights import WeightTable

T = TypeVar("T")
AT_ONCE, PARAMS_AT_ONCE, LONGEST = 1000, 100, 500
"""Numbers and parameters that a server takes in one request, and characters of a parameter."""
WAITING = 10_000
"""Numbers that are kept unsent; no further round is taken then."""
STATUS = {"finished": "FINISHED", "interrupted": "KILLED"}
ID = "run_id"
PASSWORD = re.compile(r"[A-Za-z0-9+.-]+://[^/@]*:[^/]*@")
"""The beginning of a URI with a user and a password."""


@TRACKERS.register("mlflow")
@dataclass(frozen=True)
class Mlflow:
    """MLflow: a run in an experiment of a tracking server or of a local store."""

    package: ClassVar[str] = "mlflow"
    extra: ClassVar[str] = "mlflow"

    uri: str | None = None
    """The tracking server or store, as http://server:5000 or sqlite:///mlflow.db; null is
    MLFLOW_TRACKING_URI, or what MLflow takes by itself."""
    experiment: str = "varangian"
    """The experiment, made if there is none."""
    name: str | None = None
    """The name shown; null is that of the run folder."""

    def __post_init__(self) -> None:
        if PASSWORD.match(self.uri or ""):
            # Not with the value: it would stand in the error, as it would in every run folder.
            raise ValueError(
                "uri should have no password, since run folders keep settings. Set MLFLOW_TRACKING_USERNAME"
                " and MLFLOW_TRACKING_PASSWORD; for a database leave uri out and set MLFLOW_TRACKING_URI"
            )

    def begin(self, run: RunFacts) -> Tracking:
        return _Run(self, run)


class _Run:
    """A run of MLflow. Numbers are sent together when no further round waits."""

    def __init__(self, options: Mlflow, run: RunFacts) -> None:
        from mlflow import MlflowClient, entities
        from mlflow.exceptions import MlflowException

        self._entities, self._waiting = entities, list[Any]()
        self._client = MlflowClient(tracking_uri=options.uri)
        self._id, found = run.kept.get(ID, ""), None
        if self._id:
            try:
                found = self._client.get_run(self._id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        if found is not None:
            self._client.update_run(self._id, status="RUNNING")
            experiment = found.info.experiment_id
        else:
            experiment = self._experiment(options.experiment)
            tags = {"varangian.run": run.id}
            made = self._client.create_run(experiment, tags=tags, run_name=options.name or run.id)
            self._id = made.info.run_id
            run.keep(ID, self._id)
            self._describe(run)
        self.shown_at = f"experiment {experiment}, run {self._id}"

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            known = self._client.get_experiment_by_name(name)
            return str(known.experiment_id if known else self._client.create_experiment(name))
        except MlflowException as error:
            # Another run has just made it.
            if error.error_code == "RESOURCE_ALREADY_EXISTS" and (
                known := self._client.get_experiment_by_name(name)
            ):
                return str(known.experiment_id)
            raise

    def _describe(self, run: RunFacts) -> None:
        params = [self._entities.Param(key, str(value)[:LONGEST]) for key, value in run.flat().items()]
        for some in _in_parts(params, PARAMS_AT_ONCE):
            self._client.log_batch(self._id, params=some)
        self._client.log_text(self._id, yaml.safe_dump(dict(run.settings), sort_keys=False), "config.yaml")
        self._client.log_dict(self._id, run.manifest(), "manifest.json")

    @property
    def unsent(self) -> int:
        return len({metric.step for metric in self._waiting})

    def round(self, record: RoundRecord) -> None:
        if len(self._waiting) >= WAITING:
            self.flush()
        now, metric = int(time.time() * 1000), self._entities.Metric
        numbers = numbers_of(record)
        self._waiting += [metric(name, value, now, record.round) for name, value in numbers.items()]

    def flush(self) -> None:
        while self._waiting:
            self._client.log_batch(self._id, metrics=self._waiting[:AT_ONCE])
            del self._waiting[:AT_ONCE]

    def weights(self, table: WeightTable) -> None:
        self._client.log_text(self._id, table.csv(), "worker_weights.csv")

    def end(self, result: Mapping[str, Any]) -> None:
        self.flush()
        for name in ("outcome", "reason", "digest"):
            self._client.set_tag(self._id, f"varangian.{name}", str(result.get(name))[:LONGEST])
        self._client.set_terminated(self._id, STATUS.get(str(result.get("outcome")), "FAILED"))


def _in_parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
