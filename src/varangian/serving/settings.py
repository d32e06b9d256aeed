"""The settings of a run whose model, data and optimizer a program has: from arguments to a `RunConfig`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from varangian.api import Config, assignments, base_settings
from varangian.cli.arguments.common import FORMATS
from varangian.config import RunConfig, loads
from varangian.config.overrides import apply_overrides
from varangian.config.settings import groups
from varangian.config.worker_names import SAMPLES
from varangian.protos.network.address import EVERYWHERE, AddressError, parse_address
from varangian.registry import ConfigError, Problem

AT_WORKERS = (
    *("data", "loss", "metrics", "partition", "byzantine", "backend", "simulate", "delays"),
    *("availability", "model"),
)
"""Settings without a meaning at the server of a program: what they are about is in programs."""


def settings_from(config: Config, given: Mapping[str, Any], name: str) -> RunConfig:
    """The settings of a run of a program's own module.

    Args:
        config: settings below the others; of a file what a server of a program does not need is left out.
        given: settings by name, which win: `optimizer__lr` is `optimizer.lr`.
        name: of the module.

    Raises:
        ConfigError: with every problem found.
    """
    if wrong := [one for one in given if one.partition("__")[0].partition(".")[0] in AT_WORKERS]:
        rule = "is no setting of varangian.Server: model, data and loss are in the programs of the run"
        hint = "An experiment with a configuration is carried out by varangian.run(...)."
        raise ConfigError([Problem(one.replace("__", "."), rule, hint=hint) for one in wrong])
    base = {key: value for key, value in base_settings(config).items() if key not in AT_WORKERS}
    settings = apply_overrides(base, [*assignments(given)], groups())
    if settings.get("weights") == SAMPLES:
        rule = (
            "should be numbers by worker: the data are in the programs of the workers, and what one says "
            "of its own number of samples would be a claim that nobody has checked"
        )
        hint = "As weights={'berlin': 17834, 'graz': 190}, or the name of a file with such a mapping."
        raise ConfigError([Problem("weights", rule, SAMPLES, hint)])
    settings = {"buffers": "local", **settings}
    settings |= {"model": {"own": {"name": name}}, "data": "own", "metrics": []}
    return loads(settings, whole=False)


def bind_settings(address: str) -> dict[str, Any]:
    """`host:port` to listen at, as settings; `*` is every address of this machine.

    Raises:
        ConfigError: it is none.
    """
    anywhere = address.removeprefix(f"{EVERYWHERE}:")
    try:
        host, port = parse_address(address if anywhere == address else f"localhost:{anywhere}")
    except AddressError as error:
        raise ConfigError([Problem("address", error.rule, address, error.hint)]) from None
    return {"server.host": host if anywhere == address else EVERYWHERE, "server.port": port}


def check_arguments(
    address: object,
    *,
    certs: object,
    insecure: object,
    folder: object,
    resume: object,
    force: object,
    note: object,
    ready: object = None,
    format: object = None,
) -> None:
    """See that the arguments of `serve` and `start` are of the types that they should have.

    Raises:
        ConfigError: with every one that is not.
    """
    kinds: tuple[tuple[str, object, bool, str], ...] = (
        ("address", address, isinstance(address, str), "should be a text, HOST:PORT"),
        ("certs", certs, _is_path(certs), "should be a path"),
        ("insecure", insecure, isinstance(insecure, bool), "should be True or False"),
        ("folder", folder, _is_path(folder), "should be a path"),
        ("resume", resume, isinstance(resume, bool) or _is_path(resume), "should be a path, True or False"),
        ("force", force, isinstance(force, bool), "should be True or False"),
        ("note", note, callable(note), "should be a function that takes a sentence"),
        ("format", format, format in FORMATS, f"should be one of {', '.join(FORMATS)}"),
        ("ready", ready, callable(ready), "should be a function that takes HOST:PORT"),
    )
    problems = [
        Problem(path, rule, value) for path, value, good, rule in kinds if value is not None and not good
    ]
    if problems:
        raise ConfigError(problems)


def _is_path(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, os.PathLike) and isinstance(os.fspath(value), str))
