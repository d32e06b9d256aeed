"""Checks of fragments: what needs whole vectors cannot go with a part of the parameters in each round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from varangian.config.settings import RunConfig
from varangian.registry import FIXES, Problem, fixes
from varangian.server.participation import Sync
from varangian.server.training.optimizers import OwnOptimizer
from varangian.worker.training.models import Own


def check_fragments(config: RunConfig) -> Iterator[Problem]:
    """Settings beside `server.fragments` that need whole vectors."""
    if config.server.fragments == 1:
        return
    for path, value, rule, mended in _wrong(config):
        offers = (*fixes(**mended), *fixes(server__fragments=1))
        yield Problem(
            path, f"{rule} with server.fragments={config.server.fragments}", value, f"Set {FIXES}.", offers
        )


def _wrong(config: RunConfig) -> Iterator[tuple[str, Any, str, dict[str, Any]]]:
    """Path, value, rule and what to set in its place."""
    worker, server = config.worker, config.server
    if not isinstance(config.participation, Sync):
        yield "participation", config.participation.setting(), "should be sync", {"participation": "sync"}
    if worker.momentum:
        yield "worker.momentum", worker.momentum, "should be 0", {"worker__momentum": 0}
    if server.memory == "window":
        yield "server.memory", "window", "should be rows", {"server__memory": "rows"}
    if config.buffers == "robust":
        yield "buffers", "robust", "should be local or refuse", {"buffers": "local"}
    if config.aggregator.per_block:
        rule = "should be false, so that workers are judged by all fragments,"
        yield "aggregator.per_block", True, rule, {"aggregator__per_block": False}
    if worker.inner is None and not isinstance(config.model, Own):
        rule = "should be an optimizer, whose steps go on in the fragments that are not pushed,"
        yield "worker.inner", None, rule, {"worker__inner": "adamw"}
    if isinstance(config.optimizer, OwnOptimizer):
        yield "optimizer", "a function", "should have a name", {"optimizer": "sgd"}
