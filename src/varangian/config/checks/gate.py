"""Checks of the gate on a held-out loss: what it needs, and whether it could ever leave a vector out."""

from __future__ import annotations

from collections.abc import Iterator

from varangian.config.settings import RunConfig
from varangian.registry import FIXES, Problem, fixes
from varangian.worker.training.models import Own

SHARE = 0.1
"""A share of the training samples to hold out, for a hint."""


def check_gate(config: RunConfig) -> Iterator[Problem]:
    """A gate without data or whole vectors, or where none can be spared."""
    if config.server.gate is None:
        return
    without = fixes(server__gate=None)
    if config.server.memory == "window":
        rule = "should be null with server.memory=window, which stores no whole vectors"
        offers = (*fixes(server__memory="rows"), *without)
        yield Problem("server.gate", rule, hint=f"Set {FIXES}.", fixes=offers)
    elif config.participation.pushes_deltas:
        path = config.participation.setting("form")
        rule = f"should be null with {path}=delta, which keeps no vectors of workers to leave out"
        yield Problem("server.gate", rule, hint=f"Set {FIXES}.", fixes=without)
    if config.evaluate.validation is None and not isinstance(config.model, Own):
        rule = "is measured on training samples that are held out, and evaluate.validation holds out none"
        offers = (*fixes(evaluate__validation=SHARE), *without)
        yield Problem("server.gate", rule, hint=f"Set {FIXES}.", fixes=offers)
    if not config.f:
        rule = "should be null with f = 0: it leaves out f vectors of a round at most"
        yield Problem("server.gate", rule, hint=f"Set {FIXES}.", fixes=without)
    elif not spare(config):
        rule = "can leave out no vector here: the rule needs all that a round has"
        hint = "It needs more workers, or a smaller f."
        yield Problem("server.gate", rule, hint=hint, fixes=without)


def spare(config: RunConfig) -> int:
    """The most vectors that can be left out of a round that has all: f, or as many as the rule spares."""
    rows = max(config.participation.row_counts(config.workers, config.f, config.quorum), default=0)
    return next(
        (out for out in range(min(config.f, rows - 1), 0, -1) if config.why_broken(rows - out) is None), 0
    )
