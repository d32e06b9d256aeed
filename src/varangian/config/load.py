"""From a file, the environment and the command line to a RunConfig, or to every problem at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from varangian.config.aggregator import Expanded, expand_shorthand
from varangian.config.checks.table import find_problems
from varangian.config.errors import problems_of
from varangian.config.fixes import try_fixes
from varangian.config.overrides import apply_overrides, from_command_line, from_environment
from varangian.config.tree import RunConfig, groups
from varangian.config.yaml_text import read
from varangian.files import user_path
from varangian.registry import ConfigError, Problem


def load(
    path: str | Path | None = None,
    overrides: Sequence[str] | str = (),
    environ: Mapping[str, str] | None = None,
    *,
    whole: bool = True,
) -> RunConfig:
    """The configuration of a run.

    Args:
        path: a YAML file; without one every setting has its default.
        overrides: `a.b=c`, in order; they win over `environ`, which wins over the file.
        environ: variables, of which those named `VARANGIAN__A__B` count, and `VARANGIAN_SETTINGS`.
        whole: False for one program of a cluster, which need not be told everything.

    Raises:
        ConfigError: with every problem found.
    """
    overrides = [overrides] if isinstance(overrides, str) else overrides
    settings = read(user_path(path)) if path is not None else {}
    try:
        assignments = [*from_environment(environ or {}), *from_command_line(overrides)]
    except ConfigError as error:
        raise ConfigError(_tried(error.problems, settings, whole)) from error
    return loads(apply_overrides(settings, assignments, groups()), whole=whole)


def loads(settings: Mapping[str, Any], *, whole: bool = True) -> RunConfig:
    """The configuration in a mapping.

    Raises:
        ConfigError: with every problem found.
    """
    config, problems = _looked_at(settings, whole)
    if config is None or problems:
        raise ConfigError(_tried(problems, settings, whole))
    return config


def _tried(problems: Sequence[Problem], settings: Mapping[str, Any], whole: bool) -> list[Problem]:
    """The problems with suggestions that work."""
    return try_fixes(problems, settings, lambda changed: _looked_at(changed, whole)[1], groups())


def _looked_at(settings: Mapping[str, Any], whole: bool) -> tuple[RunConfig | None, list[Problem]]:
    """The configuration, and what is wrong with it; None when its parts are not even valid alone."""
    meant = expand_shorthand(settings)
    config = None
    try:
        config = RunConfig.model_validate(meant.settings)
        found = find_problems(config, whole=whole, invalid=meant.invalid)
    except ValidationError as error:
        found = [*problems_of(error, RunConfig), *_between_valid(meant, error, whole)]
    return config, [*meant.problems, *map(meant.as_written, found)]


def _between_valid(meant: Expanded, error: ValidationError, whole: bool) -> list[Problem]:
    """The problems between those settings that are valid themselves."""
    wrong = frozenset(str(details["loc"][0]) for details in error.errors() if details["loc"])
    invalid = wrong | meant.invalid
    if any(details["type"] == "extra_forbidden" for details in error.errors()):
        return []  # a mistyped name may have been any of the settings
    rest = {name: value for name, value in meant.settings.items() if name not in invalid}
    try:
        return find_problems(RunConfig.model_validate(rest), whole=whole, invalid=invalid)
    except ValidationError:
        return []
