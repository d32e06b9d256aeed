"""Compose: a run on one machine with a container engine."""

from __future__ import annotations

from collections.abc import Sequence

from varangian.config import RunConfig
from varangian.deploy.emitter import File, Options
from varangian.deploy.plan import RUN


def render(config: RunConfig, options: Options) -> Sequence[File]:
    """The files of a deployment with Compose."""
    plan = options.plan(config)
    return [File(RUN, plan.files[RUN])]
