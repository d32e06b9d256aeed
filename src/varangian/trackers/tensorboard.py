"""TensorBoard: event files, written by tensorboardX."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import yaml

from varangian.files import user_path
from varangian.server.observability.record import RoundRecord
from varangian.trackers.base import TRACKERS, RunFacts, Tracking
from varangian.trackers.numbers import numbers_of
from varangian.trackers.weights import WeightTable

COMPARED = ("loss", "accuracy")
"""The numbers by which the tab HPARAMS compares runs."""


@TRACKERS.register("tensorboard")
@dataclass(frozen=True)
class TensorBoard:
    """TensorBoard: event files, which `tensorboard --logdir FOLDER` shows."""

    package: ClassVar[str] = "tensorboardX"
    extra: ClassVar[str] = "tensorboard"

    folder: str | None = None
    """The folder in which a folder for the run is made; null is `tensorboard` in the run folder."""

    def begin(self, run: RunFacts) -> Tracking:
        own = run.folder / "tensorboard" if self.folder is None else user_path(self.folder) / run.id
        several = run.folder.parent if self.folder is None else user_path(self.folder)
        return _EventFile(os.path.abspath(own), os.path.abspath(several), run)


class _EventFile:
    """A file of events. It is written in this thread, unlike with the writers of tensorboardX."""

    def __init__(self, folder: str, several: str, run: RunFacts) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        os.makedirs(folder, exist_ok=True)
        self.shown_at = f"tensorboard --logdir {several}"
        # protobuf makes their classes when they are imported.
        events, summaries = cast("Any", event_pb2), cast("Any", summary_pb2)
        self._event, self._summary = events.Event, summaries.Summary
        self._text_of = summary.text
        # A name of its own: a file of the same second would be written over.
        self._file = EventsWriter(os.path.join(folder, "events"), f".{os.getpid()}.{run.following or 0}")
        if run.following is not None:  # readers take back what an earlier file has from this step on
            start = events.SessionLog(status=events.SessionLog.START)
            self._write(self._event(session_log=start, step=run.following))
        settings = yaml.safe_dump(dict(run.settings), sort_keys=False)
        self._text("settings", f"```\n{settings}```", run.following or 0)
        for part in summary.hparams(run.flat(), dict.fromkeys(COMPARED, 0.0)):
            self._write(self._event(summary=part))
        self.flush()

    def round(self, record: RoundRecord) -> None:
        value = self._summary.Value
        values = [value(tag=tag, simple_value=number) for tag, number in numbers_of(record).items()]
        self._write(self._event(summary=self._summary(value=values), step=record.round))

    def weights(self, table: WeightTable) -> None:
        rows = [f"| {w.worker} | {w.mean:.4g} | {w.rounds} | {w.zero} |" for w in table.summary()]
        head = ["| worker | mean weight | rounds with a weight | with weight 0 |", "|---|---|---|---|"]
        self._text("worker weights", "\n".join([*head, *rows]), max(round for round, _ in table.rows()))

    def flush(self) -> None:
        self._file.flush()

    def end(self, result: Mapping[str, Any]) -> None:
        self._text("result", f"{result.get('outcome')}: {result.get('reason')}", result.get("rounds") or 0)
        self._file.close()

    def _text(self, tag: str, text: str, step: int) -> None:
        self._write(self._event(summary=self._text_of(tag, text), step=step))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._file.write_event(event)
