"""`varangian doctor`: check a machine, settings, certificates and the way to a server before a run."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from varangian.cli.commands.doctor.certificates import check_certificates
from varangian.cli.commands.doctor.connection import check_server
from varangian.cli.commands.doctor.disk import check_output, check_state, check_temporary
from varangian.cli.commands.doctor.finding import Finding, fail, note
from varangian.cli.commands.doctor.machine import (
    check_clock,
    check_cores,
    check_files,
    check_gpu,
    check_kernels,
    check_memory,
    check_versions,
)
from varangian.cli.commands.doctor.report import show
from varangian.cli.credentials import read_choice
from varangian.cli.main import FAILED, OK
from varangian.files import user_path
from varangian.protos.identity.bundle import Bundle, Role
from varangian.protos.network.address import split_address
from varangian.registry import ConfigError

if TYPE_CHECKING:
    from varangian.cli.commands.doctor.run import Part
    from varangian.config import RunConfig

OUTPUT = "runs"
"""The folder of run folders where no settings say another."""


def command(args: argparse.Namespace) -> int:
    """Print a line for each check; 0 when none has failed that a run needs."""
    asked = Asked(
        args.server, read_choice(args).certs, args.timeout, args.config, args.settings, environ=os.environ
    )
    return OK if show(examine(asked), args.format) else FAILED


@dataclass(frozen=True)
class Asked:
    """What is to be examined."""

    server: str | None = None
    certs: Path | None = None
    """A bundle, or a directory of bundles."""
    timeout: float = 5.0
    """Seconds for an answer of the network."""
    file: str | None = None
    settings: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict[str, str])
    """Variables, of which some may be settings."""

    @property
    def has_run(self) -> bool:
        """Whether settings say what is to run here."""
        variables = (
            name == "VARANGIAN_SETTINGS" or name.startswith("VARANGIAN__") for name in self.environ
        )
        return self.file is not None or bool(self.settings) or any(variables)


def examine(asked: Asked) -> Iterator[Finding]:
    """The checks in order; what builds on one that failed is left out."""
    yield check_versions()
    yield check_files()
    yield check_cores()
    yield check_clock(time.time())
    if asked.server is None:  # otherwise rules are computed there
        yield check_kernels()
    config: RunConfig | None = None
    if asked.has_run:
        found = _load(asked)
        if isinstance(found, ConfigError):
            yield from (fail("settings", str(problem)) for problem in found.problems)
        else:
            config = found
    bundle: Bundle | None = None
    findings = list[Finding]()
    if asked.certs is not None:
        where = None if asked.server is None else split_address(asked.server)
        names = None if config is None else config.worker_names
        findings, bundle = check_certificates(asked.certs, names, where[:1] if where else ())
    if config is not None:
        from varangian.cli.commands.doctor.run import Place, check_run

        yield from check_run(Place(config, _part(asked, bundle)))
    else:
        yield check_memory()
        yield from check_state() if asked.server else [check_output(user_path(OUTPUT).absolute(), bad=note)]
        yield check_temporary(note)
    yield from check_gpu(None if config is None else config.worker.device)
    yield from findings
    if asked.server is not None and (asked.certs is None or bundle is not None):
        yield from check_server(asked.server, bundle, asked.timeout)


def _part(asked: Asked, bundle: Bundle | None) -> Part:
    """What of the run is to be here: a worker where a server is elsewhere, a server where its bundle is."""
    if asked.server is not None:
        return "worker"
    return "server" if bundle is not None and bundle.role is Role.SERVER else "all"


def _load(asked: Asked) -> RunConfig | ConfigError:
    from varangian.config import load

    alone = asked.server is not None or asked.certs is not None  # one program of several
    try:
        return load(asked.file, asked.settings, asked.environ, whole=not alone)
    except ConfigError as error:
        return error
