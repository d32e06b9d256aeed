"""Loading: a file, the environment and the command line become a `RunConfig`, or every problem at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from varangian.config.aggregator import Expanded, expand_shorthand
from varangian.config.checks.all_checks import find_problems
from varangian.config.checks.fixes import try_fixes
from varangian.config.errors import problems_of
from varangian.config.overrides import apply_overrides, from_command_line, from_environment
from varangian.config.settings import RunConfig, groups
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
        raise ConfigError(_with_fixes(error.problems, settings, whole)) from error
    return loads(apply_overrides(settings, assignments, groups()), whole=whole)


def loads(settings: Mapping[str, Any], *, whole: bool = True) -> RunConfig:
    """The configuration in a mapping.

    Raises:
        ConfigError: with every problem found.
    """
    checked = check(settings, whole=whole)
    if checked.config is None or checked.problems:
        raise ConfigError(_with_fixes(checked.problems, settings, whole))
    return checked.config


@dataclass(frozen=True)
class Checked:
    """Settings after all checks, whatever came of them."""

    config: RunConfig | None
    """None when a setting is not even valid by itself."""
    invalid: Sequence[Problem]
    """Problems of single settings: an unknown name, a value of the wrong type."""
    conflicts: Sequence[Problem]
    """Problems between settings that are valid by themselves."""

    @property
    def problems(self) -> list[Problem]:
        return [*self.invalid, *self.conflicts]


def check(settings: Mapping[str, Any], *, whole: bool = True) -> Checked:
    """Check the settings in a mapping, without a search for fixes."""
    expanded = expand_shorthand(settings)
    config, invalid = None, list[Problem]()
    try:
        config = RunConfig.model_validate(expanded.settings)
        conflicts = find_problems(config, whole=whole, invalid=expanded.invalid)
    except ValidationError as error:
        invalid = problems_of(error, RunConfig)
        conflicts = _problems_between(expanded, error, whole)
    written = [*expanded.problems, *map(expanded.as_written, invalid)]
    return Checked(config, written, [*map(expanded.as_written, conflicts)])


def _with_fixes(problems: Sequence[Problem], settings: Mapping[str, Any], whole: bool) -> list[Problem]:
    """The problems with those of their suggestions that lead to a valid configuration."""
    return try_fixes(problems, settings, lambda changed: check(changed, whole=whole).problems, groups())


def _problems_between(expanded: Expanded, error: ValidationError, whole: bool) -> list[Problem]:
    """The problems between those settings that are valid by themselves."""
    wrong = frozenset(str(details["loc"][0]) for details in error.errors() if details["loc"])
    invalid = wrong | expanded.invalid
    if any(details["type"] == "extra_forbidden" for details in error.errors()):
        return []  # a mistyped name may have been meant for any setting
    rest = {name: value for name, value in expanded.settings.items() if name not in invalid}
    try:
        return find_problems(RunConfig.model_validate(rest), whole=whole, invalid=invalid)
    except ValidationError:
        return []
