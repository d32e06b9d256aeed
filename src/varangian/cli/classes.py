"""The number of classes of a run, for a worker whose own data may lack some."""

from __future__ import annotations

import logging
import random
import time

import grpc

from varangian.cli.commands.health import status, why
from varangian.cli.main import CommandError
from varangian.config import RunConfig
from varangian.protos.identity.bundle import Bundle

log = logging.getLogger(__name__)

PAUSE = 2.0
"""Seconds between questions, and for an answer."""
REMINDER = 60.0
"""Seconds between lines about a server that does not answer."""


def asks_for_classes(config: RunConfig) -> bool:
    """Whether the data leaves the number of classes to the labels that this machine happens to have."""
    return config.loss.by_class is not False and getattr(config.data, "classes", 0) is None


def classes_at(server: str, bundle: Bundle | None, patience: float) -> int | None:
    """How many classes the server's data has, as soon as it answers; None where it has none.

    Raises:
        CommandError: it did not answer in `patience` seconds, or waiting would not help.
    """
    began, told = time.monotonic(), -REMINDER
    while True:
        try:
            return int(status(server, PAUSE, bundle).classes) or None
        except grpc.RpcError as error:
            found = why(error, server, bundle)
            waited = time.monotonic() - began
            if found.final:
                raise CommandError(found.sentence) from None
            if waited > patience:
                said = f"the server {server} did not answer in {patience:g} s. {found.sentence}"
                raise CommandError(said) from None
            if waited - told >= REMINDER:
                log.warning("waiting for the server %s. %s", server, found.sentence)
                told = waited
        # Workers that start together should not all ask together.
        time.sleep(PAUSE * random.uniform(0.5, 1.0))
