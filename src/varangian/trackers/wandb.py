"""Weights & Biases, by the package wandb."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from varangian.server.observability.record import RoundRecord
from varangian.trackers.base import TRACKERS, RunFacts, TrackerError, Tracking
from varangian.trackers.numbers import numbers_of
from varangian.trackers.weights import WeightTable

BEGIN, FINISH = 30.0, 10.0
"""Seconds that wandb waits for its server when a run begins, and for uploads when it ends."""
NO_ID = re.compile(r"[^A-Za-z0-9_-]")
ID = "id"


@TRACKERS.register("wandb")
@dataclass(frozen=True)
class Wandb:
    """Weights & Biases: a run in a project; log in with `wandb login` or WANDB_API_KEY."""

    package: ClassVar[str] = "wandb"
    extra: ClassVar[str] = "wandb"

    project: str = "varangian"
    """The project."""
    entity: str | None = None
    """The user or team; null is that of the login."""
    group: str | None = None
    """A group of runs, as of a sweep."""
    name: str | None = None
    """The name shown; null is that of the run folder."""
    tags: tuple[str, ...] = ()
    """Tags of the run."""
    mode: Literal["online", "offline"] | None = None
    """`offline` writes files to the run folder, for `wandb sync`; null is WANDB_MODE, or online."""

    def begin(self, run: RunFacts) -> Tracking:
        return _Run(self, run)


class _Run:
    """A run of wandb, beside others that the same program may have."""

    def __init__(self, options: Wandb, run: RunFacts) -> None:
        import wandb

        # The name of the run folder is not unique in a project.
        id = run.kept.get(ID) or f"{NO_ID.sub('-', run.id)[:48]}-{secrets.token_hex(4)}"
        run.keep(ID, id)
        settings = wandb.Settings(
            console="off",
            silent=True,
            init_timeout=BEGIN,
            finish_timeout=FINISH,
            disable_code=True,
            disable_git=True,
        )
        mode = options.mode or wandb.setup().settings.mode
        # Without a login it would ask for one on the terminal.
        if mode == "online" and wandb.run is None and not wandb.login(prompt=False, verify=False):
            raise TrackerError(
                "there is no login for Weights & Biases. Use `wandb login`, set WANDB_API_KEY, or write "
                "trackers=[{wandb: {mode: offline}}]"
            )
        self._wandb = wandb
        self._run = wandb.init(
            project=options.project,
            entity=options.entity,
            group=options.group,
            name=options.name or run.id,
            tags=options.tags,
            config={**run.settings, "manifest": run.manifest()},
            id=id,
            resume="allow",
            dir=str(run.folder),
            mode=options.mode,
            reinit="create_new",
            settings=settings,
        )
        # Rounds are the axis, since the steps of wandb cannot go back to a checkpoint.
        self._run.define_metric("*", step_metric="round")
        # The folder of a run of a sweep has another name when it is over.
        place = self._run.dir.removesuffix("/files")
        offline = f"wandb sync {place.replace(str(run.folder), str(run.folder.with_name(run.id)))}"
        self.shown_at = offline if mode == "offline" else self._run.url

    def round(self, record: RoundRecord) -> None:
        self._run.log({"round": record.round, **numbers_of(record)})

    def weights(self, table: WeightTable) -> None:
        rows: list[list[Any]] = [[round, *row] for round, row in table.rows()]
        found = self._wandb.Table(columns=["round", *table.workers], data=rows, allow_mixed_types=True)
        self._run.log({"worker_weights": found})

    def end(self, result: Mapping[str, Any]) -> None:
        for name in ("outcome", "reason", "digest", "seconds"):
            self._run.summary[name] = result.get(name)
        self._run.finish(exit_code=0 if result.get("outcome") == "finished" else 1)
